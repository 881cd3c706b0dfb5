"""What a stage was made of, and how far it is: a fingerprint beside what it wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_core.errors import UserError
from rlhf_core.pipeline.plan import FEEDS, Stage, python_file
from rlhf_core.training.run_folder import write_atomically


def fingerprint(stage: Stage, marks: Mapping[str, str]) -> str:
    """SHA-256 over the stage's keys, the stages it uses by their `marks`, and the local files it reads."""
    content = {
        "values": stage.values,
        "stages": {key: marks[name] for key, name in stage.feeds.items()},
        "files": _files(stage),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _files(stage: Stage) -> dict[str, list[Any]]:
    """Local files by what they hold; those of a model, which are large, by size and time."""
    config = stage.config
    read = [Path(spec.source) for spec in [*config.data_specs, *config.eval_specs]]
    read += [file for spec in config.reward_specs if (file := python_file(spec.target))]
    read += [Path(config.chat_template)] if config.chat_template else []
    models = [Path(str(stage.values[key])) for key in FEEDS if stage.values.get(key) and key not in stage.feeds]
    found: dict[str, list[Any]] = {}
    for path in read:
        found |= {str(file): [_sha256(file)] for file in _each(path)}
    for path in models:
        found |= {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in _each(path)}
    return found


def _each(path: Path) -> list[Path]:
    path = path.expanduser()
    return [file for file in sorted(path.rglob("*")) if file.is_file()] if path.is_dir() else [path] * path.is_file()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def recorded(folder: Path) -> dict[str, Any]:
    """stage.json, empty where there is none."""
    file = folder / "stage.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def record(folder: Path, mark: str, *, finished: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "stage.json", json.dumps({"fingerprint": mark, "finished": finished}))


def is_finished(stage: Stage) -> bool:
    return bool(recorded(stage.folder).get("finished")) and stage.model.is_dir()


def state(stage: Stage, mark: str) -> str:
    """`new`, `changed`, or unchanged and `finished` or `interrupted`. Raises `UserError` for other files."""
    found = recorded(stage.folder)
    if not found and stage.folder.exists() and (stage.folder.is_file() or any(stage.folder.iterdir())):
        raise UserError(f"{stage.folder} exists and is no stage of a pipeline: choose another --output-dir")
    if not (stage.folder / "config.yaml").is_file():  # nothing was trained
        return "new"
    if found["fingerprint"] != mark:
        return "changed"
    return "finished" if is_finished(stage) else "interrupted"


def set_aside(folder: Path) -> Path:
    """Rename a folder to NAME.old-N with the next free number."""
    number = 1
    while (old := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    return folder.rename(old)
