"""The outcome of each row: a score, `None` (the reward does not apply) or an error. Needs no torch."""

from __future__ import annotations

import itertools
import math
import reprlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_core.credentials import masked
from rlhf_core.errors import RunStopped, describe
from rlhf_core.outputs import read_lines

Inputs = tuple[dict[str, list[Any]], dict[str, Any]]  # the data's columns, TRL's names
ERROR_WIDTH = 200  # characters of an error in a summary
# A larger score is an error: trainers square, weigh and sum scores in float32, which ends at 3e38.
LARGEST = 1e9
_SHORT = reprlib.Repr()  # of anything that a reward returns, also if its own `__repr__` is long or fails
_SHORT.maxstring = _SHORT.maxother = 80


@dataclass
class Column:
    """One reward's outcome for a batch: `scores[i]` is a number or None, `errors[i]` says why row i failed, or is None.

    `raised`: the function itself raised. `stopped`: it took too long. In either case its rows may be tried one by one.
    `stop_run`: why the run should end, by a row's `RunStopped`.
    """

    scores: list[float | None]
    errors: list[str | None]
    timed_out: int = 0
    seconds: float = 0.0
    raised: bool = False
    stopped: bool = False
    stop_run: str | None = None

    @property
    def failed(self) -> int:
        return sum(error is not None for error in self.errors)


def failure(message: str, size: int) -> Column:
    """All rows failed, and trying them one by one would not help."""
    return Column([None] * size, [message] * size)


def out_of_time(message: str, size: int, stopped: bool = True) -> Column:
    """All rows failed because the reward took too long. `stopped`: and it could be stopped."""
    return Column([None] * size, [f"timeout: {message}"] * size, timed_out=size, stopped=stopped)


def exception(error: BaseException, size: int) -> Column:
    """All rows failed because the function raised `error`. After a `RunStopped` they are not tried again."""
    timed_out = size if isinstance(error, TimeoutError) else 0
    stop = _stop_of([error])
    return Column([None] * size, [masked(describe(error))] * size, timed_out, raised=stop is None, stop_run=stop)


def check(result: Any, size: int) -> Column:
    """The outcome of each row from what a function returned."""
    try:
        values = None if isinstance(result, str | bytes | Mapping) else iter(result)
    except TypeError:
        values = None
    if values is None:
        return failure(f"returned {type(result).__name__}, not a list of {size} scores", size)
    found = list(itertools.islice(values, size + 1))  # a generator may never end
    if len(found) != size:
        many = len(result) if isinstance(result, Sized) else f"more than {size}" if len(found) > size else len(found)
        return failure(f"returned {many} scores for {size} completions", size)
    scored = [(None, None) if value is None else _number(value) for value in found]
    late = sum(isinstance(value, TimeoutError) for value in found)
    return Column([score for score, _ in scored], [error for _, error in scored], late, stop_run=_stop_of(found))


def _stop_of(found: Sequence[Any]) -> str | None:
    return next((masked(str(value)) for value in found if isinstance(value, RunStopped)), None)


def _number(value: Any) -> tuple[float | None, str | None]:
    """(score, None) or (None, error). An exception is the error of its row."""
    if isinstance(value, BaseException):
        return None, masked(describe(value))
    if isinstance(value, str | bytes):
        return None, f"{_SHORT.repr(value)} is text, not a number"
    try:
        score = float(value)
    except OverflowError:
        return None, "an integer too large for a number"
    except Exception:  # a tensor of several values, or any other object that a reward returns
        return None, f"{_SHORT.repr(value)[:80]} is {type(value).__name__}, not a number"
    if not math.isfinite(score):
        return None, f"{score} is not a finite number"
    return (score, None) if abs(score) <= LARGEST else (None, f"{score:g} is beyond ±{LARGEST:g}")


def join(parts: Sequence[Column]) -> Column:
    """One column of rows that were scored one by one, or in batches."""
    return Column(
        [score for part in parts for score in part.scores],
        [error for part in parts for error in part.errors],
        sum(part.timed_out for part in parts),
        sum(part.seconds for part in parts),
        stop_run=next((part.stop_run for part in parts if part.stop_run), None),
    )


def blank(columns: Sequence[Column]) -> None:
    """Remove a row with an error from every column: in a sum before normalization, one None would act as a zero."""
    for i, errors in enumerate(zip(*(column.errors for column in columns), strict=True)):
        if any(error is not None for error in errors):
            for column in columns:
                column.scores[i] = None


def weighted(columns: Sequence[Column], weights: Sequence[float]) -> list[float | None]:
    """Each row's weighted sum of the scores that it has; None where one failed, or where it has none."""
    totals: list[float | None] = [None] * len(columns[0].scores) if columns else []
    for column, weight in zip(columns, weights, strict=True):
        for i, score in enumerate(column.scores):
            if score is not None:
                totals[i] = (totals[i] or 0.0) + weight * score
    failed = {i for column in columns for i, error in enumerate(column.errors) if error is not None}
    return [None if i in failed else total for i, total in enumerate(totals)]


def failures(errors: Path, samples: Path) -> list[str]:
    """A line for each reward that failed in a run, from the run's reward_errors.jsonl and samples.jsonl."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for row in read_lines(errors):
        found[row["reward"]][row["error"].partition("\n")[0]] += 1
    if not found:
        return []
    with samples.open("rb") as lines_of_samples:
        seen = sum(1 for _ in lines_of_samples)
    return [
        f"Reward {name!r} failed on {kinds.total():,} of {seen:,} rows, most often: "
        f"{kinds.most_common(1)[0][0]:.{ERROR_WIDTH}}"
        for name, kinds in found.items()
    ]
