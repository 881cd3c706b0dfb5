"""`rlhf run`: its flags come from `RunConfig` and from the options of the method that is named."""

from __future__ import annotations

import json
import os
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rlhf_core.catalog import Catalog
from rlhf_core.config import MAIN, RunConfig, read_file, resolve, spellings
from rlhf_core.errors import UserError, excerpt
from rlhf_core.inputs import path_of
from rlhf_core.method import Method, TrainingOptions
from rlhf_core.runs import is_run
from rlhf_core.training import checkpoint, run_folder

LATEST = "latest"


class RunCommand(click.Command):
    """Adds one flag for each option of the method before parsing, so that click shows their help and reports typos."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.obj = Catalog()
        method = None if ctx.resilient_parsing else _peek_method(args)
        fields, shared = TrainingOptions.model_fields, TrainingOptions.model_fields
        if method is not None:
            fields = ctx.obj.load("methods", method)[0].Options.model_fields
        # What a method adds, or gives another default.
        self.own = [n for n, f in fields.items() if n not in shared or f.get_default() != shared[n].get_default()]
        self.params = [*_flags(MAIN), *self.more_flags(), *_flags(fields)]
        return super().parse_args(ctx, args)

    def more_flags(self) -> list[click.Parameter]:
        """What is no key of a configuration."""
        return _more_flags()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        main, own, shared = "Run", "Options of this method", "Options of every method"
        titles = dict.fromkeys(TrainingOptions.model_fields, shared) | dict.fromkeys(self.own, own)
        records = {param.name: record for param in self.get_params(ctx) if (record := param.get_help_record(ctx))}
        for title in (main, own, shared):
            if lines := [record for name, record in records.items() if titles.get(str(name), main) == title]:
                with formatter.section(title):
                    formatter.write_dl(lines)
        if not self.own:
            formatter.write_text("A method's own options: rlhf run --method NAME --help")


@click.command(cls=RunCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def run(ctx: click.Context, **values: Any) -> None:
    """Train a model.

    rlhf run --method grpo --reward medical_format
    """
    resume, config_file, dry_run = values.pop("resume"), values.pop("config"), values.pop("dry_run")
    allow_changed = values.pop("allow_changed")
    if allow_changed and not resume:
        raise UserError(f"--allow-changed {allow_changed[0]} has no effect without --resume")
    given = {name: value for name, value in values.items() if value is not None and value != ()}
    if "set" in given:
        given["set"] = pairs(given["set"])
    folder = _find_run(resume, given.get("output_dir")) if resume else None
    if folder is not None:
        given["output_dir"] = str(folder)
    config, method = resolve(given, ctx.obj, under=_files(config_file, folder))
    resumes: dict[str, Any] = {"resume": folder is not None, "allow_changed": allow_changed}
    sys.exit(_carry_out(config, method, ctx.obj, resumes, dry_run=dry_run))


def _carry_out(config: RunConfig, method: Method, catalog: Catalog, resumes: dict[str, Any], *, dry_run: bool) -> int:
    from rlhf_core.training import launch, ranks
    from rlhf_core.training.run import check, train
    from rlhf_core.ui.streams import outlast_streams

    outlast_streams()
    launch.check_environment()
    is_one_of_several = "RANK" in os.environ
    if config.num_processes * config.num_machines > 1 and not is_one_of_several and not dry_run:
        with run_folder.claimed(config, resumes["resume"]):  # one folder for every process
            check(config, method, catalog, **resumes)
            code = launch.launch(config, _arguments(config, resumes["resume"]))
    else:
        try:
            code = train(config, method, catalog, **resumes, dry_run=dry_run, estimate=_expected)
        except Exception as error:
            ranks.wait_to_be_ended(error)
            raise
    if code == launch.OUT_OF_MEMORY and not is_one_of_several:
        launch.start_again(config)
    launch.end_process(code)
    return code


def _expected(*run: Any) -> Any:
    from rlhf_core.estimate.before_run import of_run

    return of_run(*run)


def _arguments(config: RunConfig, resume: bool) -> list[str]:
    """The arguments for the processes of a run: as typed, with the folder that was chosen for all of them."""
    typed = sys.argv[sys.argv.index("run") + 1 :]
    chosen = any(word.startswith(("--output-dir", "--output_dir")) for word in typed)
    return typed if resume or chosen else [*typed, "--output-dir", str(config.output_dir)]


def _files(config_file: str | None, folder: Path | None) -> list[dict[str, Any]]:
    """The keys of the configuration of the run in `folder`, then those of the file that the user gave."""
    from rlhf_core.training import manifest

    layers = [manifest.located(_of_run(folder), folder)] if folder else []
    if config_file:
        values = read_file(config_file)
        if (
            path_of(config_file, "--config").parent / "manifest.json"
        ).is_file():  # the run is repeated, in a folder of its own
            values = {key: value for key, value in values.items() if key not in ("output_dir", "name")}
        layers.append(values)
    return layers


def _of_run(folder: Path) -> dict[str, Any]:
    """The keys of config.yaml in a run's folder. Raises `UserError` that names the copies in its checkpoints."""
    try:
        values = read_file(folder / "config.yaml")
        if not isinstance(values.get("method"), str):
            raise UserError(f"--config {folder / 'config.yaml'}: it names no method")
    except UserError as error:
        text = str(error).removeprefix("--config ")
        raise UserError(f"--resume {folder}: {text}.{checkpoint.copies(folder)}") from error
    return values


def _find_run(resume: str, output_dir: str | None) -> Path:
    """The folder of the run to resume: the one given, by either flag, or the latest under runs/."""
    if resume == LATEST and output_dir is not None:
        resume = output_dir
    if resume != LATEST:
        folder = path_of(resume, "--resume")
        if output_dir is not None and path_of(output_dir, "--output-dir").resolve() != folder.resolve():
            raise UserError(f"--resume {resume} goes on in that folder: leave out --output-dir {output_dir}")
        if not is_run(folder):
            missing = "it has nothing else of a run" if (folder / "config.yaml").is_file() else "it has no config.yaml"
            raise UserError(f"--resume {resume}: this is not a run's folder: {missing}.{checkpoint.copies(folder)}")
        return folder
    runs = [folder for folder in Path("runs").glob("*") if is_run(folder)]
    if not runs:
        raise UserError("--resume: there is no run under runs/. Give its folder: --resume FOLDER")
    return max(runs, key=lambda folder: (folder / "config.yaml").stat().st_mtime)


def _peek_method(args: list[str]) -> str | None:
    """The method that these arguments name, before its flags are known."""
    options = [
        option
        for option in (*_flags(MAIN), *_more_flags())
        if option.name in ("method", "config", "resume", "output_dir")
    ]
    lenient = {"ignore_unknown_options": True, "allow_extra_args": True}
    command = click.Command("run", params=options, add_help_option=False, context_settings=lenient)
    found = command.make_context("run", list(args), resilient_parsing=True).params
    if found["method"]:
        return found["method"]
    folder = _find_run(found["resume"], found["output_dir"]) if found["resume"] else None
    named = [layer["method"] for layer in _files(found["config"], folder) if layer.get("method")]
    return named[-1] if named and isinstance(named[-1], str) else None


def _more_flags() -> list[click.Parameter]:
    latest: dict[str, Any] = {"is_flag": False, "flag_value": LATEST, "metavar": "[FOLDER]"}
    return [
        click.Option(["--config"], metavar="FILE", help="YAML file with the same keys as these flags; flags win."),
        click.Option(["--resume"], help="Resume a run; without a folder the latest.", **latest),
        click.Option(
            ["--allow-changed"],
            multiple=True,
            metavar="NAME",
            help="With --resume: go on although NAME (an option, data, model, reward, a plugin's distribution) is "
            "not what it was; noted in manifest.json; repeatable.",
        ),
        click.Option(["--dry-run"], is_flag=True, help="Check all inputs, show one example; load no weights."),
    ]


def _flags(fields: Mapping[str, FieldInfo]) -> list[click.Parameter]:
    flags: dict[str, list[str]] = {}
    for spelling, name in spellings(fields).items():
        flags.setdefault(name, []).append("--" + spelling.replace("_", "-"))
    return [_flag(name, field, flags[name]) for name, field in fields.items()]


def _flag(name: str, field: FieldInfo, flags: list[str]) -> click.Option:
    help_text = _help(field)
    kind = _base_type(field.annotation)
    if kind is bool:
        switches = f"{flags[0]}/--no-{flags[0].removeprefix('--')}"
        return click.Option([name, switches, *flags[1:]], default=None, help=help_text)
    if typing.get_origin(kind) is list or name == "set":
        metavar = {"set": "NAME=VALUE", "reward": "SPEC"}.get(name, "NAME")
        return click.Option([name, *flags], multiple=True, metavar=metavar, help=help_text)
    metavar = "JSON" if typing.get_origin(kind) is dict else {int: "N", float: "X"}.get(kind, "TEXT")
    if typing.get_origin(kind) is typing.Literal:
        metavar = "[" + "|".join(map(str, typing.get_args(kind))) + "]"
    return click.Option([name, *flags], type=str, metavar=metavar, help=help_text)


def _help(field: FieldInfo) -> str:
    text, default = field.description or "", field.get_default()
    if isinstance(default, bool):
        default = "yes" if default else "no"
    default = ", ".join(default) if isinstance(default, list) else default
    shown = "" if default in (None, PydanticUndefined, "", {}) else f"  [{default}]"
    return text[:1].upper() + text[1:] + "." + shown


def _base_type(annotation: Any) -> Any:
    """The type inside `Annotated`; of a union the first, such as the X of `X | None` and the string of `str | list`."""
    if typing.get_origin(annotation) in (typing.Annotated, typing.Union, types.UnionType):
        return _base_type(typing.get_args(annotation)[0])
    return annotation


def pairs(texts: Sequence[str]) -> dict[str, Any]:
    """What `--set` is given, by name. A value that is not JSON is text."""
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--set {excerpt(repr(text))}: write name=value")
        if name in values:
            raise UserError(f"--set {name} is given twice")
        try:
            values[name] = json.loads(value)
        except (ValueError, RecursionError):  # not JSON, or more digits or levels than Python reads
            values[name] = value
    return values
