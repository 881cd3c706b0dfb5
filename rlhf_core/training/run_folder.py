"""A run's folder: where it is, what is written to it, and what a resumed run keeps.

config.yaml, manifest.json, metrics.jsonl, samples.jsonl, reward_errors.jsonl, evaluation.json, run.log, tensorboard/,
checkpoints/ and model/.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core.config import RunConfig
from rlhf_core.errors import UserError
from rlhf_core.outputs import write_whole
from rlhf_core.ui.text import shown

if TYPE_CHECKING:
    from rlhf_core.training.run import Run

WRITING = ".writing"  # the folder in checkpoints/ for one that is not complete yet
STOPPED = ".stopped"  # made by the first process of a run that had to stop
LIBRARIES = ("rlhf-core", "torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes")


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
    return folder


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of the run in `folder`; none if it was stopped before its first."""
    return next(reversed(list_checkpoints(folder / "checkpoints")), None)


def prepare(run: Run) -> None:
    """Write config.yaml, and remove what a stopped run wrote after its checkpoint: a resumed run writes it again."""
    (run.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    shutil.rmtree(run.folder / "checkpoints" / WRITING, ignore_errors=True)
    (run.folder / STOPPED).unlink(missing_ok=True)
    write_whole(run.folder / "config.yaml", run.config.to_yaml(), private=True)
    step = int(run.resume_from.name.rpartition("-")[2]) if run.resume_from else -1
    for name in ("metrics.jsonl", "samples.jsonl", "reward_errors.jsonl"):
        file = run.folder / name
        # the last line of a killed run may end within a character
        text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
        write_whole(file, "".join(line for line in text.splitlines(keepends=True) if _step(line) <= step))


def first_to_stop(folder: Path) -> bool:
    """Whether this process is the first of the run's that asks: that one tells why the run stopped."""
    try:
        (folder / STOPPED).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:  # the last line of a killed run
        return float("inf")


def finish_model(run: Run) -> None:
    """Write the tokenizer and a model card beside the saved weights, and leave the reference's adapter out."""
    from rlhf_core.models.reference import REFERENCE_ADAPTER

    config = run.config
    shutil.rmtree(run.folder / "model" / REFERENCE_ADAPTER, ignore_errors=True)
    run.tokenizer.save_pretrained(run.folder / "model")
    rewards = "".join(f"\n- reward: `{spec}`" for spec in config.reward_specs)
    data = ", ".join(str(spec) for spec in config.data_specs)
    card = (
        f"---\nlibrary_name: transformers\ntags: [rlhf, {config.method}]\n---\n\n# {run.folder.name}\n\n"
        f"Trained with rlhf-core.\n\n- method: `{config.method}`\n- model: `{config.model}`\n"
        f"- data: `{data}` ({len(run.train_rows)} rows){rewards}\n"
    )
    write_whole(run.folder / "model" / "README.md", card)


class _Shown(logging.Handler):
    """Passes warnings on to the screen."""

    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.show = show

    def emit(self, record: logging.LogRecord) -> None:
        self.show(f"Warning: {record.getMessage()}")


class _Lines(logging.Formatter):
    """Log lines without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


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


def write_manifest(run: Run, plugins: Sequence[str]) -> None:
    """Write manifest.json: what the run is made with, so that it can be understood and repeated."""
    manifest = {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions(),
        "plugins": list(plugins),
        "data": describe_data(run),
        "seed": run.options.seed,
        "git_commit": _git_commit(),
    }
    write_whole(run.folder / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", private=True)


def versions() -> dict[str, str]:
    """The installed versions of the libraries that a run depends on."""
    found = {}
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def describe_data(run: Run) -> dict[str, Any]:
    """Where the data is from, how many rows are trained on and held out, and the SHA-256 of both."""
    train, held_out = run.plan.data.train, run.held_out
    return {
        "source": [str(spec) for spec in run.config.data_specs],
        "rows": len(train),
        "held_out": len(held_out),
        "sha256": fingerprint([*train, *held_out]),
    }


def fingerprint(rows: Iterable[dict[str, Any]]) -> str:
    """SHA-256 over rows in their order, with the columns that rewards get."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _git_commit() -> str | None:
    """The commit of the current folder, if it is a git checkout."""
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
