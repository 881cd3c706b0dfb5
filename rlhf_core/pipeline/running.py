"""Carrying out a pipeline, stage by stage, each in a process of its own.

stage.json, in the folder of each, says what the stage was made of, by a fingerprint, and whether it is finished, with a
digest of its model.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhf_core.by_path import files_of
from rlhf_core.catalog import Catalog
from rlhf_core.config import BUILTIN
from rlhf_core.environment import STARTED_BY
from rlhf_core.errors import UserError
from rlhf_core.inputs import parse_json, read_text
from rlhf_core.outputs import claim, write_whole
from rlhf_core.pipeline.plan import COMPARISON, FEEDS, PLAN, Pipeline, RunCommand, Stage, python_file
from rlhf_core.training.checkpoint import copies
from rlhf_core.training.launch import INTERRUPTED, STOPPING_SIGNALS, on_signals
from rlhf_core.training.manifest import digest
from rlhf_core.ui.screen import clock

COMPARED_PROMPTS = 48
FORMAT_REWARD = "medical_format"  # for the format of the answers in the built-in data
Say = Callable[[str], None]


def carry_out(pipeline: Pipeline, catalog: Catalog, run: RunCommand, say: Say) -> int:
    """Run the selected stages and the comparison. Returns 0, or the exit code of what stopped it."""
    with claim(pipeline.folder, "--output-dir"):
        return _carry_out(pipeline, catalog, run, say)


def _carry_out(pipeline: Pipeline, catalog: Catalog, run: RunCommand, say: Say) -> int:
    work = _survey(pipeline)
    for _, stage, _, _ in work:
        if stage.folder.is_dir() and any(stage.folder.iterdir()) and not (stage.folder / "stage.json").exists():
            raise UserError(f"{stage.folder} has files that no stage wrote: give another --output-dir, or move them")
    _dump({"stages": {name: stage.values for name, stage in pipeline.stages.items()}}, pipeline.folder / PLAN)
    for title, stage, mark, state in work:
        if state == "finished":
            say(f"{title}: finished and unchanged, skipped")
            continue
        if state == "changed":
            say(f"{title}: changed; its old folder is now {rename_old(stage.folder)}")
        record(stage.folder, mark, finished=False)
        if state != "interrupted":
            _dump(_run_values(stage, pipeline), stage.folder / "stage.yaml")
        command = _announced(title, stage, state, say)
        say("")
        started = time.monotonic()
        if code := run(command):
            say(f"\nStopped in stage {stage.name}. Resume the pipeline: {pipeline.resume_command}")
            return code
        record(stage.folder, mark, finished=True, model=digest(stage.model))
        say(f"\n{title}: done in {clock(time.monotonic() - started)}\n")
    say(f"Model   {stage.model}")
    return _compare(pipeline, mark, catalog, run, say) if _is_compared(pipeline) else 0


def dry_run(pipeline: Pipeline, catalog: Catalog, run: RunCommand, say: Say) -> int:
    """Show what would be run, and check every stage as far as its inputs exist. Writes nothing to the folder.

    A stage whose model is not trained yet is checked with the model that its chain starts from, which has the same
    configuration and tokenizer.
    """
    for title, stage, _, state in _survey(pipeline):
        if state == "finished":
            say(f"{title}: finished and unchanged, would be skipped")
            continue
        if state == "changed":
            say(f"{title}: changed; its folder would be renamed")
        _announced(title, stage, state, say)
        missing = {key: name for key, name in stage.feeds.items() if not pipeline.stages[name].model.is_dir()}
        if "reward_model" in missing:
            say(f"Its data can't be checked yet: that needs the model of stage {missing['reward_model']}.\n")
            continue
        with tempfile.TemporaryDirectory() as temporary:
            values = _run_values(stage, pipeline)
            if "model" in missing:
                values["model"] = stage.origin
                say(f"Checked with {stage.origin}, since the model of stage {missing['model']} is not trained yet:")
            _dump(values, Path(temporary) / "stage.yaml")
            output = stage.folder if state == "new" else Path(temporary) / stage.name
            say("")
            several = stage.config.num_processes * stage.config.num_machines > 1  # which are compared with all GPUs
            check = run_process if several else run
            if code := check(["run", "--config", f"{temporary}/stage.yaml", "--output-dir", str(output), "--dry-run"]):
                say(f"\nStage {stage.name} can't be run as it is.")
                return code
            say("")
    if _is_compared(pipeline):
        say(f"Last: {shlex.join(['rlhf', *_compare_command(pipeline, catalog)])}")
    return 0


def _survey(pipeline: Pipeline) -> list[tuple[str, Stage, str, str]]:
    """(title, stage, fingerprint, state) of the selected stages. Stages that are not selected count as they were."""
    marks: dict[str, str] = {}
    found = []
    for number, stage in enumerate(pipeline.selected, start=1):
        for name in stage.feeds.values():
            if name in marks:
                continue
            if not is_finished(pipeline.stages[name]):
                raise UserError(
                    f"stage {stage.name} needs stage {name}, which is not finished in {pipeline.folder}. Begin with "
                    f"--from-stage {name}, or give the folder where it is: --output-dir FOLDER"
                )
            marks[name] = recorded(pipeline.stages[name].folder)["fingerprint"]
        mark = marks[stage.name] = fingerprint(stage, marks)
        found.append((f"[{number}/{len(pipeline.selected)}] {stage.name}", stage, mark, state_of(stage, mark)))
    return found


def _announced(title: str, stage: Stage, state: str, say: Say) -> list[str]:
    """The arguments of `rlhf` for a stage, after showing them."""
    command = ["run", "--config", str(stage.folder / "stage.yaml"), "--output-dir", str(stage.folder)]
    if state == "interrupted":
        command = ["run", "--resume", str(stage.folder)]
    say(f"{title}: {shlex.join(['rlhf', *command])}")
    if stage.preset:
        say("Preset  for models made from the built-in one: " + ", ".join(f"{k} {v}" for k, v in stage.preset.items()))
    return command


def _run_values(stage: Stage, pipeline: Pipeline) -> dict[str, Any]:
    """The stage's keys for `rlhf run`: folders in place of stages."""
    fed = {key: str(pipeline.stages[name].model) for key, name in stage.feeds.items()}
    return {**stage.values, **stage.preset, **fed}


def _dump(values: Mapping[str, Any], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True), private=True)


def _is_compared(pipeline: Pipeline) -> bool:
    last = pipeline.selected[-1]
    return pipeline.compare and last.method.generates and last.name == list(pipeline.stages)[-1]


def _compare(pipeline: Pipeline, mark: str, catalog: Catalog, run: RunCommand, say: Say) -> int:
    """Compare the model that the pipeline began with to the one it made."""
    folder = pipeline.folder / COMPARISON
    if recorded(folder).get("fingerprint") == mark:
        say(f"Compared before and after: {folder}")
        return 0
    command = _compare_command(pipeline, catalog)
    shown = shlex.join(["rlhf", *command])
    if not any(entry.name == "compare" and not entry.problem for entry in catalog.entries("commands")):
        say(f"To compare before and after: pip install rlhf-tools && {shown}")
        return 0
    if folder.exists():
        rename_old(folder)
    say(f"\nBefore and after: {shown}\n")
    if code := run(command):
        say(f"\nThe stages are finished; the comparison is not. Resume it: {pipeline.resume_command}")
        say("Or leave it out: --no-compare")
        return code
    record(folder, mark, finished=True)
    return 0


def _compare_command(pipeline: Pipeline, catalog: Catalog) -> list[str]:
    last = pipeline.selected[-1]
    specs = [str(spec) for spec in last.config.reward_specs]
    if not specs and last.config.data == [BUILTIN] and any(e.name == FORMAT_REWARD for e in catalog.entries("rewards")):
        specs = [FORMAT_REWARD]
    rewards = [word for spec in specs for word in ("--reward", spec)]
    output = ["--output", str(pipeline.folder / COMPARISON)]
    return ["compare", last.origin, str(last.model), "--prompts", str(COMPARED_PROMPTS), *rewards, *output]


def run_process(arguments: Sequence[str]) -> int:
    """Run `rlhf ARGUMENTS` in a process of its own that writes to this terminal, and ends with this one. Returns its
    exit code.
    """
    started = {**os.environ, STARTED_BY: str(os.getpid())}
    process: subprocess.Popen[bytes] | None = None
    received: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        received.append(number)
        if process:
            process.send_signal(signal.SIGTERM)  # once more is the same, where the terminal has sent it already

    with on_signals(pass_on):  # from before it starts, so that it is never left behind
        # -P: like the installed script, Python does not import from the current folder first
        process = subprocess.Popen([sys.executable, "-P", "-m", "rlhf_core", *arguments], env=started)
        if received:
            process.send_signal(signal.SIGTERM)
        code = process.wait()
    if code >= 0:
        return code
    if -code in STOPPING_SIGNALS:  # which came before it could handle them
        return INTERRUPTED
    print(f"The process was ended by {signal.Signals(-code).name}.", flush=True)
    return 1


def fingerprint(stage: Stage, marks: Mapping[str, str]) -> str:
    """SHA-256 over the stage's keys, the stages it uses by their `marks`, and the local files it reads: models, which
    are large, by size and time, other files by content.
    """
    config = stage.config
    read = [Path(spec.source) for spec in [*config.data_specs, *config.eval_specs]]
    targets = [spec.target for spec in config.reward_specs]
    targets += [spec.formatter for spec in [*config.data_specs, *config.eval_specs] if spec.formatter]
    scripts = [file for target in targets if (file := python_file(target))]
    read += [each for file in scripts for each in files_of(file)]
    read += [Path(config.chat_template)] if config.chat_template else []
    models = [Path(str(stage.values[key])) for key in FEEDS if stage.values.get(key) and key not in stage.feeds]
    files: dict[str, Any] = {str(file): _sha256(file) for path in read for file in _each(path)}
    files |= {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for path in models for file in _each(path)}
    stages = {key: marks[name] for key, name in stage.feeds.items()}
    content = {"values": {**stage.values, **stage.preset}, "stages": stages, "files": files}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _each(path: Path) -> list[Path]:
    path = path.expanduser()
    return [file for file in sorted(path.rglob("*")) if file.is_file()] if path.is_dir() else [path] * path.is_file()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def recorded(folder: Path) -> dict[str, Any]:
    """stage.json, empty where there is none. Raises `UserError` for one that is damaged."""
    file = folder / "stage.json"
    if not os.path.lexists(file):
        return {}
    values = parse_json(read_text(file), str(file))
    if not isinstance(values, dict) or not isinstance(values.get("fingerprint"), str):
        raise UserError(
            f"{file} is damaged, so whether its stage is finished and unchanged can't be known. Move {folder} away to "
            "run the stage again"
        )
    return values


def record(folder: Path, mark: str, *, finished: bool, model: str | None = None) -> None:
    """Write stage.json. `model`: a digest of what the stage has trained."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "stage.json", json.dumps({"fingerprint": mark, "finished": finished, "model": model}))


def is_finished(stage: Stage) -> bool:
    """Whether the stage has its model. Raises `UserError` if that is not the one that it has trained."""
    found = recorded(stage.folder)
    if not found.get("finished") or not stage.model.is_dir():
        return False
    if found.get("model") not in (None, digest(stage.model)):  # an earlier version wrote none
        raise UserError(
            f"{stage.model} is not what stage {stage.name} has trained: its files were changed or damaged since. "
            f"Move {stage.model} away to have it written again, or train it further by itself: rlhf run --model "
            f"{stage.model}"
        )
    return True


def state_of(stage: Stage, mark: str) -> str:
    """`new`, `changed`, or unchanged and `finished` or `interrupted`. Raises `UserError` for other files."""
    found = recorded(stage.folder)
    is_other = any(stage.folder.iterdir()) if stage.folder.is_dir() else os.path.lexists(stage.folder)
    if not found and is_other:
        raise UserError(f"{stage.folder} exists and is not a stage of a pipeline: choose another --output-dir")
    if not (stage.folder / "config.yaml").is_file():
        if stage.model.exists() or (stage.folder / "checkpoints").exists():
            raise UserError(
                f"{stage.folder} was trained, and its config.yaml is missing: put it back, or move {stage.folder} away "
                f"to train the stage anew.{copies(stage.folder)}"
            )
        return "new"
    if found["fingerprint"] != mark:
        return "changed"
    return "finished" if is_finished(stage) else "interrupted"


def rename_old(folder: Path) -> Path:
    """Rename a folder to NAME.old-N with the next free number."""
    number = 1
    while (old := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    return folder.rename(old)
