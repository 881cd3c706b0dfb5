"""Plain tables and lists for listings: the last column is wrapped to the terminal, and nothing is cut."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.text import Text

UNLIMITED = 10_000  # for a pipe: nothing is wrapped that another program reads
NARROW = 34  # if the last column has less room than this, it is printed under its row


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print `rows` with the last column wrapped beside the others, or under them where the terminal is narrow."""
    limit = shutil.get_terminal_size((UNLIMITED, 24)).columns
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header) - 1)]
    left = sum(widths) + 2 * len(widths)
    for *cells, text in [header, *rows]:
        names = "".join(cell.ljust(width + 2) for cell, width in zip(cells, widths, strict=True))
        if limit - left >= NARROW:
            _print_wrapped(names, text, left, limit)
        else:
            _print_wrapped("", names, 0, limit)
            _print_wrapped("", text, 4, limit)


def facts(rows: Sequence[tuple[str, str]]) -> None:
    """Print names with their texts wrapped beside them; a fact without text is left out."""
    limit = min(shutil.get_terminal_size((100, 24)).columns, 120)
    left = max(len(name) for name, _ in rows) + 2
    for name, text in rows:
        for i, line in enumerate(text.splitlines()):
            _print_wrapped("" if i else name, line, left, limit, hanging=4)


def _print_wrapped(name: str, text: str, left: int, limit: int, hanging: int = 0) -> None:
    """Print `text` to the right of `name`, which has `left` columns. Lines after the first begin `hanging` later."""
    lines = Text(text).wrap(Console(), max(20, limit - left - hanging))
    for i, line in enumerate(lines):
        click.echo(((" " * (left + hanging) if i else name.ljust(left)) + line.plain).rstrip())


def print_json(value: Any) -> None:
    """As JSON for other programs; values that JSON can't represent are printed as text."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))
