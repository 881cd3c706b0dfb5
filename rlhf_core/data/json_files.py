"""Rows of JSON: a list, an object per line, or one object with the list in it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_core.errors import UserError
from rlhf_core.inputs import parse_json

# What a list of rows is usually called, where it is within an object.
ROWS = ("data", "rows", "train", "examples", "items", "records", "instances", "dataset")


def read_json(path: Path, lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """A list of rows, or an object per line."""
    filled = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    number, first = next(filled, (0, ""))
    if not first:
        raise UserError(f"{path}: the file is empty")
    if first.lstrip().startswith("["):
        text = "\n" * (number - 1) + first + "".join(lines)
        yield from ((f"row {i}", values) for i, values in enumerate(parse_json(text, str(path)), start=1))
        return
    second = next(filled, (0, ""))
    values = _parsed(path, number, first)
    if isinstance(values, UserError):
        whole = first.rstrip()[-1:] in "{[,"  # an object over several lines, if there is one
        start = list(lines if whole else itertools.islice(lines, 10_000))
        if rows := _within(path, first + second[1] + "".join(start)):
            yield from rows
            return
        following = enumerate(itertools.chain(start, lines), start=second[0] + 1)
        filled = ((number, line) for number, line in following if line.strip())
    elif not second[1] and (rows := _within(path, first)):
        yield from rows
        return
    yield f"line {number}", values
    for number, line in itertools.chain([second] if second[1] else (), filled):
        yield f"line {number}", _parsed(path, number, line)


def _parsed(path: Path, number: int, line: str) -> Any:
    """The value of a line, or the error that it is none."""
    try:
        return parse_json(line, f"{path} line {number}")
    except UserError as error:
        return error


def _within(path: Path, text: str) -> list[tuple[str, Any]]:
    """The rows of a list within one object; none if the object is itself a row.

    Raises `UserError` for objects over several lines, and for one that holds columns, or several lists.
    """
    text = text.strip()
    try:
        values, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return []  # the line that is wrong is named later
    if not isinstance(values, dict) or not values:
        return []
    several_lines = "\n" in text[:end]
    if end < len(text):
        if several_lines:
            raise UserError(
                f"{path}: an object takes several lines. Write a list, [{{…}}, {{…}}], or an object per line."
            )
        return []
    lists = [name for name, value in values.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(lists) == 1 and lists[0] in ROWS:
        parse_json(text, str(path))  # its depth
        return [(f"row {i} of {lists[0]}", row) for i, row in enumerate(values[lists[0]], start=1)]
    lengths = {len(value) if isinstance(value, list) else 0 for value in values.values()}
    columns = len(values) > 1 and len(lengths) == 1 and max(lengths) > 1
    nested = len(values) > 1 and all(isinstance(value, dict) for value in values.values())  # rows or columns, by name
    if several_lines or columns or nested or set(lists) & set(ROWS):
        hint = f" If {lists[0]!r} holds the rows, save that list alone." if lists else ""
        hint = " It seems to hold columns: save it as rows." if columns else hint
        given = f"{path} is one JSON object ({', '.join(values)}), not a list of rows"
        raise UserError(f"{given}. Write [{{…}}, {{…}}], or one object per line.{hint}")
    return []
