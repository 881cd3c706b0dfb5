"""Standard output and standard error: what happens when they are closed, or the disk behind them is full."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EFBIG)  # errors, not of the program


class _Stream(io.FileIO):
    """A standard stream that becomes /dev/null when it can't be written to any more."""

    outlasted = False  # whether the process goes on then

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if not _Stream.outlasted:
                raise
            return memoryview(data).nbytes


def open_streams() -> None:
    """Have standard streams: one that is closed would let the next file take its place, and get what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")
    for number, name in ((1, "stdout"), (2, "stderr")):
        given = getattr(sys, name)
        if given is None or _is_of(given, number):
            settings = {"encoding": given.encoding, "errors": given.errors} if given else {"encoding": "utf-8"}
            lines = number == 2 or os.isatty(number)
            buffer = io.BufferedWriter(_Stream(number, "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(buffer, **settings, line_buffering=lines))


def _is_of(stream: Any, number: int) -> bool:
    """Whether a stream writes to this descriptor, and not to what a notebook or a test has put in its place."""
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() == number
    except (OSError, ValueError):  # it has none, or is closed
        return False


def outlast_streams() -> None:
    """Let this process go on when nobody reads what it prints any more, or the disk that it is printed to is full."""
    _Stream.outlasted = True


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what is printed, also by other processes, to stderr: stdout is for a command's result alone."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
