"""What the commands write, and read again: small files whole, and JSON lines one after the other."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

LONGEST_LINE = 1 << 26  # bytes; what has no line break for longer is no log


def write_whole(path: Path, text: str, private: bool = False) -> None:
    """Write a file that nobody ever sees half written: not if the process is killed, nor if the disk is full.

    `private`: only its owner can read it. Half of a character (a lone surrogate), which UTF-8 can't hold, is written as
    its escape in JSON. Raises `OSError`.
    """
    temporary = path.with_name(f".writing-{secrets.token_hex(8)}")  # a process id is the same in every container
    mode = 0o600 if private else 0o666
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, one at a time, without lines that hold none."""
    return (value for _, value in _lines(path) if value is not None)


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool | None]) -> int:
    """Rewrite a file of JSON lines, or begin one, with the lines whose objects are to be kept, as they were written.

    A line that holds no object, or for which `keep` returns None, is added to NAME.damaged; returns their number. Half
    a line at the end, which a killed process leaves, is dropped.
    """
    damaged, aside = 0, path.with_name(path.name + ".damaged")
    temporary = path.with_name(f".writing-{secrets.token_hex(8)}")
    try:
        with temporary.open("wb") as kept:
            for line, value in _lines(path) if path.exists() else ():
                decided = None if value is None else keep(value)
                if decided:
                    kept.write(line.rstrip(b"\n") + b"\n")
                elif decided is None and line.strip() and not (value is None and _is_cut(line)):
                    damaged += 1
                    with aside.open("ab") as stream:
                        stream.write(line + b"\n" * _is_cut(line))
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    return damaged


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """(line, the object that it holds or None). JSON lines end at a line feed alone: texts may hold other breaks."""
    with path.open("rb") as stream:
        within = False
        while line := stream.readline(LONGEST_LINE):
            ends = line.endswith(b"\n") or _is_cut(line)
            yield line, _object(line) if ends and not within else None
            within = not ends


def _is_cut(line: bytes) -> bool:
    """Whether the file ends here without a line feed."""
    return not line.endswith(b"\n") and len(line) < LONGEST_LINE


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
