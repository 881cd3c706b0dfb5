"""Plain tables for listings, without rich: columns as wide as necessary, the last one fitted to the terminal."""

from __future__ import annotations

import json
import shutil
import textwrap
import unicodedata
from collections.abc import Collection, Sequence
from typing import Any

import click

UNLIMITED = 10_000  # for a pipe: nothing is cut that another program reads
NARROW = 34  # if the last column has less room than this, it is printed under its row


def table(header: Sequence[str], rows: Sequence[Sequence[str]], full: Collection[int] = ()) -> None:
    """Print `rows`. The last column is cut to the terminal, except in the rows with a number in `full`.

    If there is too little room, it is printed under each row, unless the row before has the same text.
    """
    limit = shutil.get_terminal_size((UNLIMITED, 24)).columns
    widths = [max(width(row[i]) for row in [header, *rows]) for i in range(len(header) - 1)]
    left = sum(widths) + 2 * len(widths)
    under = limit - left < min(NARROW, max((width(row[-1]) for row in rows), default=0))
    click.echo(cut(_joined(header[:-1] if under else header, widths), limit))
    indent = " " * (4 if under else left)
    room = max(limit - len(indent), NARROW)
    for number, (*cells, text) in enumerate(rows):
        lines = textwrap.wrap(text, room) if number in full else [cut(text, room)]
        if under:
            click.echo(cut(_joined(cells, widths), limit))
            lines = lines if text and (number == 0 or text != rows[number - 1][-1]) else []
        else:
            click.echo(_joined([*cells, *lines[:1]], widths))
            lines = lines[1:]
        for line in lines:
            click.echo(indent + line)


def _joined(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell + " " * (widths[i] - width(cell)) if i < len(widths) else cell for i, cell in enumerate(cells)]
    return "  ".join(padded).rstrip()


def facts(rows: Sequence[tuple[str, str]]) -> None:
    """Print names with their texts wrapped beside them; a fact without text is left out."""
    limit = min(shutil.get_terminal_size((100, 24)).columns, 120)
    left = max(width(name) for name, _ in rows) + 2
    wrap = textwrap.TextWrapper(max(20, limit - left), subsequent_indent="    ")
    for name, text in rows:
        lines = [part for line in text.splitlines() for part in wrap.wrap(line) or [""]]
        for i, line in enumerate(lines):
            click.echo(((name if i == 0 else "").ljust(left) + line).rstrip())


def print_json(value: Any) -> None:
    """As JSON for other programs; values that JSON can't represent are printed as text."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def width(text: str) -> int:
    """Columns of a terminal that `text` takes: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def cut(text: str, limit: int) -> str:
    """`text`, with … where it would be wider than `limit`."""
    if width(text) <= limit:
        return text
    while width(text) > limit - 1:
        text = text[:-1]
    return text.rstrip() + "…"
