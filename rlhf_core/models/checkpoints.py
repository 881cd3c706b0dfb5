"""The checkpoints of a run by name: `RUN@120`, `RUN@last`, and `RUN@best` where it keeps its best. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ValidationError

from rlhf_core.errors import UserError
from rlhf_core.inputs import parse_json, path_of, read_text
from rlhf_core.outputs import write_whole

FOLDER, FILE, LIMIT = "checkpoints", "best.json", 1 << 16


class Best(BaseModel, strict=True):
    """The best checkpoint of a run: the step, and the value of the metric there."""

    step: int
    metric: str
    value: float


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name == f"checkpoint-{step(path)}"]
    return sorted(found, key=step)


def step(checkpoint: Path) -> int:
    """The number of optimizer steps before a checkpoint, by its name; -1 for another name."""
    digits = checkpoint.name.removeprefix("checkpoint-")
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 19 else -1


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder has the place of a run's checkpoint: RUN/checkpoints/checkpoint-N."""
    return folder.parent.name == FOLDER and step(folder) >= 0


def write_best(folder: Path, best: Best | None) -> None:
    """Say in a run's folder of checkpoints which is its best; None: there is none."""
    if best is None:
        (folder / FILE).unlink(missing_ok=True)
    else:
        write_whole(folder / FILE, best.model_dump_json() + "\n")


def read_best(folder: Path) -> Best | None:
    """What `write_best` wrote, if that checkpoint is there. Raises `UserError` if it is not that."""
    file = folder / FILE
    if not file.exists():
        return None
    try:
        best = Best.model_validate(parse_json(read_text(file, limit=LIMIT), str(file)))
    except ValidationError as error:
        raise UserError(f"{file} is not what a run wrote: give the step, as RUN@STEP") from error
    return best if (folder / f"checkpoint-{best.step}").is_dir() else None


def find_named(given: str, called: str) -> Path | None:
    """The folder of RUN@STEP, RUN@best or RUN@last; None for other text, and for a folder of that name.

    Raises `UserError` for a checkpoint that is not there, with those that are.
    """
    text, at, name = given.rpartition("@")
    if not at or not text or path_of(given, called).exists() or not path_of(text, called).is_dir():
        return None
    folder = path_of(text, called) / FOLDER
    found = list_checkpoints(folder)
    if not found:
        raise UserError(f"{called}: {text} has no checkpoints")
    best = read_best(folder)
    named = {str(step(path)): path for path in found} | {"last": found[-1]}
    if best is not None:
        named["best"] = folder / f"checkpoint-{best.step}"
    if name not in named:
        why = ". Its run kept no best one (--keep-best METRIC)" if name == "best" else ""
        raise UserError(f"{called}: there is no such checkpoint{why}. There are {', '.join(f'@{n}' for n in named)}")
    return named[name]
