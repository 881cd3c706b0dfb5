"""Plain tables for listings, which import no rich: columns as wide as they need, the last fitted to the terminal."""

from __future__ import annotations

import json
import shutil
import textwrap
import unicodedata
from collections.abc import Collection, Sequence
from typing import Any

import click

UNLIMITED = 10_000  # for a pipe, so that nothing is cut that another program reads
NARROW = 34  # a last column with less room than this goes under its row instead


def table(header: Sequence[str], rows: Sequence[Sequence[str]], full: Collection[int] = ()) -> None:
    """Print `rows`. The last column is cut to the terminal, or put under the row where that leaves it no room.

    There it is left out where it says the same as the row before. Of the rows that `full` counts nothing is cut.
    """
    limit = shutil.get_terminal_size((UNLIMITED, 24)).columns
    widths = [max(width(row[i]) for row in [header, *rows]) for i in range(len(header) - 1)]
    left = sum(widths) + 2 * len(widths)
    under = limit - left < min(NARROW, max((width(row[-1]) for row in rows), default=0))
    last = ""
    click.echo(cut(_joined(header[:-1] if under else header, widths), limit))
    for number, row in enumerate(rows):
        indent = " " * (4 if under else left)
        room = max(limit - len(indent), NARROW)
        text = textwrap.wrap(row[-1], room) if number in full else [cut(row[-1], room)]
        if under:
            click.echo(cut(_joined(row[:-1], widths), limit))
            text = text if row[-1] and row[-1] != last else []
        else:
            click.echo(_joined([*row[:-1], *text[:1]], widths))
            text = text[1:]
        for line in text:
            click.echo(indent + line)
        last = row[-1]


def _joined(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell + " " * (widths[i] - width(cell)) if i < len(widths) else cell for i, cell in enumerate(cells)]
    return "  ".join(padded).rstrip()


def facts(rows: Sequence[tuple[str, str]]) -> None:
    """Print names with what is said of each, wrapped beside them; a fact without text is left out."""
    limit = min(shutil.get_terminal_size((100, 24)).columns, 120)
    left = max(width(name) for name, _ in rows) + 2
    for name, text in rows:
        wrap = textwrap.TextWrapper(max(20, limit - left), subsequent_indent="    ")
        lines = [part for line in text.splitlines() for part in wrap.wrap(line) or [""]]
        for i, line in enumerate(lines):
            click.echo(((name if i == 0 else "").ljust(left) + line).rstrip())


def print_json(value: Any) -> None:
    """As JSON for other programs; what JSON has no form for is written as text."""
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
