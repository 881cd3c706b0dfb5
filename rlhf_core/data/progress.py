"""How much of a source has been read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Protocol


class Progress(Protocol):
    """Is told what is being done, and what `share` of it is done, from 0 to 1, if that is known."""

    def __call__(self, what: str, share: float | None = None) -> None: ...


def silent(what: str, share: float | None = None) -> None:
    """For whom nobody watches."""


class Position:
    """Where the reading of some files is, by their bytes."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.sizes = {path: path.stat().st_size if path.is_file() else 0 for path in files}
        self.before = self.now = 0  # bytes of the files before, and of this one
        self.file: IO[bytes] | None = None

    def opened(self, path: Path, file: IO[bytes]) -> None:
        """`file` is read from now on, and no other."""
        self.before, self.now, self.file = self.before + self.now, self.sizes[path], file

    def share(self) -> float | None:
        """None of what has no bytes here, such as rows of the Hub."""
        total = sum(self.sizes.values())
        if not total or self.file is None:
            return None
        inside = self.now if self.file.closed else self.file.tell()
        return min(1.0, (self.before + inside) / total)
