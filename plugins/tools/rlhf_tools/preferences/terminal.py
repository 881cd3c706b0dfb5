"""Labelling in the terminal: a pair fills the screen, a key says which answer is better."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.control import Control
from rich.segment import Segment, Segments
from rich.text import Text

from rlhf_core import UserError
from rlhf_core.commands import Screen, duration
from rlhf_tools.preferences.keys import Keys, keys
from rlhf_tools.preferences.labelling import PAUSE, Task, Work
from rlhf_tools.preferences.viewing import bar, body, helped, lines_of
from rlhf_tools.preferences.words import say

AT_LEAST = 0.25  # seconds a row is shown before a key says something of it: a key held down labels nothing unseen
SAYS = {"1": "1", "2": "2", "t": "tie", "s": "skip"}
FIXED = 3  # lines above and below what scrolls


@dataclass
class View:
    """What one labeller sees now."""

    work: Work
    labeller: str
    lang: str
    console: Console
    task: Task | None = None
    folded: bool = True
    helping: bool = False
    at: int = 0  # the first line of the body that is shown
    lines: int = 0  # of the body
    note: str = ""
    shown: float = 0.0

    def go_to(self, task: Task | None, note: str = "") -> None:
        self.task, self.folded, self.at, self.note, self.shown = task, True, 0, note, time.monotonic()

    def draw(self) -> None:
        width, height = self.console.size
        room = max(1, height - FIXED)
        shown = helped(self.lang) if self.helping or self.task is None else self._body(width)
        found = lines_of(self.console, shown, width)
        self.lines = len(found)
        self.at = max(0, min(self.at, self.lines - room))
        part = found[self.at : self.at + room]
        rest = [[Segment("")]] * (room - len(part))
        top = lines_of(self.console, self._top(width), width)[:1]
        bottom = lines_of(self.console, self._bottom(width, room), width)[:1]
        screen = Segment.set_shape([*top, [Segment("")], *part, *rest, *bottom], width, height)
        drawn: list[Segment] = []
        for number, line in enumerate(screen):
            drawn += [*line, Segment.line()] if number < height - 1 else line
        self.console.control(Control.home())
        self.console.print(Segments(drawn), end="")

    def _body(self, width: int) -> Any:
        assert self.task is not None
        return body(self.task, self.lang, width, folded=self.folded)

    def _top(self, width: int) -> Text:
        found = self.work.progress(self.labeller)
        left = found["seconds"]
        parts = [f"{found['done']:,} / {found['total']:,}", self.labeller]
        if left:
            parts.append(say(self.lang, "about {time} left", time=duration(left)))
        if self.task is not None and self.task.said:
            said = {"tie": "t", "skip": "s"}.get(self.task.said_key or "", self.task.said_key)
            parts.append(say(self.lang, "said before: {key}", key=said))
        return bar([*parts, self.note] if self.note else parts, width, "bold cyan")

    def _bottom(self, width: int, room: int) -> Text:
        names = ("1/2 better", "t tie", "s skip", "b back", "f thoughts", "q quit", "? help")
        below = self.lines - self.at - room
        more = [say(self.lang, "↓ {count} more lines", count=f"{below:,}")] if below > 0 else []
        return bar([*more, *(say(self.lang, name) for name in names)], width, "reverse")

    def scroll(self, key: str) -> bool:
        room = max(1, self.console.size[1] - FIXED)
        by = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": 2 - room, "page down": room - 2, " ": room - 2}
        by |= {"home": -self.lines, "end": self.lines}
        if key in by:
            self.at = max(0, min(self.at + by[key], self.lines - room))
        return key in by


def label_in_terminal(work: Work, labeller: str, screen: Screen, lang: str) -> bool:
    """Label until all is done or the labeller quits; True if it was Ctrl-C. Raises `UserError` for a full disk."""
    console = screen.console
    view = View(work, labeller, lang, console)
    view.go_to(work.next(labeller))
    if view.task is None:
        return False
    try:
        with keys() as typed, console.screen(hide_cursor=True):
            label_rows(view, typed)
    except KeyboardInterrupt:
        return True
    except EOFError:
        pass
    return False


def label_rows(view: View, typed: Keys) -> None:
    """Until `q`, or until there is no row left."""
    size = None
    dirty = True
    while view.task is not None:
        if dirty or view.console.size != size:
            size = view.console.size
            view.draw()
        key = typed.read()
        dirty = key is not None
        if key == "q" and not view.helping:
            return
        if key is not None:
            act(view, key)


def act(view: View, key: str) -> None:
    """What a key does."""
    view.note = ""
    if view.helping:
        view.helping = False
    elif key == "?":
        view.helping, view.at = True, 0
    elif key in SAYS:
        _say(view, key)
    elif key in ("b", "left"):
        task = view.work.back(view.labeller)
        view.go_to(task or view.task, "" if task else say(view.lang, "this is the first one"))
    elif key in ("n", "right"):
        view.go_to(view.work.next(view.labeller))
    elif key == "f":
        view.folded = not view.folded
    elif not view.scroll(key):
        view.note = say(view.lang, "? lists the keys")


def _say(view: View, key: str) -> None:
    assert view.task is not None
    if time.monotonic() - view.shown < AT_LEAST:
        return
    paused = view.work.paused
    try:
        view.work.answer(view.labeller, view.task.row.id, view.task.better(SAYS[key]), view.task.first)
    except OSError as error:
        raise UserError(
            say(
                view.lang,
                "{file} can't be written: {why}. What was said before is saved",
                file=view.work.path,
                why=error.strerror,
            )
        ) from error
    minutes = f"{PAUSE / 60:g}"
    note = (
        say(view.lang, "a pause: {minutes} minutes are written", minutes=minutes) if view.work.paused > paused else ""
    )
    view.go_to(view.work.next(view.labeller), note)


def check_terminal(screen: Screen, lang: str) -> None:
    """Raise `UserError` where there is no terminal to label in."""
    if not (sys.stdin is not None and sys.stdin.isatty() and screen.console.is_terminal):
        raise UserError(
            say(lang, "labelling needs a terminal to read keys from. Without one: --serve, for a page in a browser")
        )
