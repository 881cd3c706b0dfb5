"""Rows of CSV files, whatever separates their columns."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf_core.errors import UserError

LONGEST = 1 << 26  # characters of a cell
SEPARATORS = ",;\t|"
LOOKED_AT = 50  # lines of a file, to find what separates its columns


def read_csv(path: Path, lines: Iterator[str], separator: str | None = None) -> Iterator[tuple[str, Any]]:
    """The first line names the columns; an empty cell is None, and a line of them no row."""
    csv.field_size_limit(LONGEST)
    start = list(itertools.islice(lines, LOOKED_AT))
    rows = csv.reader(itertools.chain(start, lines), delimiter=separator or separator_of(start), strict=True)
    first = 1  # line of the row
    try:
        if (names := next(rows, None)) is None:
            raise UserError(f"{path}: the file is empty")
        _check_names(path, names)
        first = rows.line_num + 1
        for cells in rows:
            where = f"line {rows.line_num}"
            if any(cells) and len(cells) != len(names):
                yield where, UserError(f"{path} {where}: {len(cells)} cells under {len(names)} columns")
            elif any(cells):
                yield where, {name: cell or None for name, cell in zip(names, cells, strict=True)}
            first = rows.line_num + 1
    except csv.Error as error:
        where = f"line {rows.line_num}" if first == rows.line_num else f"lines {first} to {rows.line_num}"
        hint = ': a " is not closed' if first < rows.line_num else ""
        raise UserError(f"{path} {where}: {error}{hint}") from error


def separator_of(lines: Sequence[str]) -> str:
    """What separates the columns of a file that begins with `lines`: a comma, unless only another sign does.

    A sign does if it is in the first line, and every row has as many cells as that.
    """
    found = [sign for sign in SEPARATORS if _separates(lines, sign)]
    return found[0] if len(found) == 1 else ","


def _separates(lines: Sequence[str], sign: str) -> bool:
    try:
        rows = [cells for cells in csv.reader(lines, delimiter=sign) if any(cells)]
    except csv.Error:
        return False
    rows = rows[:-1] if len(lines) == LOOKED_AT and len(rows) > 2 else rows  # the last may go on
    return bool(rows) and len(rows[0]) > 1 and {len(cells) for cells in rows} == {len(rows[0])}


def _check_names(path: Path, names: list[str]) -> None:
    """Raise `UserError` for a first line of a CSV file that does not name columns separated by commas."""
    if not any(names):
        raise UserError(f"{path} line 1: is empty, and must name the columns")
    given = ", ".join(map(repr, names))
    other = next((sign for sign in ";\t|" if len(names) == 1 and sign in names[0]), None)
    if other:
        raise UserError(f"{path}: the columns are separated by {other!r} ({given}): separate them by commas")
    if any(name != name.strip() for name in names):
        raise UserError(f"{path}: names of the first line have spaces around them ({given}): remove them in every line")
    if len(set(names)) != len(names):
        raise UserError(f"{path}: two columns of the first line have the same name: {', '.join(names)}")
