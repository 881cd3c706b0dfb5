"""Columns that call a row's answer good or bad."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf_core import Example
from rlhf_formatter_common.reading import is_blank

# What says that an answer is good or bad, and how.
MARKS = ("kto_tag", "label", "desirable", "is_desirable", "is_chosen")
GOOD = ("true", "1", "1.0", "good", "desirable", "chosen", "thumbs_up")
BAD = ("false", "0", "0.0", "-1", "-1.0", "bad", "undesirable", "rejected", "thumbs_down")


def unless_bad(convert: Callable[[Mapping[str, Any]], Example]) -> Callable[[Mapping[str, Any]], Example]:
    """As `convert`, but an answer that the column `mark` calls bad is a rejected one without a chosen one."""

    @functools.wraps(convert)
    def judged(row: Mapping[str, Any]) -> Example:
        example = convert(row)
        mark = row.get("mark")
        if mark is None or _mark(row.get(mark)) not in BAD:
            return example
        answer = None if example.answer == (example.completion or [{}])[-1].get("content") else example.answer
        return Example(prompt=example.prompt, rejected=example.completion, answer=answer)

    return judged


def marks(rows: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], str]:
    """The column that calls answers good or bad. One with any other value, such as a category, is none."""
    for name in MARKS:
        found = {_mark(row[name]) for row in rows if not is_blank(row.get(name))}
        if found and found <= {*GOOD, *BAD}:
            return {"mark": name}, ""
    return {}, ""


def _mark(value: Any) -> str:
    return str(value).strip().lower()
