"""What is wrong with a run that is there: its folder, or the trainer_state.json of another trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf_core.config import read_file
from rlhf_core.diagnoses import catalog, reading
from rlhf_core.errors import UserError
from rlhf_core.inputs import parse_json, path_of, read_text
from rlhf_core.outputs import read_lines

FILE = "diagnoses.jsonl"
STATE = "trainer_state.json"
LARGEST = 1 << 30  # bytes of such a file, which is read whole
LOGS = ("metrics.jsonl", "samples.jsonl", "evaluations.jsonl")


def diagnose(given: str) -> tuple[reading.Summary, list[dict[str, Any]]]:
    """(summary, the lines of what is found) of a run's folder, a trainer_state.json, or a folder that holds one.

    Raises `UserError` for anything else.
    """
    path = path_of(given, "RUN")
    if not path.exists():
        raise UserError(f"RUN {path}: there is no such file or folder")
    if path.is_dir() and (path / LOGS[0]).is_file():
        return _run(path)
    return _trainer_state(_state_in(path) if path.is_dir() else path)


def _run(folder: Path) -> tuple[reading.Summary, list[dict[str, Any]]]:
    summary, data = of_run(folder)
    found: list[dict[str, Any]] = []
    metrics, samples, evaluations = (read_lines(folder / name) for name in LOGS)
    catalog.replay(summary, metrics, samples, evaluations, found.append, where=str(folder), data=data)
    if not summary.lines:
        raise UserError(f"RUN {folder}: its metrics.jsonl has no line of training yet")
    return summary, found


def of_run(folder: Path) -> tuple[reading.Summary, str]:
    """(an empty summary, the run's first source of data) by what its folder says of it."""
    config = read_file(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
    manifest: Any = {}
    if (folder / "manifest.json").is_file():
        manifest = parse_json(read_text(folder / "manifest.json", "RUN"), str(folder / "manifest.json"))
    data = config.get("data")
    first = data[0] if isinstance(data, list) and data else data
    source = first.get("path", "") if isinstance(first, dict) else str(first or "")
    return reading.of_config(config, manifest if isinstance(manifest, dict) else {}), source


def _state_in(folder: Path) -> Path:
    """The trainer's state in a folder, or in the newest of its checkpoints."""
    found = [file for file in (folder / STATE, *folder.glob(f"checkpoint-*/{STATE}")) if file.is_file()]
    if not found:
        raise UserError(
            f"RUN {folder}: it has neither metrics.jsonl, as a run's folder, nor {STATE}, as the checkpoints of other "
            "trainers"
        )
    return found[0] if found[0].parent == folder else max(found, key=_steps_of)


def _steps_of(file: Path) -> int:
    number = file.parent.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _trainer_state(file: Path) -> tuple[reading.Summary, list[dict[str, Any]]]:
    content = parse_json(read_text(file, "RUN", LARGEST), f"RUN {file}")
    if not isinstance(content, dict) or not isinstance(content.get("log_history"), list):
        raise UserError(f"RUN {file}: it has no log_history, so it is no {STATE}")
    steps = content.get("max_steps")
    summary = reading.Summary(max_steps=steps if isinstance(steps, int) and steps > 0 else None)
    found: list[dict[str, Any]] = []
    catalog.replay(summary, reading.trainer_state(content), iter(()), iter(()), found.append, where=str(file.parent))
    if not summary.lines:
        raise UserError(f"RUN {file}: its log_history has no line of training")
    return summary, found


def said_of(folder: Path) -> list[str]:
    """The names in a run's diagnoses.jsonl."""
    return [str(line.get("name")) for line in read_lines(folder / FILE)]


def as_line(found: dict[str, Any]) -> str:
    return json.dumps(found, ensure_ascii=False) + "\n"
