"""manifest.json: what a run is made of, so that it can be understood, repeated, and resumed from wherever it is.

Of each file and folder that the user named it has the place and a digest of sizes and samples. A run that was moved or
copied, or is resumed from another folder, finds them by these: where they were, at the same place seen from the run's
folder, or at the same place seen from the current folder.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from rlhf_core.by_path import files_of
from rlhf_core.credentials import masked
from rlhf_core.data.stored import View
from rlhf_core.errors import UserError
from rlhf_core.grammar import DataSpec, RewardSpec
from rlhf_core.inputs import parse_json, read_text
from rlhf_core.models.checkpoints import find_named
from rlhf_core.outputs import write_whole
from rlhf_core.training import checkpoint

if TYPE_CHECKING:
    from rlhf_core.training.run import Run

FILE = "manifest.json"
LIBRARIES = ("rlhf-core", "torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes")
SAMPLES, SAMPLE = 64, 1 << 14  # of a file, and bytes of each: other weights differ nearly everywhere
MODEL = (*checkpoint.READ, ".jinja", ".model", ".py", ".txt")  # names of a model's files
PATHS = ("model", "reward_model", "chat_template")  # options that may name a file or a folder
MOVED = (*PATHS, "data", "eval_data", "formatter", "reward")  # options that `located` may change


def describe(run: Run, plugins: Sequence[str]) -> dict[str, Any]:
    """What the run is made of, now."""
    return {
        "command": masked(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions(),
        "plugins": list(plugins),
        "data": describe_data(run),
        "files": {text: {"of": of, **_file(text)} for text, of in _named(run).items()},
        "rewards": {r.name: dict(r.reward.describe(r.function)) for r in run.rewards.rewards if r.reward.describe},
        "folder": str(run.folder.resolve()),
        "trust_remote_code": run.config.trust_remote_code,
        "seed": run.options.seed,
        "git_commit": _git_commit(),
    }


def note(folder: Path, **values: Any) -> None:
    """Add what became known at the end to a run's manifest."""
    file = folder / FILE
    written = {**json.loads(file.read_text(encoding="utf-8")), **values}
    write_whole(file, json.dumps(written, indent=2, ensure_ascii=False) + "\n", private=True)


def read(folder: Path) -> dict[str, Any]:
    """The manifest of the run in `folder`: from its newest checkpoint where the file is damaged; empty without both."""
    with suppress(UserError):
        if values := checked(parse_json(read_text(folder / FILE, limit=checkpoint.LIMIT), FILE)):
            return values
    for found in reversed(checkpoint.list_checkpoints(folder / "checkpoints")):
        with suppress(UserError, OSError):
            return checked(checkpoint.record(found).get("manifest"))
    return {}


class _File(BaseModel, strict=True):
    of: str
    path: str
    sha256: str


class _Data(BaseModel, strict=True):
    rows: int = 0
    held_out: int = 0


class _Manifest(BaseModel, strict=True):
    """What is read of a manifest, of which an earlier version may have written less."""

    data: _Data = _Data()
    files: dict[str, _File] = {}
    versions: dict[str, str] = {}
    plugins: list[str] = []
    folder: str = ""
    changed: list[Any] = []


def checked(values: Any) -> dict[str, Any]:
    """`values` if they can be read as a manifest; empty if not."""
    try:
        _Manifest.model_validate(values)
    except ValidationError:
        return {}
    return values


def located(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The run's configuration `values` with each file where it is now; as they are for one that is in its place."""
    manifest = read(folder)
    files, was = manifest.get("files", {}), manifest.get("folder", "")

    def find(text: str) -> str:
        known = files.get(text)
        if not isinstance(known, dict):
            return text
        path = Path(str(known.get("path")))
        beside = Path(os.path.normpath(folder.resolve() / os.path.relpath(path, was)))
        here = Path(text).expanduser()
        existing = [place for place in (path, beside, here) if place.exists()]
        same = [place for place in existing if digest(place) == known.get("sha256")]
        best = next(iter([*same, *existing]), here)
        return text if best == Path(os.path.abspath(here)) else str(best)

    found = dict(values)
    for name in PATHS:
        if isinstance(found.get(name), str):
            found[name] = find(found[name])
    for name, move in (("data", _move_data), ("eval_data", _move_data), ("reward", _move_reward)):
        if isinstance(found.get(name), list):
            found[name] = [move(entry, find) for entry in found[name]]
    if isinstance(found.get("formatter"), str):
        found["formatter"] = _move_target(found["formatter"], find)
    return found


def _move_data(entry: Any, find: Callable[[str], str]) -> Any:
    spec = DataSpec.read(entry)
    moved = replace(spec, source=find(spec.source), formatter=spec.formatter and _move_target(spec.formatter, find))
    return entry if moved == spec else str(moved)


def _move_reward(entry: Any, find: Callable[[str], str]) -> Any:
    spec = RewardSpec.read(entry)
    target = _move_target(spec.target, find)
    parameters = {key: find(value) if isinstance(value, str) else value for key, value in spec.parameters.items()}
    moved = replace(spec, target=target, parameters=parameters)
    return entry if moved == spec else str(moved)


def _move_target(target: str, find: Callable[[str], str]) -> str:
    file = python_file(target)
    return find(file) + target.removeprefix(file) if file else target


def python_file(target: str) -> str:
    """The file of a reward or a formatter given as ./file.py:function; an empty string for another."""
    start, found, _ = f"{target}:".partition(".py:")
    return start + ".py" if found else ""


def _named(run: Run) -> dict[str, str]:
    """Files and folders on this machine that the user named, as they were written, and what each is part of."""
    config = run.config
    specs = [*config.data_specs, *config.eval_specs]
    texts = {str(spec.source): "data" for spec in specs}
    for file in {python_file(spec.formatter or "") for spec in specs} - {""}:
        texts |= dict.fromkeys([file, *map(str, files_of(Path(file).expanduser())[1:])], "data")
    texts |= {text: "reward" for spec in config.reward_specs for text in of_reward(spec)}
    models = [run.info.path, run.info.adapter, *(getattr(config, name) for name in PATHS)]
    texts |= {text: "model" for text in models if text}
    return {text: of for text, of in texts.items() if _exists(text)}


def of_reward(spec: RewardSpec) -> list[str]:
    """The texts of a reward that may name files: its own, those that it imports from its folder, its parameters."""
    file = python_file(spec.target)
    values = [file, *map(str, files_of(Path(file).expanduser())[1:] if file else ()), *spec.parameters.values()]
    return [value for value in values if isinstance(value, str) and value]


def contents(texts: Iterable[str]) -> list[str]:
    """The digests of those that name something here."""
    return [_file(text)["sha256"] for text in texts if _exists(text)]


def _exists(text: str) -> bool:
    with suppress(OSError, ValueError, RuntimeError, UserError):  # too long, or no name at all
        return _place(text).exists()
    return False


def _place(text: str) -> Path:
    """The file or folder that a text names, also by RUN@STEP."""
    return find_named(text, text) or Path(text).expanduser()


def _file(text: str) -> dict[str, str]:
    path = Path(os.path.abspath(_place(text)))
    return {"path": str(path), "sha256": digest(path)}


def digest(path: Path) -> str:
    """SHA-256 over size and `SAMPLES` samples of a file, or of each file in a folder that a model is read from; of a
    run, over its model.
    """
    path = path / "model" if (path / "model").is_dir() else path
    found = hashlib.sha256()
    for file in sorted(path.glob("*")) if path.is_dir() else [path]:
        if not file.is_file() or (file != path and file.suffix not in MODEL):
            continue
        size, name = file.stat().st_size, "" if file == path else file.name
        found.update(f"{name} {size}\n".encode("utf-8", "surrogateescape"))
        with file.open("rb") as stream:
            for start in range(0, size, max(SAMPLE, size // SAMPLES)):
                stream.seek(start)
                found.update(stream.read(SAMPLE))
    return found.hexdigest()


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
        "sha256": fingerprint(run.plan.data.rows),
    }


def fingerprint(rows: Iterable[dict[str, Any]]) -> str:
    """SHA-256 over rows in their order, with the columns that rewards get."""
    if isinstance(rows, View):
        return rows.digest()
    found = hashlib.sha256()
    for row in rows:
        found.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"))
    return found.hexdigest()


def _git_commit() -> str | None:
    """The commit of the current folder, if it is a git checkout."""
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
