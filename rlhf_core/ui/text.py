"""Text that a model, a file or a plugin wrote, on its way to a terminal or a pipe: control characters are shown as
symbols, so that none can move the cursor, set a title, fill the clipboard, or hide or reorder text. Imports next to
nothing.
"""

from __future__ import annotations

import codecs
import io
import json
import re
import sys
from collections.abc import Iterable
from typing import Any

from rlhf_core.credentials import masked

# Control characters of C0 (but line ends and tabs) and C1, bidirectional overrides and isolates, line and paragraph
# separators, characters that show nothing and that ordinary text does without, and halves of characters.
_ACTS = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u115f\u1160\u17b4\u17b5\u180e\u200b\u2028-\u202e\u2060-\u206f\u3164\ufeff"
    "\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\ud800-\udfff\U000e0000-\U000e00ff"
    "\U000e01f0-\U000e0fff"
)
# Joiners, marks of direction and selectors of variants: part of Persian, Hebrew, Indic and Mongolian words, of
# ideographs and of emoji, and hidden data elsewhere.
_JOINS = "\u061c\u180b-\u180d\u180f\u200c-\u200f\ufe00-\ufe0f\U000e0100-\U000e01ef"
_OTHER_SCRIPTS = f"[^\x00-\u02ff\u2000-\u206f{_ACTS}{_JOINS}]"
_ORDINARY = (
    f"{_OTHER_SCRIPTS}[{_JOINS}]{{1,2}}|[{_JOINS}](?={_OTHER_SCRIPTS})|[0-9#*©®‼⁉]\ufe0f"
    "|\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{1,6}\U000e007f"  # the flag of England
)
_FOUND = re.compile(f"({_ORDINARY})|\r\n|[{_ACTS}{_JOINS}]")
_FOUND_IN_PART = re.compile(f"([{_JOINS}])|\r\n|[{_ACTS}]")
_FOR_JSON = re.compile(f"[{_ACTS}{_JOINS}]")


def shown(text: str, *, part: bool = False) -> str:
    """`text` with each control character as a symbol (`␛`) or its number (`\\x9b`, `\\u202e`). Once is enough: a second
    time changes nothing. Line ends, tabs, emoji and all scripts stay as they are. `part`: what joins characters stays,
    too, since what it joins may stand before or after `text`.
    """
    return (_FOUND_IN_PART if part else _FOUND).sub(_symbol, text)


class ShownPieces:
    """Text that comes in pieces, each `shown` as after those before: what joins two emoji may be a piece of its own."""

    def __init__(self) -> None:
        self.last = ""  # characters

    def shown(self, piece: str) -> str:
        before, both = shown(self.last), shown(self.last + piece)
        self.last = (self.last + piece)[-3:]
        return both.removeprefix(before) if both.startswith(before) else shown(piece)


def _symbol(found: re.Match[str]) -> str:
    character = found[0]
    if found[1] is not None:
        return character
    if character == "\r\n":
        return "\n"
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


COST = "/cost"  # the end of a metric's name that is dollars so far, as a judge logs it


def dollars(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= 0.1 or amount == 0 else f"${amount:.2g}"


def gb(size: float) -> str:
    """Bytes as people say them."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    """As people say it."""
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.{1 if seconds < 10 * size else 0}f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON for another program, which reads back the same text, and without control characters for a terminal."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=str)
    return _FOR_JSON.sub(lambda found: json.dumps(found[0])[1:-1], text)


class Output:
    """A standard stream through which nothing but text passes: what is written to it is `shown`, without secrets if
    it is for messages.

    It is no terminal to those who ask, so libraries send it no colours of their own.
    """

    def __init__(self, stream: Any, *, messages: bool = False) -> None:
        self.stream, self.pieces, self.messages = stream, ShownPieces(), messages

    def write(self, text: str) -> int:
        self.stream.write(self.pieces.shown(masked(text) if self.messages else text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def protect_output() -> None:
    """Let all that this process prints, its libraries and plugins included, go through `Output`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # it is None when it is closed, and an `Output` the second time
            # What the terminal's encoding lacks is shown by its number, too. click would bypass a stream of ASCII.
            encoding = "utf-8" if codecs.lookup(stream.encoding).name == "ascii" else None
            stream.reconfigure(encoding=encoding, errors="backslashreplace")
            setattr(sys, name, Output(stream, messages=name == "stderr"))
