"""What a diagnosis is, what it finds, and the statistics that several of them use."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from rlhf_core.diagnoses.reading import Summary

Level = Literal["error", "warning", "info"]
ERROR: Final = "error"
WARNING: Final = "warning"
INFO: Final = "info"
SAMPLING, PAIRS, ALL = ("grpo", "ppo"), ("dpo", "orpo"), ("sft", "reward_model", "ppo", "dpo", "orpo", "grpo")
AGAIN = "rlhf run --config {run}/config.yaml"  # the run once more, in a folder of its own


@dataclass(frozen=True)
class Finding:
    """`values` fill the command; `evidence` are lines of numbers and steps; `samples` are up to three."""

    evidence: Sequence[str]
    values: Mapping[str, Any] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Diagnosis:
    """`says` what is wrong and `remedy` what to do, one sentence each; `command` is what to type next.

    `methods` are those in which it can be found, `unless` the names of what would explain it: then it is not said.
    `threshold` and `source` are for the documentation.
    """

    name: str
    level: Level
    methods: tuple[str, ...]
    check: Callable[[Summary], Finding | None]
    says: str
    remedy: str
    command: str
    threshold: str
    source: str
    unless: tuple[str, ...] = ()


def number(value: float) -> str:
    return f"{value:.3g}"


def series(name: str, points: Sequence[tuple[int, float]], most: int = 5) -> str:
    """`kl: 0.5, 1.2, 3.4 (step 8-10)`: the newest of `points`, which are (step, value)."""
    shown = points[-most:]
    steps = f"step {shown[0][0]}" + (f"-{shown[-1][0]}" if len(shown) > 1 else "")
    return f"{name}: {', '.join(number(value) for _, value in shown)} ({steps})"


def mean(points: Sequence[tuple[int, float]]) -> float:
    return fmean(value for _, value in points)


def variance(values: Sequence[float]) -> float:
    """Over all values. In floats: statistics.pvariance computes with fractions, forty times as long."""
    middle = fmean(values)
    return math.fsum((value - middle) ** 2 for value in values) / len(values)


def spread(values: Sequence[float]) -> float:
    return math.sqrt(variance(values)) if len(values) > 1 else 0.0


def change(before: Sequence[float], after: Sequence[float]) -> float:
    """How many standard errors the mean of `after` is above that of `before`; 0 with fewer than two of either."""
    if len(before) < 2 or len(after) < 2:
        return 0.0
    error = math.sqrt(variance(before) / (len(before) - 1) + variance(after) / (len(after) - 1))
    difference = fmean(after) - fmean(before)
    return difference / error if error else math.copysign(math.inf, difference) if difference else 0.0


def correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's: of ranks, so that a score that is capped counts too. 0 where one of them does not vary."""
    return _pearson(_ranks(one), _ranks(other))


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 0; equal values share the mean of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or values[order[end]] != values[order[start]]:
            for i in order[start:end]:
                ranks[i] = (start + end - 1) / 2
            start = end
    return ranks


def _pearson(one: Sequence[float], other: Sequence[float]) -> float:
    if len(one) < 2:
        return 0.0
    mean_one, mean_other = fmean(one), fmean(other)
    pairs = [(a - mean_one, b - mean_other) for a, b in zip(one, other, strict=True)]
    size = math.sqrt(sum(a * a for a, _ in pairs) * sum(b * b for _, b in pairs))
    return sum(a * b for a, b in pairs) / size if size else 0.0
