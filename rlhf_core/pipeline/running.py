"""Carrying out a pipeline, stage by stage, each in a process of its own."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhf_core.catalog import Catalog
from rlhf_core.config import BUILTIN
from rlhf_core.errors import UserError
from rlhf_core.pipeline.plan import COMPARISON, PLAN, Pipeline, RunCommand, Stage
from rlhf_core.pipeline.state import fingerprint, is_finished, record, recorded, set_aside, state
from rlhf_core.training.launch import INTERRUPTED, on_signals

COMPARED_PROMPTS = 48
FORMAT_REWARD = "medical_format"  # for the format of the answers in the built-in data


def carry_out(pipeline: Pipeline, catalog: Catalog, run: RunCommand, say: Callable[[str], None]) -> int:
    """Run the selected stages and the comparison. Returns 0, or the exit code of what stopped it."""
    marks, states = _survey(pipeline)
    pipeline.folder.mkdir(parents=True, exist_ok=True)
    _dump({"stages": {name: stage.written for name, stage in pipeline.stages.items()}}, pipeline.folder / PLAN)
    for title, stage in _numbered(pipeline.selected):
        mark = marks[stage.name]
        if states[stage.name] == "finished":
            say(f"{title}: finished and unchanged, skipped")
            continue
        if states[stage.name] == "changed":
            say(f"{title}: changed; its old folder is now {set_aside(stage.folder)}")
        record(stage.folder, mark, finished=False)
        if states[stage.name] != "interrupted":
            _dump(_run_values(stage, pipeline.stages), stage.folder / "stage.yaml")
        command = _run_command(stage, states[stage.name])
        say(_announcement(title, stage, command) + "\n")
        started = time.monotonic()
        if code := run(command):
            say(f"\nStopped in stage {stage.name}. Resume the pipeline: {pipeline.resume_command}")
            return code
        record(stage.folder, mark, finished=True)
        say(f"\n{title}: done in {_minutes(time.monotonic() - started)}\n")
    last = pipeline.selected[-1]
    say(f"Model   {last.model}")
    if not pipeline.compare or last.name != list(pipeline.stages)[-1]:
        return 0
    return _compare(pipeline, last, marks[last.name], catalog, run, say)


def dry_run(pipeline: Pipeline, catalog: Catalog, run: RunCommand, say: Callable[[str], None]) -> int:
    """Show what would be run, and check every stage as far as its inputs exist. Writes nothing to the folder.

    A stage whose model is not trained yet is checked with the model that its chain starts from, which has the same
    configuration and tokenizer.
    """
    _, states = _survey(pipeline)
    for title, stage in _numbered(pipeline.selected):
        if states[stage.name] == "finished":
            say(f"{title}: finished and unchanged, would be skipped")
            continue
        if states[stage.name] == "changed":
            say(f"{title}: changed; its folder would be renamed")
        say(_announcement(title, stage, _run_command(stage, states[stage.name])))
        missing = {key: name for key, name in stage.feeds.items() if not pipeline.stages[name].model.is_dir()}
        if "reward_model" in missing:
            say(f"Its data can't be checked yet: that needs the model of stage {missing['reward_model']}.\n")
            continue
        with tempfile.TemporaryDirectory() as temporary:
            values = _run_values(stage, pipeline.stages)
            if "model" in missing:
                values["model"] = stage.origin
                say(f"Checked with {stage.origin}, since the model of stage {missing['model']} is not trained yet:")
            _dump(values, Path(temporary) / "stage.yaml")
            output = stage.folder if states[stage.name] == "new" else Path(temporary) / stage.name
            checked = ["run", "--config", f"{temporary}/stage.yaml", "--output-dir", str(output), "--dry-run"]
            say("")
            if code := run(checked):
                say(f"\nStage {stage.name} can't be run as it is.")
                return code
            say("")
    last = pipeline.selected[-1]
    if pipeline.compare and last.name == list(pipeline.stages)[-1] and last.method.generates:
        say(f"Last: {shlex.join(['rlhf', *_compare_command(pipeline, last, catalog)])}")
    return 0


def _survey(pipeline: Pipeline) -> tuple[dict[str, str], dict[str, str]]:
    """(fingerprints, states) of the selected stages. Stages that are left out count as they were run."""
    selected = {stage.name for stage in pipeline.selected}
    marks: dict[str, str] = {}
    states: dict[str, str] = {}
    for stage in pipeline.selected:
        for name in stage.feeds.values():
            if name in selected:
                continue
            if not is_finished(pipeline.stages[name]):
                raise UserError(
                    f"stage {stage.name} needs stage {name}, which is not finished in {pipeline.folder}. Begin with "
                    f"--from-stage {name}, or give the folder where it is: --output-dir FOLDER"
                )
            marks[name] = recorded(pipeline.stages[name].folder)["fingerprint"]
        marks[stage.name] = fingerprint(stage, marks)
        states[stage.name] = state(stage, marks[stage.name])
    return marks, states


def _numbered(stages: Sequence[Stage]) -> Iterator[tuple[str, Stage]]:
    for number, stage in enumerate(stages, start=1):
        yield f"[{number}/{len(stages)}] {stage.name}", stage


def _announcement(title: str, stage: Stage, command: Sequence[str]) -> str:
    values = ", ".join(f"{name} {value}" for name, value in stage.preset.items())
    preset = f"\nPreset  for models made from the built-in one: {values}" if values else ""
    return f"{title}: {shlex.join(['rlhf', *command])}{preset}"


def _run_command(stage: Stage, state: str) -> list[str]:
    if state == "interrupted":
        return ["run", "--resume", str(stage.folder)]
    return ["run", "--config", str(stage.folder / "stage.yaml"), "--output-dir", str(stage.folder)]


def _run_values(stage: Stage, stages: Mapping[str, Stage]) -> dict[str, Any]:
    """The stage's keys for `rlhf run`: folders in place of stages."""
    return {**stage.values, **{key: str(stages[name].model) for key, name in stage.feeds.items()}}


def _dump(values: Mapping[str, Any], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True), encoding="utf-8")


def _compare(
    pipeline: Pipeline, last: Stage, mark: str, catalog: Catalog, run: RunCommand, say: Callable[[str], None]
) -> int:
    """The model that the pipeline began with against the one it made."""
    if not last.method.generates:
        return 0
    folder = pipeline.folder / COMPARISON
    if recorded(folder).get("fingerprint") == mark:
        say(f"Compared before and after: {folder}")
        return 0
    command = _compare_command(pipeline, last, catalog)
    shown = shlex.join(["rlhf", *command])
    if not any(entry.name == "compare" and not entry.problem for entry in catalog.entries("commands")):
        say(f"To compare before and after: pip install rlhf-tools && {shown}")
        return 0
    if folder.exists():
        set_aside(folder)
    say(f"\nBefore and after: {shown}\n")
    if code := run(command):
        say(f"\nThe stages are finished; the comparison is not. Resume it: {pipeline.resume_command}")
        return code
    record(folder, mark, finished=True)
    return 0


def _compare_command(pipeline: Pipeline, last: Stage, catalog: Catalog) -> list[str]:
    specs = [str(spec) for spec in last.config.reward_specs]
    if not specs and last.config.data == [BUILTIN] and any(e.name == FORMAT_REWARD for e in catalog.entries("rewards")):
        specs = [FORMAT_REWARD]
    rewards = [word for spec in specs for word in ("--reward", spec)]
    output = ["--output", str(pipeline.folder / COMPARISON)]
    return ["compare", last.origin, str(last.model), "--prompts", str(COMPARED_PROMPTS), *rewards, *output]


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def run_process(arguments: Sequence[str]) -> int:
    """Run `rlhf ARGUMENTS` in a process of its own that writes to this terminal. Returns its exit code."""
    # -P: like the installed script, Python does not import from the current folder first
    process = subprocess.Popen([sys.executable, "-P", "-m", "rlhf_core", *arguments])

    def pass_on(number: int, frame: Any) -> None:
        """Ctrl-C has reached the process through the terminal; it saves, and we wait for it."""
        if number == signal.SIGTERM:
            process.send_signal(number)

    with on_signals(pass_on):
        code = process.wait()
    if code >= 0:
        return code
    if -code == signal.SIGINT:
        return INTERRUPTED
    print(f"The process was ended by {signal.Signals(-code).name}.", flush=True)
    return 1
