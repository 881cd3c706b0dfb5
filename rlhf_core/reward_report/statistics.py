"""What can be said of scores before training. Pure functions on numbers.

Correlations are Spearman's: of ranks, so that one huge score or one very long answer does not make them, and any steady
rise counts as one, straight or not.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

BINS = 10


@dataclass(frozen=True)
class Summary:
    """`std` is of these scores as they are (divided by their number, not by one less)."""

    mean: float
    std: float
    min: float
    max: float

    @property
    def constant(self) -> bool:
        return same(self.min, self.max)


@dataclass(frozen=True)
class Histogram:
    """How many scores fall into each of `BINS` equal parts from `low` to `high`; the last part has its upper edge."""

    low: float
    high: float
    counts: list[int]


@dataclass(frozen=True)
class Groups:
    """Of the groups with two scores or more, those whose scores differ: GRPO learns from no others."""

    compared: int
    with_signal: int


@dataclass(frozen=True)
class Pairs:
    """How often the chosen answer of a pair scores above, as much as, and below the rejected one."""

    chosen_higher: int
    tied: int
    rejected_higher: int

    @property
    def total(self) -> int:
        return self.chosen_higher + self.tied + self.rejected_higher


def same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


def summarize(scores: Sequence[float]) -> Summary | None:
    """None where there are no scores."""
    if not scores:
        return None
    mean = math.fsum(scores) / len(scores)
    variance = math.fsum((score - mean) ** 2 for score in scores) / len(scores)
    return Summary(mean, math.sqrt(variance), min(scores), max(scores))


def histogram(scores: Sequence[float], limits: tuple[float, float] | None = None) -> Histogram | None:
    """Over `limits` where all scores lie within, else from the lowest score to the highest."""
    if not scores:
        return None
    low, high = min(scores), max(scores)
    if limits and limits[0] <= low and high <= limits[1]:
        low, high = limits
    counts = [0] * BINS
    for score in scores:
        # Rounded, since -0.8 between -1 and 1 comes out as 0.9999999999999998 and begins the second part.
        part = round((score - low) / (high - low) * BINS, 9) if high > low else 0
        counts[min(BINS - 1, int(part))] += 1
    return Histogram(low, high, counts)


def groups(scores: Sequence[float | None], names: Sequence[Hashable]) -> Groups:
    """`names[i]` is the group of `scores[i]`."""
    members: dict[Hashable, list[float]] = {}
    for score, name in zip(scores, names, strict=True):
        if score is not None:
            members.setdefault(name, []).append(score)
    compared = [each for each in members.values() if len(each) > 1]
    return Groups(len(compared), sum(not same(min(each), max(each)) for each in compared))


def pairs(chosen: Sequence[float | None], rejected: Sequence[float | None]) -> Pairs:
    """Over the pairs of which both have a score."""
    both = [(a, b) for a, b in zip(chosen, rejected, strict=True) if a is not None and b is not None]
    tied = sum(same(a, b) for a, b in both)
    higher = sum(a > b and not same(a, b) for a, b in both)
    return Pairs(higher, tied, len(both) - tied - higher)


def spearman(a: Sequence[float | None], b: Sequence[float | None]) -> float | None:
    """Rank correlation over the rows where both are there. None for fewer than three, or where one never changes."""
    both = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if len(both) < 3:
        return None
    first, second = ranks([x for x, _ in both]), ranks([y for _, y in both])
    middle = (len(both) + 1) / 2
    spread = math.sqrt(sum((x - middle) ** 2 for x in first) * sum((y - middle) ** 2 for y in second))
    if spread == 0:
        return None
    return sum((x - middle) * (y - middle) for x, y in zip(first, second, strict=True)) / spread


def ranks(values: Sequence[float]) -> list[float]:
    """1 for the lowest; equal values share the mean of their places."""
    order = sorted(range(len(values)), key=values.__getitem__)
    result = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for place in order[start:end]:
            result[place] = (start + 1 + end) / 2
        start = end
    return result
