"""What a long command has done so far, in a file that it adds to: a line for each batch of prompts, on the disk before
the next one begins. A second start goes on after the last whole line.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_core import UserError
from rlhf_core.commands import write_whole


class Journal:
    """`lines` are those of earlier starts and of this one. A line has `start`, the number of its first prompt, and
    `count`; half a line at the end, as a killed process leaves it, is cut off.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.lines: list[dict[str, Any]] = []
        self.prompts = 0  # that are done
        whole = 0
        for line, size in _whole_lines(file):
            if line.get("start") != self.prompts or not isinstance(line.get("count"), int):
                raise UserError(f"{file} is damaged after prompt {self.prompts:,}: remove it, and what it has is lost")
            self.lines.append(line)
            self.prompts += line["count"]
            whole += size
        if file.exists() and file.stat().st_size > whole:
            os.truncate(file, whole)

    def add(self, count: int, **values: Any) -> None:
        """Write a batch of the next `count` prompts, and wait until the disk has it. Raises `OSError`."""
        line = {"start": self.prompts, "count": count, **values}
        data = (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
        with self.file.open("ab", buffering=0) as stream:
            if stream.write(data) < len(data):  # the disk is full; the half line is cut off by the next start
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.file))
            os.fsync(stream.fileno())
        self.lines.append(json.loads(data.decode("utf-8", "surrogatepass")))
        self.prompts += count


def _whole_lines(file: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """(a line's object, its bytes), up to the first that is none at the end of the file."""
    if not file.exists():
        return
    with file.open("rb") as stream:
        for line in stream:
            try:
                value = json.loads(line.decode("utf-8", "surrogatepass"))
            except ValueError:
                value = None
            if not line.endswith(b"\n") or not isinstance(value, dict):
                if stream.read(1):
                    raise UserError(f"{file} is damaged: remove it, and what it has is lost")
                return
            yield value, len(line)


def same_settings(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether `folder` was begun before, with the same settings; else they are written down. Raises `UserError` that
    names those that differ.
    """
    file = folder / "settings.json"
    now = json.loads(json.dumps(settings, default=str))
    if not file.exists():
        write_whole(file, json.dumps(now, ensure_ascii=False, indent=1))
        return False
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} can't be read: remove {folder}, and what it has is lost") from error
    differ = "; ".join(
        f"{name}: {_short(before.get(name))}, now {_short(now.get(name))}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    )
    if differ:
        raise UserError(
            f"{folder} was begun with other settings ({differ}). Give them as before to go on, or another --output, or "
            f"remove {folder}"
        )
    return True


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:299]}…"
