"""`rlhf pipeline`: stages one after the other, those of the guide or any that a file lists."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from rlhf_core.catalog import Catalog
from rlhf_core.config import read_file
from rlhf_core.errors import UserError, did_you_mean
from rlhf_core.inputs import path_of
from rlhf_core.pipeline import running
from rlhf_core.pipeline.plan import GUIDE, PLAN, Pipeline, plan, read_stage_flags, select


@click.command()
@click.argument("name", required=False, metavar=f"[{'|'.join(GUIDE)}]")
@click.option("--config", metavar="FILE", help="YAML file with the stages, instead of a name.")
@click.option("--output-dir", metavar="FOLDER", help="Folder of the pipeline; one that exists is resumed.")
@click.option("--model", metavar="MODEL", help="Model that the first stages start from.")
@click.option("--data", multiple=True, metavar="SPEC", help="Data of every stage; repeatable.")
@click.option("--reward", multiple=True, metavar="SPEC", help="Reward of the stages that need one; repeatable.")
@click.option(
    "--stage", multiple=True, metavar="NAME:key=value,…", help="Options of one stage, as of rlhf run; repeatable."
)
@click.option("--from-stage", metavar="NAME", help="Start with this stage.")
@click.option("--to-stage", metavar="NAME", help="End with this stage.")
@click.option("--only", metavar="NAME", help="Run this stage alone.")
@click.option("--no-compare", is_flag=True, help="Leave out the comparison of before and after.")
@click.option("--dry-run", is_flag=True, help="Show each stage with its command and check it; train nothing.")
def pipeline(
    name: str | None, config: str | None, output_dir: str | None, no_compare: bool, dry_run: bool, **flags: Any
) -> None:
    """Run several stages, each stage's model feeding the next.

    rlhf pipeline ppo

    A stage that is finished and unchanged is skipped, and one that was interrupted is resumed. To resume a pipeline:
    rlhf pipeline --output-dir FOLDER
    """
    if output_dir == "":
        raise UserError("--output-dir is empty: leave it out for a folder under runs/, or name one")
    folder = path_of(output_dir, "--output-dir") if output_dir else None
    title, description = _description(name, config, folder)
    prefix = "pipeline" if title == "pipeline" else f"pipeline-{title}"  # of pipeline.yaml
    folder = folder or Path("runs") / f"{prefix}-{time.strftime('%Y%m%d-%H%M%S')}"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output-dir {folder} is a file")
    catalog = Catalog()
    given = {key: flags[key] for key in ("model", "data", "reward") if flags[key] not in (None, ())}
    stages = plan(description, folder, catalog, given, read_stage_flags(flags["stage"]))
    chosen = {"--from-stage": flags["from_stage"], "--to-stage": flags["to_stage"], "--only": flags["only"]}
    selected = select(stages, *chosen.values())
    again = [word for flag, stage in chosen.items() if stage for word in (flag, stage)] + ["--no-compare"] * no_compare
    resume_command = shlex.join(["rlhf", "pipeline", "--output-dir", str(folder), *again])
    click.echo(f"Stages  {' → '.join(stage.name for stage in selected)}\nFolder  {folder}\n")
    last = selected[-1]
    if last.method.generates and not (no_compare or last.holds_out):
        no_compare = True
        click.echo(f"Not compared at the end: stage {last.name} holds out no prompts (num_eval_prompts 0)\n")
    pipeline = Pipeline(folder, stages, selected, not no_compare, resume_command)
    if dry_run:
        sys.exit(running.dry_run(pipeline, catalog, run_here, click.echo))
    sys.exit(running.carry_out(pipeline, catalog, running.run_process, click.echo))


def run_here(arguments: Sequence[str]) -> int:
    """Run `rlhf ARGUMENTS` in this process and return its exit code: a dry run mostly waits for what it imports, which
    is so imported once for all stages.
    """
    from rlhf_core.cli import exit_code

    before = dict(os.environ)
    try:
        return exit_code(arguments)
    finally:
        os.environ.clear()
        os.environ.update(before)


def _description(name: str | None, config: str | None, folder: Path | None) -> tuple[str, dict[str, Any]]:
    """(title, stages with what they share): by name, from a file, from the folder to resume, or by asking."""
    if name and config:
        raise UserError(f"either {name} or --config {config}, not both")
    if config:
        return Path(config).stem, read_file(Path(config))
    if name is None and folder is not None:
        if not (folder / PLAN).is_file():
            raise UserError(f"--output-dir {folder} holds no pipeline to resume: name one of {', '.join(GUIDE)}")
        return folder.name, read_file(folder / PLAN)
    name = name or _ask()
    if name not in GUIDE:
        raise UserError(
            f"there is no pipeline {name!r}.{did_you_mean(name, GUIDE)} There are {', '.join(GUIDE)}, and "
            "--config FILE for stages of your own."
        )
    return name, {"stages": GUIDE[name][1]}


def _ask() -> str:
    if not _in_terminal():
        raise UserError(f"which pipeline? Write rlhf pipeline NAME, one of {', '.join(GUIDE)}, or --config FILE")
    numbers = {str(number): name for number, name in enumerate(GUIDE, start=1)}
    for number, name in numbers.items():
        click.echo(f"{number}  {name:6}{GUIDE[name][0]}")
    answer = click.prompt("Which", type=click.Choice([*numbers, *GUIDE]), show_choices=False)
    return numbers.get(answer, answer)


def _in_terminal() -> bool:
    return sys.stdin.isatty()
