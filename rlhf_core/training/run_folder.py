"""A run's folder: where it is, what is written to it, and what a resumed run keeps.

config.yaml, manifest.json, metrics.jsonl, samples.jsonl, reward_errors.jsonl, evaluations.jsonl, diagnoses.jsonl,
evaluation.json, report.html, run.log, trackers.json (the run's ids in trackers), tensorboard/, checkpoints/ and model/.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rlhf_core.config import RunConfig
from rlhf_core.credentials import masked
from rlhf_core.environment import LAUNCHER
from rlhf_core.errors import UserError
from rlhf_core.inputs import path_of
from rlhf_core.outputs import claim, keep_lines, write_whole
from rlhf_core.training import checkpoint, manifest
from rlhf_core.ui.text import shown

if TYPE_CHECKING:
    from rlhf_core.training.run import Run

log = logging.getLogger("rlhf")
LOGS = ("metrics.jsonl", "samples.jsonl", "reward_errors.jsonl", "evaluations.jsonl", "diagnoses.jsonl")
STOP = "stop"  # while this file is in a run's folder, the run stops with a checkpoint
SMALLER = "smaller.json"  # the settings that a run which is out of memory is to be started again with
STOPPED = ".stopped"  # made by the first process of a run that had to stop
FOLDERS = ("tensorboard", "checkpoints", "model")
WRITTEN = (
    *("config.yaml", manifest.FILE, *LOGS, *(f"{name}.damaged" for name in LOGS), "evaluation.json"),
    *("report.html", "run.log", "trackers.json", *FOLDERS, STOP, SMALLER, STOPPED),
)


@contextmanager
def claimed(config: RunConfig, resume: bool) -> Iterator[Path]:
    """The folder of the run, runs/NAME or runs/METHOD-TIME where none was given, kept from other processes until the
    run ends.

    One that a run did not begin in is removed again. Raises `UserError` for a folder that a new run would write over.
    """
    if config.output_dir == "":
        raise UserError("--output-dir is empty: leave it out for a folder under runs/, or write . for this folder")
    flag = "--name" if config.output_dir is None and config.name else "--output-dir"
    named = config.output_dir is not None or config.name is not None
    default = Path("runs") / (config.name or f"{config.method}-{time.strftime('%Y%m%d-%H%M%S')}")
    folder = path_of(config.output_dir, "--output-dir") if config.output_dir else default
    owned = LAUNCHER in os.environ or int(os.environ.get("RANK", config.machine_rank)) > 0  # by another process
    with nullcontext(folder) if owned else claim(folder, flag, rename=not named) as folder:
        if not resume and not owned:
            _refuse(folder, flag)
        if resume:
            _check_kinds(folder)
        config.output_dir = str(folder)
        yield folder


def _refuse(folder: Path, flag: str) -> None:
    """Raise `UserError` if there is something that a run would write over."""
    there = [name for name in WRITTEN if os.path.lexists(folder / name) and not _is_empty(folder / name)]
    if "config.yaml" in there and any((folder / name).exists() for name in ("checkpoints", manifest.FILE)):
        raise UserError(
            f"{flag} {folder} holds a run already. Resume it: rlhf run --resume {folder}. For another run, give "
            f"another {flag}."
        )
    if there:
        raise UserError(
            f"{flag} {folder} has files that a run would write over: {', '.join(there)}. Give another folder, or "
            "move them away"
        )


def _check_kinds(folder: Path) -> None:
    """Raise `UserError` for folders in the place of files that a resumed run writes, and files in that of folders."""
    for file in (folder / name for name in WRITTEN if name not in FOLDERS):
        if file.exists() and not file.is_file():
            raise UserError(f"{file} is no file, and the run needs one of that name: move it away")
    for path in (folder / "tensorboard", folder / "model", folder / "checkpoints" / checkpoint.WRITING):
        if os.path.lexists(path) and not path.is_dir():
            raise UserError(f"{path} is no folder, and the run needs one of that name: move it away")


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def discard(folder: Path) -> None:
    """Remove what a run wrote that failed in its first step: there is nothing to resume, and the command, corrected, is
    to be accepted. Not where it is started again with a smaller batch.
    """
    if (folder / SMALLER).exists():
        return
    for name in WRITTEN:
        shutil.rmtree(folder / name, ignore_errors=True)
        with suppress(OSError):
            (folder / name).unlink()


def remove_stop_file(folder: Path, say: Callable[[str], None]) -> None:
    """Remove a file `stop` from before, and say so: it would end the run after its first step."""
    if (folder / STOP).exists():
        say(f"{folder / STOP} was left from before, and would stop the run after its first step: it is removed.")
        (folder / STOP).unlink()


def begin(run: Run, plugins: Sequence[str]) -> None:
    """Write config.yaml and manifest.json, which checkpoints hold as well, and remove what a stopped run wrote after
    its checkpoint: a resumed run writes it again.
    """
    steps = checkpoint.step(run.resume_from) if run.resume_from else -1
    (run.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    shutil.rmtree(run.folder / "checkpoints" / checkpoint.WRITING, ignore_errors=True)
    if run.resume_from:
        checkpoint.set_aside_after(run.folder / "checkpoints", steps)
    (run.folder / STOPPED).unlink(missing_ok=True)
    made_of = run.resumed.manifest or manifest.describe(run, plugins)
    run.described = {"config": {**run.config.to_dict(), **run.resumed.written}, "manifest": made_of}
    (run.folder / "run.log").touch()
    config = yaml.safe_dump(run.described["config"], sort_keys=False, allow_unicode=True)
    write_whole(run.folder / "config.yaml", config, private=True)
    text = json.dumps(run.described["manifest"], indent=2, ensure_ascii=False) + "\n"
    write_whole(run.folder / manifest.FILE, text, private=True)
    for name in LOGS:
        file = run.folder / name
        if damaged := keep_lines(file, lambda line: _is_before(line, steps)):
            log.warning("%s: %s damaged lines are set aside in %s.damaged", file, f"{damaged:,}", file)


def _is_before(line: Mapping[str, Any], steps: int) -> bool | None:
    """Whether a line of a log was written up to a checkpoint; None if it does not say when."""
    step = line.get("step")
    return None if isinstance(step, bool) or not isinstance(step, int | float) else step <= steps


def tensorboard_folder(folder: Path) -> Path:
    """Where TensorBoard's events of the run in `folder` are."""
    return Path(os.environ.get("TENSORBOARD_LOGGING_DIR") or folder / "tensorboard").expanduser()


def first_to_stop(folder: Path) -> bool:
    """Whether this process is the first of the run's that asks: that one tells why the run stopped."""
    try:
        (folder / STOPPED).touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # a full disk
        return True
    return True


def finish_model(run: Run) -> None:
    """Write the tokenizer and a model card beside the saved weights. Left out are the reference's adapter, and the
    trainer's arguments, a pickle that nothing needs.
    """
    from transformers.trainer import TRAINING_ARGS_NAME

    from rlhf_core.models.adapters import uses_lora
    from rlhf_core.models.multimodal import copy_processor
    from rlhf_core.models.reference import REFERENCE_ADAPTER

    config = run.config
    (run.folder / "model" / TRAINING_ARGS_NAME).unlink(missing_ok=True)
    shutil.rmtree(run.folder / "model" / REFERENCE_ADAPTER, ignore_errors=True)
    run.tokenizer.save_pretrained(run.folder / "model")
    if not uses_lora(run.options, run.info):
        copy_processor(run.info.path, run.folder / "model")
    rewards = "".join(f"\n- reward: `{spec}`" for spec in config.reward_specs)
    data = ", ".join(str(spec) for spec in config.data_specs)
    card = (
        f"---\nlibrary_name: transformers\ntags: [rlhf, {config.method}]\n---\n\n# {run.folder.name}\n\n"
        f"Trained with rlhf-core.\n\n- method: `{config.method}`\n- model: `{config.model}`\n"
        f"- data: `{data}` ({len(run.train_rows)} rows){rewards}\n"
    )
    write_whole(run.folder / "model" / "README.md", shown(card))


class _Shown(logging.Handler):
    """Passes warnings on to the screen, and notes that are marked as such: `extra={"shown": True}`."""

    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self.show = show

    def emit(self, record: logging.LogRecord) -> None:
        warns = record.levelno >= logging.WARNING
        if warns or "shown" in vars(record):
            self.show(f"{'Warning: ' if warns else ''}{masked(record.getMessage())}")


class _Lines(logging.Formatter):
    """Log lines without control characters and secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return masked(shown(super().format(record)))


@contextmanager
def shown_warnings(show: Callable[[str], None]) -> Iterator[None]:
    """Show our own warnings: a run says what it ignores."""
    ours, shown = logging.getLogger("rlhf"), _Shown(show)
    ours.addHandler(shown)
    try:
        yield
    finally:
        ours.removeHandler(shown)


class _LogFile(logging.FileHandler):
    """Writes run.log once the run has begun; until then records wait. A full disk is told by what else is written."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "run.log", encoding="utf-8", errors="backslashreplace", delay=True)
        self.setFormatter(_Lines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.folder = folder
        self.waiting: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.waiting.append(record)
        if (self.folder / "config.yaml").exists():
            waiting, self.waiting = self.waiting, []
            for each in waiting:
                super().emit(each)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


@contextmanager
def log_file(folder: Path, show: Callable[[str], None]) -> Iterator[None]:
    """Send what the libraries log, and Python's warnings, to run.log instead of the screen. Our own warnings go to
    both.
    """
    import datasets
    from transformers.utils import logging as transformers_logging

    handler = _LogFile(folder)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with shown_warnings(show):
            yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()
