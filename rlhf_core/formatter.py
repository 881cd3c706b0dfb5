"""Formatters: how a row of one data format becomes an example that every method understands.

Formatter("qa", columns={"question", "answer"}, convert=lambda row: Example(
    prompt=[{"role": "user", "content": row["question"]}], answer=row["answer"]))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Messages = list[dict[str, Any]]


@dataclass
class Example:
    """One row in TRL's conversational format. Message lists hold `{"role": …, "content": …}`, and other keys that chat
    templates know: `reasoning_content`, `tool_calls`, `tool_call_id`, `name`. A turn with `weight` 0 is not learned.

    `prompt` ends with a user message. `completion`, `chosen` and `rejected` are the assistant's messages after it.
    `answer` is the short reference answer for rewards, `columns` are more columns for them beside the row's columns,
    which are passed through.
    """

    prompt: Messages
    completion: Messages | None = None
    chosen: Messages | None = None
    rejected: Messages | None = None
    answer: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Formatter:
    """Converts rows that have `columns`.

    `convert(row) -> Example` raises `ValueError` for a row that it can't convert; the core adds the row's location.
    `matches(row) -> bool` decides between formatters whose columns fit equally well.
    """

    name: str
    columns: frozenset[str] | set[str]
    convert: Callable[[Mapping[str, Any]], Example]
    matches: Callable[[Mapping[str, Any]], bool] | None = None

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether `row` has every column, and `matches`, where given, agrees."""
        return self.columns <= row.keys() and (self.matches is None or self.matches(row))
