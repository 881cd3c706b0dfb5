"""Formatters: how a row of one data format becomes an example that every method understands.

Formatter("qa", columns={"question", "answer"}, convert=lambda row: Example(
    prompt=[{"role": "user", "content": row["question"]}], answer=row["answer"]))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Messages = list[dict[str, Any]]
TEXT = "text"  # the role of the only turn of a conversation that is plain text


@dataclass
class Example:
    """One row in TRL's conversational format. Message lists hold `{"role": …, "content": …}`, and other keys that chat
    templates know: `reasoning_content`, `tool_calls`, `tool_call_id`, `name`. A turn with `weight` 0 is not learned.

    `prompt` ends with a user message. `completion`, `chosen` and `rejected` are the assistant's messages after it.
    `answer` is the short reference answer for rewards, `columns` are more columns for them beside the row's columns,
    which are passed through. `text`, with an empty prompt and nothing else, is plain text: all of it is learned, as it
    is, without a chat template.
    """

    prompt: Messages
    completion: Messages | None = None
    chosen: Messages | None = None
    rejected: Messages | None = None
    answer: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    text: str | None = None


class NothingToLearn(ValueError):
    """Raised by `convert` for a row that is as it should be and has nothing to learn, such as two equal answers."""


@dataclass(frozen=True)
class Formatter:
    """Converts rows that have `columns`.

    `convert(row) -> Example` raises `ValueError` for a row that it can't convert, or `NothingToLearn`; the core adds
    the row's location. A row has the columns that are not None.
    `matches(row) -> bool` decides between formatters whose columns fit equally well.
    `names` are other names of a column, also of an optional one: data that has exactly one of them, and not the column
    itself, is read under the column's name.
    `decide(rows) -> ({column: value}, what to tell)` decides from all rows of a source what one row can't tell; every
    row then has these columns.
    """

    name: str
    columns: frozenset[str] | set[str]
    convert: Callable[[Mapping[str, Any]], Example]
    matches: Callable[[Mapping[str, Any]], bool] | None = None
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    decide: Callable[[Sequence[Mapping[str, Any]]], tuple[Mapping[str, Any], str]] | None = None

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether `row` has every column under one of its names, and `matches`, where given, agrees."""
        renamed = self.renamed(row)
        if not self.columns <= row.keys() | renamed.keys():
            return False
        return self.matches is None or self.matches(self.view(row, renamed))

    def renamed(self, row: Mapping[str, Any]) -> dict[str, str]:
        """{column: its name in `row`}, where the two differ."""
        if not self.names:
            return {}
        found = {c: [name for name in others if name in row] for c, others in self.names.items() if c not in row}
        return {column: names[0] for column, names in found.items() if len(names) == 1}

    def view(self, row: Mapping[str, Any], renamed: Mapping[str, str]) -> Mapping[str, Any]:
        """`row` with the columns' own names."""
        if not renamed:
            return row
        given = {name: column for column, name in renamed.items()}
        return {given.get(name, name): value for name, value in row.items()}
