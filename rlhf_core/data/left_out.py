"""Rows that can't be used, by one rule for all commands: left out, counted by reason; an error if they are too many.

A row is malformed (not JSON, not of its format, refused by the chat template), too long, or has nothing to learn from.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from rlhf_core.errors import UserError
from rlhf_core.numbers import MAX_BAD_ROWS

Kind = Literal["malformed", "too long", "nothing to learn"]
Refuse = Callable[[str, UserError], None]  # is given the location of a row that can't be read, and why
MAX_TOO_LONG = 0.5  # of a source's rows may be too long
SHOWN = 5  # reasons of a source
REASONS = 100  # that are told apart
VARYING = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\d+(?:[.,]\d+)*")  # what is a row's own in a reason
NO_FORMAT = "Name the columns (FILE:prompt=COLUMN,…), or write a formatter: rlhf plugins new formatter NAME"
NO_TEMPLATE = "Use data that the chat template can show, or another template: --chat-template FILE"


class Unusable(UserError):
    """Why a row is left out. Any other `UserError` about a row means that it is malformed."""

    def __init__(self, reason: str, kind: Kind = "malformed") -> None:
        super().__init__(reason)
        self.kind = kind


class BadData(UserError):
    """Why a source that could be read is refused as a whole. `alike`: most of its rows have nothing to learn, such as
    two equal answers.
    """

    def __init__(self, message: str, *, alike: bool = False) -> None:
        super().__init__(message)
        self.alike = alike


class TooLong(Unusable):
    """A row of `tokens` tokens, more than the option `limit` allows; `rule` is the option that says what to do then."""

    def __init__(self, reason: str, tokens: int, limit: str, rule: str, *, refused: bool = False) -> None:
        super().__init__(reason, "too long")
        self.tokens, self.refused = tokens, refused
        self.hint = f"Allow more ({limit}), or cut: {rule} truncate" + (" (or drop)" if refused else "")


@dataclass
class Reason:
    """Why `rows` rows were left out: the `text` of the first, and its location. `longest`: in tokens, if too long."""

    kind: Kind
    text: str
    first: str
    begins: str = ": "  # what is between the two
    rows: int = 0
    longest: int = 0
    hint: str = ""

    def __str__(self) -> str:
        longest = f", the longest {self.longest:,}" if self.longest else ""
        return f"{self.text}{longest} ({'the first: ' * (self.rows > 1)}{self.first})"


@dataclass
class LeftOut:
    """The rows of `source` that can't be used. `max_bad_rows`: malformed rows to accept, a share below 1, or a number.

    Raises `UserError` in `check` if there are more, if over half of the rows are too long, or if none can be used.
    """

    source: str
    max_bad_rows: float = MAX_BAD_ROWS
    reasons: dict[tuple[str, str], Reason] = field(default_factory=dict)
    refused: bool = False  # rows that are too long are an error

    def add(self, location: str, error: UserError) -> None:
        kind: Kind = error.kind if isinstance(error, Unusable) else "malformed"
        begins, text = self._split(location, str(error))
        key = kind, VARYING.sub("…", text)
        if key not in self.reasons and len(self.reasons) >= REASONS:
            key, text = (kind, ""), "other reasons"
        reason = self.reasons.setdefault(key, Reason(kind, text, location, begins))
        reason.rows += 1
        if isinstance(error, TooLong):
            reason.longest, reason.hint = max(reason.longest, error.tokens), error.hint
            self.refused |= error.refused

    def merge(self, other: LeftOut) -> None:
        """Count what another process left out of later rows."""
        for key, reason in other.reasons.items():
            if key not in self.reasons and len(self.reasons) >= REASONS:
                key = reason.kind, ""
            known = self.reasons.setdefault(key, replace(reason, rows=0))
            known.rows += reason.rows
            known.longest = max(known.longest, reason.longest)
        self.refused |= other.refused

    @staticmethod
    def _split(location: str, text: str) -> tuple[str, str]:
        """(what follows the location, the reason), of a text that may begin with the location, and that with a path."""
        text = text.partition(location)[2] or text
        reason = text.lstrip(": ")
        return text[: len(text) - len(reason)] or ": ", reason

    def rows(self, *kinds: Kind) -> int:
        """How many rows are left out, or those of some kinds."""
        return sum(reason.rows for reason in self.reasons.values() if not kinds or reason.kind in kinds)

    def check(self, total: int, ways: str = "") -> None:
        """Raise `UserError` for too many of `total` rows. `ways`: what to do if all are malformed."""
        bad, long, allowed = self.rows("malformed"), self.rows("too long"), self.allowed(total)
        if bad > allowed:
            few = f", more than --max-bad-rows {self.max_bad_rows:g} allows"
            more = f"Leave them out: --max-bad-rows {bad}"
            self._refuse(self._of("malformed"), f"{bad:,} of {total:,} rows can't be used", few, more, total, ways)
        if long and (self.refused or long > max(total * MAX_TOO_LONG, allowed)):
            half = "" if self.refused else ", more than half"
            [found, *_] = self._of("too long")
            raise BadData(f"{self.source}: {long:,} of {total:,} rows are too long{half}: {found}. {found.hint}")
        if self.reasons and self.rows() >= total:
            self._refuse(self._of(), f"None of {total:,} rows can be used", "", "", total, ways)

    def allowed(self, total: int) -> float:
        """How many of `total` rows may be malformed."""
        return self.max_bad_rows if self.max_bad_rows >= 1 else self.max_bad_rows * total

    def _refuse(self, found: list[Reason], count: str, few: str, more: str, total: int, ways: str) -> None:
        if self.rows() >= total:
            few, more = "", ways if found[0].kind == "malformed" else found[0].hint
        others = "".join(f"\n  {reason.rows:,} of them: {reason}" for reason in found[1:SHOWN])
        message = f"{found[0].first}{found[0].begins}{found[0].text}. {count}{few}. {more}".rstrip() + others
        raise BadData(message, alike=found[0].kind == "nothing to learn")

    def _of(self, *kinds: Kind) -> list[Reason]:
        """The reasons, or those of some kinds, the most frequent first."""
        found = [reason for reason in self.reasons.values() if not kinds or reason.kind in kinds]
        return sorted(found, key=lambda reason: (-reason.rows, reason.kind, reason.text))

    def warnings(self, total: int) -> list[str]:
        """A line for each reason."""
        found = self._of()
        lines = [f"{self.source}: left out {reason.rows:,} of {total:,} rows: {reason}" for reason in found[:SHOWN]]
        more = sum(reason.rows for reason in found[SHOWN:])
        others = f"{self.source}: left out {more:,} of {total:,} rows for {len(found) - SHOWN} other reasons"
        return [*lines, others] if more else lines

    def to_dict(self) -> list[dict[str, Any]]:
        """Plain data of every reason."""
        return [{k: v for k, v in asdict(reason).items() if v and k not in ("begins", "hint")} for reason in self._of()]
