"""Shows an answer token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what the first bytes of a character are decoded to


# Shows (text, style=""), with no line end added; "thought" is a style too, and "line", "note" and "bold" are for lines.
Write = Callable[..., None]


class Pieces:
    """A streamer for `generate`: writes characters as soon as they are complete, and collects the token ids."""

    def __init__(self, decode: Callable[[Sequence[int]], str], write: Write) -> None:
        self.decode, self.write = decode, write
        self.ids: list[int] = []
        self._prompt_is_next = True
        self._start = self._shown = 0  # decoded from, and shown up to: one token's text depends on the one before

    def put(self, value: Any) -> None:
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        self.ids += value.flatten().tolist()
        self._show(complete=False)

    def end(self) -> None:
        self._show(complete=True)

    def _show(self, *, complete: bool) -> None:
        before, now = self.decode(self.ids[self._start : self._shown]), self.decode(self.ids[self._start :])
        if len(now) > len(before) and (complete or not now.endswith(_REPLACEMENT)):
            self._start, self._shown = self._shown, len(self.ids)
            self.write(now[len(before) :])


def thoughts_apart(write: Write) -> Write:
    """`write`, with what is between <think> and </think> in a style of its own."""
    before = ""

    def styled(text: str, style: str = "") -> None:
        nonlocal before
        before += text
        thinks = before.rfind("<think>") > before.rfind("</think>") or text.endswith("</think>")
        write(text, "thought" if thinks else style)

    return styled
