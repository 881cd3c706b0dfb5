"""What the commands write: small files whole."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


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
