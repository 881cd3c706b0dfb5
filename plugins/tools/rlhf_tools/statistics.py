"""Statistics of two models that answered the same prompts. Pure functions on numbers.

All intervals are of 95% and over prompts: several answers to one prompt are not independent, so they are averaged
first. They hold for other prompts from the same source, answered by the same two models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_core.commands import mean, same

Z = 1.959964  # of a normal distribution, 95% lie within
SIMILAR = 0.1  # two answers are of similar length if the shorter is at most this share shorter
ENOUGH = 10  # prompts with answers of similar length that are needed for a statement


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt: their scores and their lengths in characters."""

    prompt: int
    first_score: float
    score: float
    first_length: int
    length: int

    @property
    def outcome(self) -> float:
        """1.0 won, 0.5 tied, 0.0 lost, as the second answer sees it."""
        if same(self.score, self.first_score):
            return 0.5
        return float(self.score > self.first_score)

    @property
    def is_like(self) -> bool:
        """Whether the two answers are of similar length."""
        return abs(self.length - self.first_length) <= SIMILAR * max(self.length, self.first_length)


@dataclass(frozen=True)
class WinRate:
    """Wins and half of the ties as a share of all pairs, each prompt counting the same."""

    rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    prompts: int

    @property
    def decided(self) -> int:
        """1: above 50%, -1: below, 0: the interval contains 50%."""
        return int(self.low > 0.5) - int(self.high < 0.5)


def win_rate(pairs: Sequence[Pair]) -> WinRate | None:
    """The win rate with the adjusted Wald interval of Bonett and Price (2012) for paired proportions.

    One win and one loss are added before mean and variance are taken, so that neither a clean sweep nor ties alone have
    an interval without width. It uses the observed variance, so ties narrow it, as they should.
    """
    outcomes: dict[int, list[float]] = {}
    for pair in pairs:
        outcomes.setdefault(pair.prompt, []).append(pair.outcome)
    if not outcomes:
        return None
    each = [sum(values) / len(values) for values in outcomes.values()]
    adjusted = [*each, 1.0, 0.0]
    centre = sum(adjusted) / len(adjusted)
    variance = sum((value - centre) ** 2 for value in adjusted) / len(adjusted)
    half = Z * math.sqrt(variance / len(adjusted))
    wins, ties, losses = (sum(pair.outcome == kind for pair in pairs) for kind in (1.0, 0.5, 0.0))
    rate = sum(each) / len(each)
    return WinRate(rate, max(0.0, centre - half), min(1.0, centre + half), wins, ties, losses, len(each))


@dataclass(frozen=True)
class Length:
    """How length and score are related. `ratio` is of mean lengths, the second's to the first's; `like` is the win rate
    among pairs of similar length; `longer_wins` how often the longer of two answers of different length scores higher,
    ties as half, None if there are none.
    """

    ratio: float | None
    like: WinRate | None
    longer_wins: float | None


def length_effect(pairs: Sequence[Pair]) -> Length:
    first = sum(pair.first_length for pair in pairs)
    unlike = [pair for pair in pairs if not pair.is_like]
    longer = [pair.outcome if pair.length > pair.first_length else 1 - pair.outcome for pair in unlike]
    return Length(
        sum(pair.length for pair in pairs) / first if first else None,
        win_rate([pair for pair in pairs if pair.is_like]),
        mean(longer),
    )


def length_note(name: str, wins: WinRate, length: Length) -> str | None:
    """What a reader should know about length before trusting the win rate; None if lengths are about the same."""
    if length.ratio is None or 1 - SIMILAR <= length.ratio <= 1 / (1 - SIMILAR):
        return None
    said = f"{name}: its answers are {_times(length.ratio)} as long"
    if length.longer_wins is not None:
        said += f", and where lengths differ the longer answer scores higher in {percent(length.longer_wins)}"
    like = length.like
    if like is None or like.prompts < ENOUGH:
        count = like.prompts if like else 0
        return (
            f"{said}. Only {count} of {wins.prompts} prompts have answers of similar length "
            f"(within {percent(SIMILAR)}): too few to tell whether length explains the win rate."
        )
    return (
        f"{said}. Among answers of similar length (within {percent(SIMILAR)}; {like.prompts} prompts) it wins "
        f"{percent(like.rate)} ({percent(like.low)} to {percent(like.high)}): {_verdict(wins, like)}."
    )


def _verdict(wins: WinRate, like: WinRate) -> str:
    if wins.decided == 0:
        return (
            "a difference that all answers together do not show" if like.decided else "no clear difference there either"
        )
    if like.decided == wins.decided:
        return "length does not explain the difference"
    if like.decided == -wins.decided:
        return "length explains the difference, which is the opposite at similar length"
    if abs(like.rate - 0.5) < abs(wins.rate - 0.5) / 2:
        return "length may explain the difference"
    return "too few to tell whether length explains the difference"


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times" if ratio > 1 else percent(ratio)


def percent(share: float) -> str:
    return f"{share:.0%}"
