"""Keys of a terminal, one at a time: without Enter, and not shown. Ctrl-C stays what it is."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

WAIT = 0.5  # seconds between looks at the size of the terminal
SEQUENCES = {
    "[A": "up", "OA": "up", "[B": "down", "OB": "down", "[C": "right", "OC": "right", "[D": "left", "OD": "left",
    "[5~": "page up", "[6~": "page down", "[H": "home", "OH": "home", "[1~": "home", "[F": "end", "OF": "end",
    "[4~": "end",
}  # fmt: skip
ENDS = "~ABCDFHPQRSZ"  # of a sequence that is none of these


class Keys:
    """What is typed. `read` gives a key's name or character, or None if nothing was typed for a while."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self._typed = descriptor, ""

    def read(self) -> str | None:
        """Raises `EOFError` where the terminal is gone, or for Ctrl-D."""
        if not self._typed:
            if not select.select([self.descriptor], [], [], WAIT)[0]:
                return None
            given = os.read(self.descriptor, 256)
            if not given:
                raise EOFError
            self._typed = given.decode("utf-8", "ignore")
        key, self._typed = first_key(self._typed)
        if key == "\x04":
            raise EOFError
        return key


def first_key(typed: str) -> tuple[str | None, str]:
    """(the first key, the rest). Full-width characters, as Chinese input methods give, are their plain ones."""
    if not typed:
        return None, ""
    if typed[0] != "\x1b" or len(typed) < 2 or typed[1] not in "[O":
        return unicodedata.normalize("NFKC", typed[0]).lower(), typed[1:]
    for end in range(3, min(len(typed), 8) + 1):
        if typed[end - 1] in ENDS:
            return SEQUENCES.get(typed[1:end]), typed[end:]
    return None, ""


@contextmanager
def keys() -> Iterator[Keys]:
    """The keys of standard input, which must be a terminal."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield Keys(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
