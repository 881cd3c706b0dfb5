"""Checkpoints on disk: which there are, and whether each file of one is still what the run wrote.

`checkpoint.json`, in each, holds the step, the size and SHA-256 of every other file, and what the run was made of then.
A checkpoint is used only if all of it fits: a damaged one is said, and the one before it is taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from rlhf_core.errors import UserError
from rlhf_core.inputs import parse_json, read_text
from rlhf_core.models.checkpoints import list_checkpoints as list_checkpoints
from rlhf_core.models.checkpoints import step as step
from rlhf_core.outputs import write_whole

WRITING = ".writing"  # the folder in checkpoints/ for one that is not complete yet
RECORD = "checkpoint.json"
PART = 1 << 26  # bytes with a hash of their own, so that threads share a large file
THREADS = 8
LIMIT = 1 << 26  # bytes of a record
READ = (".bin", ".distcp", ".json", ".pt", ".pth", ".safetensors")  # names that a trainer or a model might read
UNRECORDED = f"it has no {RECORD}: that was deleted, or an earlier version wrote it"


def copies(folder: Path) -> str:
    """Where the configuration of the run in `folder` can be found again, if config.yaml is lost."""
    records = [each / RECORD for each in list_checkpoints(folder / "checkpoints")]
    found = [file for file in records if os.access(file, os.R_OK)]  # a run is its owner's alone to read
    return f' What the run wrote there is in {found[-1]}, under "config" (JSON is YAML, too)' if found else ""


def newest_whole(folder: Path, say: Callable[[str], None], allowed: Collection[str] = ()) -> Path | None:
    """The newest checkpoint of the run in `folder` whose files are what was written; None if it has no checkpoint.

    Says which newer ones are damaged. With "checkpoint" among `allowed`, one without a record is taken, too. Raises
    `UserError` if none is whole.
    """
    checkpoints = folder / "checkpoints"
    if os.path.lexists(checkpoints) and not checkpoints.is_dir():
        raise UserError(f"{checkpoints} is no folder: the run's checkpoints are not there")
    damaged: list[str] = []
    for checkpoint in reversed(list_checkpoints(checkpoints)):
        problem = damage(checkpoint)
        if problem == UNRECORDED and "checkpoint" in allowed:
            problem = ""
        if not problem:
            if damaged:
                say(f"Going on from {checkpoint.name}; what is damaged is kept under another name.")
            return checkpoint
        damaged.append(f"{checkpoint.name} ({problem})")
        say(f"Warning: {checkpoint} is damaged: {problem}.")
    if damaged:
        advice = " To take the newest although its files can't be checked: --allow-changed checkpoint."
        advice *= any(UNRECORDED in text for text in damaged)
        raise UserError(
            f"no checkpoint of {folder} is whole: {'; '.join(damaged)}.{advice} "
            f"To begin this run from its start, move {checkpoints} away"
        )
    if (folder / "model").exists():
        raise UserError(
            f"{folder} has the model of a finished run and no checkpoint to go on from. Train the model further in "
            f"another run: --model {folder / 'model'}"
        )
    return None


def seal(checkpoint: Path, steps: int, described: Mapping[str, Any]) -> None:
    """Write the record of a checkpoint whose other files are complete. `described`: what the run is made of."""
    sizes = {name: file.stat().st_size for name, file in _files(checkpoint)}
    hashes = _hash(checkpoint, sizes)
    files = {name: {"bytes": size, "sha256": hashes[name]} for name, size in sizes.items()}
    values = json.loads(json.dumps({"step": steps, "files": files, **described}))
    text = json.dumps({"sha256": _digest_of(values), **values}, indent=1)
    write_whole(checkpoint / RECORD, text, private=True)


def record(checkpoint: Path) -> dict[str, Any]:
    """What `seal` wrote. Raises `UserError` if it is not that."""
    values = parse_json(read_text(checkpoint / RECORD, limit=LIMIT), str(checkpoint / RECORD))
    try:
        _Record.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{RECORD} is not what was written") from error
    if values.pop("sha256") != _digest_of(values):
        raise UserError(f"{RECORD} is not what was written")
    return values


class _File(BaseModel, strict=True):
    bytes: int
    sha256: list[str]


class _Record(BaseModel, strict=True):
    sha256: str
    step: int
    files: dict[str, _File]
    config: dict[str, Any] = {}


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint; an empty string if each file is what was written."""
    try:
        if not checkpoint.is_dir():
            return "it is no folder"
        if not os.path.lexists(checkpoint / RECORD):
            return UNRECORDED
        values = record(checkpoint)
        if values["step"] != step(checkpoint):
            return f"it holds step {values['step']}, so it was renamed"
        for name, written in values["files"].items():
            if problem := _differs(checkpoint / name, name, written["bytes"]):
                return problem
        for name, file in _files(checkpoint):
            if name not in values["files"] and file.suffix in READ:
                return f"{name} was added to it"
        hashes = _hash(checkpoint, {name: written["bytes"] for name, written in values["files"].items()})
    except UserError as error:
        return str(error).replace(f"{checkpoint}/", "")
    except OSError as error:
        return f"{Path(str(error.filename or checkpoint)).name} can't be read ({error.strerror})"
    changed = [name for name, parts in hashes.items() if parts != values["files"][name]["sha256"]]
    return f"the content of {', '.join(changed)} is not what was written" if changed else ""


def discard(path: Path) -> None:
    """Remove a checkpoint, or what has its name: moved away first, so that half of it is never found."""
    if os.path.lexists(path):
        deleted = path.parent / WRITING / f"old-{path.name}"
        os.replace(path, deleted)
        if deleted.is_dir() and not deleted.is_symlink():
            shutil.rmtree(deleted, ignore_errors=True)
        else:
            deleted.unlink()


def set_aside_after(folder: Path, steps: int) -> None:
    """Rename the checkpoints after `steps`, which are damaged: the run will write its own."""
    for checkpoint in list_checkpoints(folder):
        if step(checkpoint) > steps:
            number = 1
            while os.path.lexists(kept := checkpoint.with_name(f"damaged-{number}-{checkpoint.name}")):
                number += 1
            os.replace(checkpoint, kept)


def _differs(file: Path, name: str, size: int) -> str:
    """Why a file can't be what was written, by what its folder says of it."""
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return f"{name} is missing"
    if not stat.S_ISREG(found.st_mode):
        return f"{name} is no file"
    return f"{name} has {found.st_size:,} bytes and had {size:,}" if found.st_size != size else ""


def _files(checkpoint: Path) -> Iterator[tuple[str, Path]]:
    """(path within the checkpoint, file) of all but the record."""
    for file in sorted(checkpoint.rglob("*")):
        if not file.is_dir() and file != checkpoint / RECORD:
            yield file.relative_to(checkpoint).as_posix(), file


def _hash(checkpoint: Path, sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """The SHA-256 of every `PART` bytes of each file."""
    parts = [(name, start) for name, size in sizes.items() for start in range(0, max(size, 1), PART)]
    threads = max(1, min(THREADS, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    with ThreadPoolExecutor(threads) as pool:
        digests = list(pool.map(lambda part: _hash_part(checkpoint / part[0], part[1]), parts))
    found: dict[str, list[str]] = {name: [] for name in sizes}
    for (name, _), digest in zip(parts, digests, strict=True):
        found[name].append(digest)
    return found


def _hash_part(file: Path, start: int) -> str:
    digest, left = hashlib.sha256(), PART
    with file.open("rb", buffering=0) as stream:
        stream.seek(start)
        while left > 0 and (data := stream.read(min(1 << 20, left))):
            digest.update(data)
            left -= len(data)
    return digest.hexdigest()


def _digest_of(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
