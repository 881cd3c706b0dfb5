"""What a reward said of each row: a score, `None` (does not apply) or an error. Needs no torch."""

from __future__ import annotations

import json
import math
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
    """The reward raised, in its worker. The message has the exception's type and text."""


class WrongResult(RuntimeError):
    """The reward returned something that is not one score for each row."""


@dataclass
class Column:
    """What one reward said of a batch. `scores[i]` is a number or None; `errors[i]` says why it failed, or is None.

    `raised`: the function itself raised, so its rows may be tried one by one. `waited`: it took long with the processor
    idle.
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


def attempt(call: Callable[..., Any], inputs: Inputs, size: int) -> Column:
    """One call. Whatever goes wrong in it becomes the rows' errors."""
    try:
        return check(call(*inputs), size)
    except (Exception, SystemExit) as error:  # a reward may raise anything
        return failure(error, size)


def failure(error: BaseException, size: int) -> Column:
    """All rows failed with `error`. `raised` says that the function did so itself and may be asked row by row."""
    if isinstance(error, OutOfTime):
        return Column([None] * size, [f"timeout: {error}"] * size, timed_out=size)
    if isinstance(error, WorkerDied | WrongResult | UserError):
        return Column([None] * size, [str(error)] * size)
    message = str(error) if isinstance(error, RewardFailed) else describe(error)
    timed_out = size if isinstance(error, TimeoutError) else 0
    return Column([None] * size, [message] * size, timed_out=timed_out, raised=True)


def check(result: Any, size: int) -> Column:
    """Sort a function's result into scores, rows it does not apply to, and errors. Raises `WrongResult`."""
    column = Column([None] * size, [None] * size)
    for i, value in enumerate(as_list(result, size)):
        if value is not None:
            column.scores[i], column.errors[i] = _number(value)
    return column


def as_list(result: Any, size: int) -> list[Any]:
    """The values in `result`. Raises `WrongResult` unless they are `size`."""
    wrong_type = WrongResult(f"returned {type(result).__name__}, not a list of {size} scores")
    if isinstance(result, str | bytes | Mapping):
        raise wrong_type
    try:
        iterator = iter(result)
    except TypeError:
        raise wrong_type from None
    values = list(iterator)
    if len(values) != size:
        raise WrongResult(f"returned {len(values)} scores for {size} completions")
    return values


def _number(value: Any) -> tuple[float | None, str | None]:
    """(score, None) or (None, what is wrong with it)."""
    if isinstance(value, str | bytes):
        return None, f"{value!r:.80} is text, not a number"
    try:
        score = float(value)
    except OverflowError:
        return None, "an integer too large for a number"
    except Exception:  # a tensor of several values raises a RuntimeError, an object of the reward's own anything
        return None, f"{value!r:.80} is {type(value).__name__}, not a number"
    return (score, None) if math.isfinite(score) else (None, f"{score} is not a finite number")


def attempt_rows(call: Callable[..., Any], inputs: Inputs, size: int) -> Column:
    """One call for each row, one after the other."""
    return join([attempt(call, only_row(inputs, i), 1) for i in range(size)])


def join(rows: Sequence[Column]) -> Column:
    """One column of rows that were scored one by one."""
    return Column(
        [row.scores[0] for row in rows], [row.errors[0] for row in rows], timed_out=sum(row.timed_out for row in rows)
    )


def blank(columns: Sequence[Column]) -> None:
    """Leave a row with an error out of every column: summed before it is normalized, one None would act as a zero."""
    for i in range(len(columns[0].scores) if columns else 0):
        if any(column.errors[i] is not None for column in columns):
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
            found[row["reward"]][row["error"].splitlines()[0] if row["error"] else ""] += 1
    if not found:
        return []
    with samples.open("rb") as lines_of_samples:
        seen = sum(1 for _ in lines_of_samples)
    return [
        f"Reward {name!r} failed on {kinds.total():,} of {seen:,} rows, most often: "
        f"{kinds.most_common(1)[0][0]:.{ERROR_WIDTH}}"
        for name, kinds in found.items()
    ]
