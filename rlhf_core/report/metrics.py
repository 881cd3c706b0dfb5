"""metrics.jsonl as columns of bounded length, whatever the length of the run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rlhf_core.ui.text import shown

POINTS = 2000  # of a curve, at most
MOST_STEPS = 1 << 53  # beyond which JavaScript can't count
NO_CURVES = ("step", "time", "epoch")
LARGEST = 1e300  # of a number
SUMMARY = "train_runtime"  # a key of the line at a run's end, whose figures are of the run as a whole


def finite(value: Any) -> float | None:
    """A number that a page can show; None for what is none, is infinite, or too large to be counted with."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= LARGEST else None


class Curves:
    """Metrics by step. With more than `points` steps, which is even, a point is the mean of several that follow each
    other, at the last one's step.
    """

    def __init__(self, points: int = POINTS) -> None:
        self.points = points
        self.steps: list[int] = []
        self.columns: dict[str, list[float | None]] = {}
        self._each, self._taken = 1, 0  # steps to a point; those that the last point has
        self._counts: dict[str, int] = {}  # values in the last point

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a line of metrics. Several lines of one step are one."""
        step = row.get("step")
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < MOST_STEPS or SUMMARY in row:
            return
        if not self.steps or step != self.steps[-1]:
            self._next(step)
        self.steps[-1] = step
        for name, given in row.items():
            if name in NO_CURVES or (value := finite(given)) is None:
                continue
            column = self.columns.setdefault(name, [])
            column.extend([None] * (len(self.steps) - len(column)))
            count = self._counts.get(name, 0)
            before = column[-1]
            column[-1] = value if before is None else before + (value - before) / (count + 1)
            self._counts[name] = count + 1

    def _next(self, step: int) -> None:
        """Begin a step: in the last point, if that has room, else in a new one."""
        if self.steps and self._taken < self._each:
            self._taken += 1
            return
        if len(self.steps) == self.points:
            self.steps = self.steps[1::2]
            self.columns = {name: list(_halved(self._filled(column))) for name, column in self.columns.items()}
            self._each *= 2
        self.steps.append(step)
        self._taken, self._counts = 1, {}

    def _filled(self, column: list[float | None]) -> list[float | None]:
        return column + [None] * (self.points - len(column))

    def plain(self) -> dict[str, Any]:
        """As JSON, with the digits that a curve can show."""
        return {
            "steps": self.steps,
            "columns": {name: [_rounded(value) for value in column] for name, column in self.columns.items()},
        }


def read_curves(lines: Iterable[Mapping[str, Any]], points: int = POINTS) -> Curves:
    """The curves of lines of metrics, the names as they are shown."""
    curves = Curves(points)
    for row in lines:
        curves.add(row)
    curves.columns = {shown(name): column for name, column in curves.columns.items()}
    return curves


def _halved(column: list[float | None]) -> Iterator[float | None]:
    """The mean of every two values that follow each other."""
    for one, other in zip(column[::2], column[1::2], strict=True):
        known = [value for value in (one, other) if value is not None]
        yield sum(known) / len(known) if known else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
