"""Statistics of scores: pure functions on numbers, with results for JSON. Needs no torch.

Intervals are of 95% and over prompts: several answers to one prompt are not independent, so they are averaged first.
Correlations are Spearman's, of ranks, so that one huge score or one very long answer does not determine them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import StatisticsError, correlation, fmean, pstdev
from typing import Any

BINS = 10
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over `prompts` prompts with its interval, which is None for a single prompt."""

    mean: float
    low: float | None
    high: float | None
    prompts: int


def mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def bootstrap_mean(values: Sequence[float], seed: int) -> Estimate | None:
    """The mean of the values, one a prompt (a score, or a difference of two), with the percentile interval of a
    bootstrap over prompts.
    """
    average = mean(values)
    if average is None:
        return None
    count = len(values)
    if count == 1:
        return Estimate(average, None, None, 1)
    rng = random.Random(seed)
    means = sorted(math.fsum(rng.choices(values, k=count)) / count for _ in range(RESAMPLES))
    cut = round(0.025 * RESAMPLES)
    return Estimate(average, means[cut - 1], means[-cut], count)


def same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


def without_self(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Means on held-out pairs, where the accuracy of a model that is its own reference is None: it prefers no answer to
    itself, and its margins are all 0.
    """
    alike = {"rewards/accuracies"} & {*metrics} if metrics.get("rewards/margins") == 0 else ()
    return {**metrics, **dict.fromkeys(alike)}


def summary(scores: Sequence[float]) -> dict[str, float | None]:
    """`mean`, `std` (divided by the number of scores, not by one less), `min` and `max`: None without scores."""
    if not scores:
        return dict.fromkeys(("mean", "std", "min", "max"))
    return {"mean": fmean(scores), "std": pstdev(scores), "min": min(scores), "max": max(scores)}


def histogram(scores: Sequence[float], limits: tuple[float, float] | None = None) -> dict[str, Any] | None:
    """`counts` of the scores in each of `BINS` equal parts from `low` to `high`; the last part has its upper edge.

    From `limits` if all scores are within them, else from the lowest score to the highest.
    """
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
    return {"low": low, "high": high, "counts": counts}


def groups(scores: Sequence[float | None], names: Sequence[Hashable]) -> dict[str, int]:
    """The number of groups with two scores or more, and of those that differ. `names[i]` is the group of row i."""
    members: dict[Hashable, list[float]] = {}
    for score, name in zip(scores, names, strict=True):
        if score is not None:
            members.setdefault(name, []).append(score)
    compared = [each for each in members.values() if len(each) > 1]
    return {"compared": len(compared), "with_signal": sum(not same(min(each), max(each)) for each in compared)}


def pairs(chosen: Sequence[float | None], rejected: Sequence[float | None]) -> dict[str, int]:
    """How often the chosen answer scores above, as much as, and below the rejected one, where both have a score."""
    both = [(a, b) for a, b in zip(chosen, rejected, strict=True) if a is not None and b is not None]
    tied = sum(same(a, b) for a, b in both)
    higher = sum(a > b and not same(a, b) for a, b in both)
    return {"chosen_higher": higher, "tied": tied, "rejected_higher": len(both) - tied - higher}


def spearman(a: Sequence[float | None], b: Sequence[float | None]) -> float | None:
    """Rank correlation over the rows that have both. None for fewer than three, or where one never changes."""
    both = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if len(both) < 3:
        return None
    try:
        return correlation(_ranks([x for x, _ in both]), _ranks([y for _, y in both]))
    except StatisticsError:  # one of them is constant
        return None


def _ranks(values: Sequence[float]) -> list[float]:
    """1 for the lowest; equal values share the mean of their ranks."""
    order = sorted(values)
    first = {value: i for i, value in reversed(list(enumerate(order, start=1)))}
    last = {value: i for i, value in enumerate(order, start=1)}
    return [(first[value] + last[value]) / 2 for value in values]
