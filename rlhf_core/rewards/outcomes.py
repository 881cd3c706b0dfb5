"""The outcome of each row: a score, `None` (the reward does not apply) or an error. Needs no torch."""

from __future__ import annotations

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_core.errors import UserError, describe

Inputs = tuple[dict[str, list[Any]], dict[str, Any]]  # the data's columns, TRL's names
ERROR_WIDTH = 200  # characters of an error in a summary


class WorkerDied(RuntimeError):
    """The worker's process ended while it had a batch."""


class OutOfTime(TimeoutError):
    """The reward was stopped because it took longer than its timeout."""


class RewardFailed(RuntimeError):
    """The reward raised in its worker: the message has the exception's type and text."""


class WrongResult(RuntimeError):
    """The reward did not return one score for each row."""


@dataclass
class Column:
    """One reward's outcome for a batch: `scores[i]` is a number or None, `errors[i]` says why row i failed, or is None.

    `raised`: the function itself raised, so its rows may be tried one by one. `waited`: it was slow, with the CPU idle.
    """

    scores: list[float | None]
    errors: list[str | None]
    timed_out: int = 0
    seconds: float = 0.0
    raised: bool = False
    waited: bool = False

    @property
    def failed(self) -> int:
        return sum(error is not None for error in self.errors)


def score(call: Callable[..., Any], fresh: Callable[[], Inputs], size: int, *, batchwise: bool) -> Column:
    """One call for the batch. If it raised and is not `batchwise`, one call for each row."""
    started = time.perf_counter()
    column = attempt(call, fresh(), size)
    if column.raised and size > 1 and not batchwise:
        inputs = fresh()
        column = join([attempt(call, only_row(inputs, i), 1) for i in range(size)])
    column.seconds = time.perf_counter() - started
    return column


def attempt(call: Callable[..., Any], inputs: Inputs, size: int) -> Column:
    """One call. An exception becomes the error of every row."""
    try:
        return check(call(*inputs), size)
    except (Exception, SystemExit) as error:  # a reward may raise anything
        return failure(error, size)


def failure(error: BaseException, size: int) -> Column:
    """All rows failed with `error`."""
    ours = isinstance(error, OutOfTime | WorkerDied | WrongResult | UserError)
    message = str(error) if ours or isinstance(error, RewardFailed) else describe(error)
    if isinstance(error, OutOfTime):
        message = f"timeout: {message}"
    timed_out = size if isinstance(error, TimeoutError) else 0
    return Column([None] * size, [message] * size, timed_out, raised=not ours)


def check(result: Any, size: int) -> Column:
    """The outcome of each row from a function's result. Raises `WrongResult`."""
    column = Column([None] * size, [None] * size)
    for i, value in enumerate(as_list(result, size)):
        if value is not None:
            column.scores[i], column.errors[i] = _number(value)
    return column


def as_list(result: Any, size: int) -> list[Any]:
    """The values in `result`. Raises `WrongResult` unless they are `size`."""
    try:
        values = None if isinstance(result, str | bytes | Mapping) else iter(result)
    except TypeError:
        values = None
    if values is None:
        raise WrongResult(f"returned {type(result).__name__}, not a list of {size} scores")
    values = list(values)
    if len(values) != size:
        raise WrongResult(f"returned {len(values)} scores for {size} completions")
    return values


def _number(value: Any) -> tuple[float | None, str | None]:
    """(score, None) or (None, error)."""
    if isinstance(value, str | bytes):
        return None, f"{value!r:.80} is text, not a number"
    try:
        score = float(value)
    except OverflowError:
        return None, "an integer too large for a number"
    except Exception:  # a tensor of several values, or any other object that a reward returns
        return None, f"{value!r:.80} is {type(value).__name__}, not a number"
    return (score, None) if math.isfinite(score) else (None, f"{score} is not a finite number")


def join(parts: Sequence[Column]) -> Column:
    """One column of rows that were scored one by one, or in batches."""
    return Column(
        [score for part in parts for score in part.scores],
        [error for part in parts for error in part.errors],
        sum(part.timed_out for part in parts),
        sum(part.seconds for part in parts),
    )


def blank(columns: Sequence[Column]) -> None:
    """Remove a row with an error from every column: in a sum before normalization, one None would act as a zero."""
    for i, errors in enumerate(zip(*(column.errors for column in columns), strict=True)):
        if any(error is not None for error in errors):
            for column in columns:
                column.scores[i] = None


def only_row(inputs: Inputs, i: int) -> Inputs:
    """The inputs of row `i` alone."""
    columns, trl = inputs
    alone = {key: [trl[key][i]] for key in ("prompts", "completions", "completion_ids")}
    return {key: [values[i]] for key, values in columns.items()}, {**trl, **alone}


def failures(errors: Path, samples: Path) -> list[str]:
    """A line for each reward that failed in a run, from the run's reward_errors.jsonl and samples.jsonl."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    with errors.open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
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
