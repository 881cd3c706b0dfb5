"""A run's folder: where it is, what is written to it, and what a resumed run keeps.

config.yaml, manifest.json, metrics.jsonl, samples.jsonl, reward_errors.jsonl, evaluation.json, run.log, tensorboard/,
checkpoints/ and model/.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rlhf_core.config import RunConfig
from rlhf_core.credentials import masked
from rlhf_core.errors import UserError
from rlhf_core.outputs import keep_lines, write_whole
from rlhf_core.training import checkpoint, manifest
from rlhf_core.ui.text import shown

if TYPE_CHECKING:
    from rlhf_core.training.run import Run

log = logging.getLogger("rlhf")
LOGS = ("metrics.jsonl", "samples.jsonl", "reward_errors.jsonl")
STOP = "stop"  # while this file is in a run's folder, the run stops with a checkpoint
STOPPED = ".stopped"  # made by the first process of a run that had to stop


def choose(config: RunConfig, resume: bool) -> Path:
    """The folder of the run, runs/METHOD-TIME where none was given. Raises `UserError` if it holds another run."""
    if config.output_dir is None:
        config.output_dir = str(Path("runs") / f"{config.method}-{time.strftime('%Y%m%d-%H%M%S')}")
    folder = Path(config.output_dir)
    if not resume and (folder / "config.yaml").exists():
        raise UserError(
            f"--output-dir {folder} holds a run already. Resume it: rlhf run --resume {folder}. For another run, give "
            "another --output-dir."
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output-dir {folder} is a file")
    for file in (folder / name for name in (*LOGS, "run.log", "evaluation.json", manifest.FILE, STOP) if resume):
        if file.exists() and not file.is_file():
            raise UserError(f"{file} is no file, and the run needs one of that name: move it away")
    for path in (folder / "tensorboard", folder / "checkpoints" / checkpoint.WRITING):
        if resume and path.exists() and not path.is_dir():
            raise UserError(f"{path} is no folder, and the run needs one of that name: move it away")
    return folder


def remove_stop_file(folder: Path, say: Callable[[str], None]) -> None:
    """Remove a file `stop` from before, and say so: it would end the run after its first step."""
    if (folder / STOP).exists():
        say(f"{folder / STOP} was left from before, and would stop the run after its first step: it is removed.")
        (folder / STOP).unlink()


def prepare(run: Run, plugins: Sequence[str]) -> None:
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


def first_to_stop(folder: Path) -> bool:
    """Whether this process is the first of the run's that asks: that one tells why the run stopped."""
    try:
        (folder / STOPPED).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def finish_model(run: Run) -> None:
    """Write the tokenizer and a model card beside the saved weights. Left out are the reference's adapter, and the
    trainer's arguments, a pickle that nothing needs.
    """
    from transformers.trainer import TRAINING_ARGS_NAME

    from rlhf_core.models.reference import REFERENCE_ADAPTER

    config = run.config
    (run.folder / "model" / TRAINING_ARGS_NAME).unlink(missing_ok=True)
    shutil.rmtree(run.folder / "model" / REFERENCE_ADAPTER, ignore_errors=True)
    run.tokenizer.save_pretrained(run.folder / "model")
    rewards = "".join(f"\n- reward: `{spec}`" for spec in config.reward_specs)
    data = ", ".join(str(spec) for spec in config.data_specs)
    card = (
        f"---\nlibrary_name: transformers\ntags: [rlhf, {config.method}]\n---\n\n# {run.folder.name}\n\n"
        f"Trained with rlhf-core.\n\n- method: `{config.method}`\n- model: `{config.model}`\n"
        f"- data: `{data}` ({len(run.train_rows)} rows){rewards}\n"
    )
    write_whole(run.folder / "model" / "README.md", shown(card))


class _Shown(logging.Handler):
    """Passes warnings on to the screen."""

    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.show = show

    def emit(self, record: logging.LogRecord) -> None:
        self.show(f"Warning: {masked(record.getMessage())}")


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


@contextmanager
def log_file(folder: Path, show: Callable[[str], None]) -> Iterator[None]:
    """Send what the libraries log, and Python's warnings, to run.log instead of the screen. Our own warnings go to
    both.
    """
    import datasets
    from transformers.utils import logging as transformers_logging

    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / "run.log", encoding="utf-8")
    handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
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
