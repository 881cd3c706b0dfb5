"""Groups in the lines of samples.jsonl: what belongs together, and what is notable of it, found without parsing all."""

from __future__ import annotations

import functools
import json
import math
import mmap
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CUT = " […] "
# Of lines as samples.jsonl has them.
STEP = re.compile(rb'\{"step": (\d+)')
TOKENS = b', "tokens": '
COMPLETION, REWARDS, ERRORS = b', "completion": ', b', "rewards": {', b', "errors": {'
TEXTS = ("completion", "chosen", "rejected")


@dataclass
class Group:
    """Lines of samples.jsonl that belong together, and by what they may be notable; larger is more so. Most are never
    parsed as a whole, which would take most of the time. `rows` are those of one that is kept.
    """

    step: int
    lines: list[bytes]
    features: dict[str, float]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def shrink(self, longest: int) -> None:
        """Parse the lines, once, and leave what a page may have room for: answers of about `longest` characters."""
        self.rows = self.rows or [row for line in self.lines if (row := _sample(line)) is not None]
        self.lines = []
        for i, row in enumerate(self.rows):
            row.pop("columns", None)
            if i:
                row["prompt"] = None
            row.update({name: without_middle(row[name], longest) for name in TEXTS if name in row})


def steps_of(file: Path) -> list[tuple[int, int, int]]:
    """(step, first byte, end) of each step's lines, which stand together."""
    found: list[tuple[int, int, int]] = []
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at = 0
            while at < len(data):
                end = data.find(b"\n", at) + 1 or len(data)
                if (match := STEP.match(data, at)) is not None:
                    step = int(match[1])
                    if found and found[-1][0] == step:
                        found[-1] = (step, found[-1][1], end)
                    else:
                        found.append((step, at, end))
                at = end
    except (OSError, ValueError):  # there is none, or it is empty
        return []
    return found


def groups_of(data: bytes) -> Iterator[Group]:
    """The groups in a step's lines: one prompt's answers that follow each other, or a pair."""
    group: list[bytes] = []
    key = b""
    for line in data.splitlines():
        # What lines of one group have alike: all before the completion. Quotes within a text are escaped in JSON, so
        # this is a key. Pairs have none, and are groups of their own.
        end = line.find(COMPLETION)
        here = line[:end] if end >= 0 else line
        if here != key and group:
            yield from _group(group)
            group = []
        key = here
        group.append(line)
    if group:
        yield from _group(group)


def _group(lines: list[bytes]) -> Iterator[Group]:
    """The group of these lines, if they are samples."""
    if (match := STEP.match(lines[0])) is not None:
        yield Group(int(match[1]), lines, _features(lines))


def _features(lines: Sequence[bytes]) -> dict[str, float]:
    if COMPLETION not in lines[0]:
        row = _sample(lines[0])
        if row is None:
            return {}
        margin = rounded(row["metrics"].get("rewards/margins")) or 0.0
        return {"best": margin, "worst": -margin, "longest": float(len(row["chosen"]))}
    longest, failed, totals = 0, 0, []
    for line in lines:
        start = line.rfind(REWARDS)
        rest = line[start + len(REWARDS) - 1 :] if start >= 0 else b""
        total = _total(rest[: rest.find(b"}") + 1])
        if total is not None:
            totals.append(total)
        at = rest.rfind(TOKENS) + len(TOKENS)
        digits = rest[at : rest.find(b",", at)]
        longest = max(longest, int(digits) if digits.isdigit() else len(line))
        failed += ERRORS in rest
    found = {"longest": float(longest)}
    if totals:
        most, least = max(totals), min(totals)
        found |= {"best": most, "worst": -least, "spread": most - least}
        if len(totals) > 1 and most == least:
            found["ties"] = 1.0
    if failed:
        found["errors"] = float(failed)
    return found


@functools.lru_cache(4096)
def _total(scores: bytes) -> float | None:
    """The sum of an answer's scores, of the object that holds them."""
    try:
        values = json.loads(scores)
    except ValueError:  # a name with a bracket in it
        return None
    known = [score for score in values.values() if isinstance(score, int | float)] if isinstance(values, dict) else []
    return sum(known) if known else None


def _sample(line: bytes) -> dict[str, Any] | None:
    """The object in a line; None if it is damaged, or no sample."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int) or "prompt" not in row:
        return None
    if "chosen" in row:
        valid = isinstance(row.get("metrics"), dict) and isinstance(row["chosen"], str)
        return row if valid and isinstance(row.get("rejected"), str) else None
    return row if isinstance(row.get("completion"), str) and isinstance(row.get("rewards"), dict) else None


def without_middle(text: str, longest: int) -> str:
    head = longest * 2 // 3
    return text if len(text) <= longest else text[:head] + CUT + text[len(text) - (longest - head) :]


def rounded(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(f"{value:.4g}") if known else None
