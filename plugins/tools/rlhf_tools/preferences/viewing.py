"""A pair in the terminal: the question, both answers beside each other or one below the other, and a line of keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group
from rich.rule import Rule
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from rlhf_core.commands import text
from rlhf_tools.preferences.labelling import Task, conversation, thoughts_apart
from rlhf_tools.preferences.words import say

WIDE = 100  # columns from which on answers stand beside each other
LONG = 6000  # characters of both answers above which they stand one below the other
LONGEST = 60_000  # characters of one answer that are laid out; the page of --serve shows all

HELP = (
    ("1", "the first answer is better (left, or above)"),
    ("2", "the second answer is better"),
    ("t", "a tie: neither is better"),
    ("s", "skip: can't be judged"),
    ("b", "back to the row before, to see or change what was said"),
    ("n", "on to the next row that is not labelled, after going back"),
    ("f", "fold or unfold thoughts"),
    ("↑ ↓ PgUp PgDn space", "scroll"),
    ("q", "quit; what was said is saved, and the same command goes on"),
    ("?", "this list"),
)


def body(task: Task, lang: str, width: int, *, folded: bool) -> Group:
    """All that is to be read."""
    parts: list[Any] = []
    turns = conversation(task.row.prompt)
    for i, (role, content) in enumerate(turns):
        name = say(lang, "Question") if i == len(turns) - 1 else say(lang, role)
        parts += [Rule(name, align="left", style="dim"), text(content, "bold" if i == len(turns) - 1 else "")]
    answers = [answer(turns, lang, folded=folded) for turns in task.sides]
    titles = [say(lang, "1  first answer"), say(lang, "2  second answer")]
    chosen = {"1": 0, "2": 1}.get(task.said_key or "")
    if stacked(task, width):
        for i in (0, 1):
            parts += [
                Text(),
                Rule(Text(titles[i], "bold reverse" if i == chosen else "bold"), align="left"),
                answers[i],
            ]
    else:
        table = Table.grid(expand=True, padding=(0, 1))
        for _ in answers:
            table.add_column(ratio=1, overflow="fold")
        rules = [Rule(Text(t, "bold reverse" if i == chosen else "bold"), align="left") for i, t in enumerate(titles)]
        table.add_row(*rules)
        table.add_row(*answers)
        parts += [Text(), table]
    return Group(*parts)


def stacked(task: Task, width: int) -> bool:
    return width < WIDE or sum(len(part) for turns in task.sides for _, part in thoughts_apart(turns)) > LONG


def answer(turns: Any, lang: str, *, folded: bool) -> Group:
    """An answer, with its thoughts folded."""
    parts: list[Text] = []
    for thought, content in thoughts_apart(turns):
        if thought and folded:
            said = say(lang, "▸ thought, {count} characters (f unfolds)", count=f"{len(content):,}")
            parts.append(Text(said, "dim italic"))
        else:
            cut = say(lang, "… and {count} characters more", count=f"{len(content) - LONGEST:,}")
            parts.append(text(content[:LONGEST], "dim italic" if thought else ""))
            parts += [Text(cut, "yellow")] if len(content) > LONGEST else []
    return Group(*(parts or [Text(say(lang, "(empty)"), "dim")]))


def lines_of(console: Console, shown: Any, width: int) -> list[list[Segment]]:
    """What is shown, as lines of this width."""
    return console.render_lines(shown, console.options.update(width=width, height=None), pad=False)


def helped(lang: str) -> Group:
    table = Table.grid(padding=(0, 2))
    for key, what in HELP:
        table.add_row(Text(key, "bold"), say(lang, what))
    return Group(Text(say(lang, "Keys"), "bold"), Text(), table, Text(), Text(say(lang, "Any key goes on."), "dim"))


def bar(parts: Sequence[str], width: int, style: str) -> Text:
    """A line of as many parts as have room."""
    line = ""
    for part in parts:
        longer = f"{line}   {part}" if line else part
        if cell_len(longer) > width:
            break
        line = longer
    return Text(line, style)
