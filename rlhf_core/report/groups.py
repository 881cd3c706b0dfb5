"""Groups in the lines of samples.jsonl: what belongs together, and what is notable of it, found without parsing all."""

from __future__ import annotations

import functools
import json
import mmap
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from rlhf_core.outputs import object_in
from rlhf_core.report.metrics import finite

CUT = " […] "
# Of lines as samples.jsonl has them.
STEP = re.compile(rb'\{"step": (\d+),')
AFTER = re.compile(rb'(\{[^}]*\})(?:.*, "tokens": (\d{1,9}),)?')  # the scores of an answer, and its length
COMPLETION, REWARDS, ERRORS = b', "completion": ', b', "rewards": {', b', "errors": {'
Weights = tuple[tuple[str, float], ...]  # of rewards, by name; 1 of those that are not in it
TEXTS = ("completion", "chosen", "rejected")


@dataclass
class Group:
    """Lines of samples.jsonl that belong together, and by what they may be notable; larger is more so. Most are never
    parsed as a whole, which would take most of the time. `rows` are those of one that is kept.
    """

    step: int
    data: bytes
    answers: int
    features: dict[str, float]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def shrink(self, longest: int) -> None:
        """Parse the lines, once, and leave what a page may have room for: answers of about `longest` characters."""
        self.rows = self.rows or [row for line in self.data.splitlines() if (row := _sample(line)) is not None]
        self.data = b""
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
            at, begins = 0, b""
            while at < len(data):
                end = data.find(b"\n", at) + 1 or len(data)
                if begins and data[at : at + len(begins)] == begins:
                    found[-1] = (found[-1][0], found[-1][1], end)
                elif (match := STEP.match(data, at)) is not None:
                    begins = match[0]
                    found.append((int(match[1]), at, end))
                at = end
    except (OSError, ValueError):  # there is none, or it is empty
        return []
    return found


def read_all(file: Path) -> Iterator[dict[str, Any] | None]:
    """Every sample of a run, in their order; None for a line that holds none. Raises `OSError`."""
    with file.open("rb") as stream:
        for line in stream:
            if line.strip():
                yield _sample(line)


def groups_of(data: bytes, weights: Weights = ()) -> Iterator[Group]:
    """The groups in a step's lines: one prompt's answers that follow each other, or a pair."""
    at = 0
    while at < len(data):
        ends = [_end(data, at)]
        # What lines of one group have alike: all before the completion. Quotes within a text are escaped in JSON, so
        # this is a key. Pairs have none, and are groups of their own.
        completion = data.find(COMPLETION, at, ends[0])
        key = data[at : completion + len(COMPLETION)]
        while completion >= 0 and data.startswith(key, ends[-1]):
            ends.append(_end(data, ends[-1]))
        if (match := STEP.match(data, at)) is not None:
            starts = [at, *ends[:-1]]
            features = _of_answers(data, starts, ends, weights) if completion >= 0 else _of_pair(data[at : ends[0]])
            yield Group(int(match[1]), data[at : ends[-1]], len(ends), features)
        at = ends[-1]


def _end(data: bytes, at: int) -> int:
    """Where the line that begins at `at` ends."""
    return data.find(b"\n", at) + 1 or len(data)


def _of_pair(line: bytes) -> dict[str, float]:
    row = _sample(line)
    if row is None:
        return {}
    margin = rounded(row["metrics"].get("rewards/margins")) or 0.0
    return {"best": margin, "worst": -margin, "longest": float(len(row["chosen"]))}


def _of_answers(data: bytes, starts: Sequence[int], ends: Sequence[int], weights: Weights) -> dict[str, float]:
    longest, failed, totals = 0, 0, []
    for start, end in zip(starts, ends, strict=True):
        scores = data.rfind(REWARDS, start, end)
        match = AFTER.match(data, scores + len(REWARDS) - 1, end) if scores >= 0 else None
        if match is None:  # of an earlier version, or damaged
            longest = max(longest, end - start)
            continue
        if (total := _total(match[1], weights)) is not None:
            totals.append(total)
        longest = max(longest, int(match[2]) if match[2] else end - start)
        failed += data.find(ERRORS, scores, end) >= 0
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
def _total(scores: bytes, weights: Weights) -> float | None:
    """The weighted sum of an answer's scores, of the object that holds them."""
    try:
        values = json.loads(scores)
    except ValueError:  # a name with a bracket in it
        return None
    scored = {name: finite(score) for name, score in (values if isinstance(values, dict) else {}).items()}
    weight = dict(weights)
    known = [weight.get(name, 1.0) * score for name, score in scored.items() if score is not None]
    return sum(known) if known else None


def _sample(line: bytes) -> dict[str, Any] | None:
    """The object in a line; None if it is damaged, or no sample."""
    try:
        row = from_json(line)  # takes half the time, and refuses halves of characters
    except ValueError:
        row = object_in(line)
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
    known = finite(value)
    return None if known is None else float(f"{known:.4g}")
