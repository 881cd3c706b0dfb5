"""How far two judges of pairs agree: pure functions of verdicts, with results for JSON.

A verdict is 1 (the first answer is better), -1 (the second) or 0 (a tie); None where there is none. Agreement is given
with ties as a class of their own, and of the pairs alone that both decide. Where one side is always the better one, as
the chosen answer of a file, put the two answers of a pair in an order of their own (`data.labels.own_order`): kappa
compares with what judges would agree on by chance, and a judge who always says the same agrees by chance alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

Z = 1.959963984540054  # of an interval of 95%


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


def wilson(successes: float, count: int) -> tuple[float, float] | None:
    """The interval of 95% of a share (Wilson, 1927: https://doi.org/10.1080/01621459.1927.10502953); None of none."""
    if not count:
        return None
    share, square = successes / count, Z * Z
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = Z / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def share(successes: int, count: int, independent: int | None = None) -> dict[str, Any]:
    """A share with its interval. `independent`: how many of the cases are, such as prompts with several pairs."""
    given = independent if independent is not None else count
    interval = wilson(successes / count * given, given) if count else None
    low, high = interval or (None, None)
    return {"count": count, "share": successes / count if count else None, "low": low, "high": high}


def cohen_kappa(one: Sequence[Hashable], other: Sequence[Hashable]) -> float | None:
    """Cohen's kappa of two judges (1960: https://doi.org/10.1177/001316446002000104): the agreement beyond what chance
    gives two judges with these shares of each class. None where both always say the same, or of nothing.
    """
    count = len(one)
    if not count:
        return None
    observed = sum(a == b for a, b in zip(one, other, strict=True)) / count
    shares, others = Counter(one), Counter(other)
    expected = sum(shares[value] * others[value] for value in shares) / (count * count)
    return None if expected == 1 else (observed - expected) / (1 - expected)


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha for names (Computing Krippendorff's Alpha-Reliability, 2011:
    https://repository.upenn.edu/asc_papers/43). `units` are the verdicts of each pair, of any number of labellers; a
    pair with one says nothing. 1 is agreement, 0 what chance gives. None where nobody disagrees for want of classes.
    """
    together: dict[Hashable, float] = {}  # how often each value is in a unit with another
    disagreement = 0.0
    for unit in units:
        count = len(unit)
        if count < 2:
            continue
        values = Counter(unit)
        for value, times in values.items():
            together[value] = together.get(value, 0.0) + times
            disagreement += times * (count - times) / (count - 1)
    total = sum(together.values())
    expected = sum(n * (total - n) for n in together.values())
    return 1 - (total - 1) * disagreement / expected if expected else None


def agreement(
    one: Sequence[int | None], other: Sequence[int | None], prompts: Sequence[Hashable] | None = None
) -> dict[str, Any]:
    """How far two judges agree on the pairs that both have a verdict on: with ties, and without them. Intervals take
    pairs of one of the `prompts` as one case.
    """
    both = [
        (a, b, prompt)
        for a, b, prompt in zip(one, other, prompts or range(len(one)), strict=True)
        if a is not None and b is not None
    ]
    decided = [each for each in both if each[0] and each[1]]

    def measured(pairs: list[tuple[int, int, Hashable]]) -> dict[str, Any]:
        agree = sum(a == b for a, b, _ in pairs)
        found = share(agree, len(pairs), len({prompt for _, _, prompt in pairs}))
        kappa = cohen_kappa([a for a, _, _ in pairs], [b for _, b, _ in pairs])
        return {"pairs": len(pairs), "agree": agree, "accuracy": found["share"]} | {
            "low": found["low"], "high": found["high"], "kappa": kappa,
        }  # fmt: skip

    return {
        "with_ties": measured(both),
        "without_ties": measured(decided),
        "ties": [sum(a == 0 for a, _, _ in both), sum(b == 0 for _, b, _ in both)],
        "prompts": len({prompt for _, _, prompt in both}),
    }


def length_bias(verdicts: Sequence[int | None], lengths: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """How often the longer answer wins, of the pairs that are decided and whose lengths differ."""
    won = [sign(a - b) == verdict for verdict, (a, b) in zip(verdicts, lengths, strict=True) if verdict and a != b]
    return share(sum(won), len(won))


def first_shown_bias(verdicts: Sequence[int | None], shown_first: Sequence[int]) -> dict[str, Any]:
    """How often the answer that was shown first wins, of the pairs that are decided. `shown_first`: 1 if that was the
    first answer, else -1. Half is no bias.
    """
    won = [verdict == shown for verdict, shown in zip(verdicts, shown_first, strict=True) if verdict]
    return share(sum(won), len(won))


def order_bias(orders: Sequence[tuple[float | None, float | None]]) -> dict[str, Any]:
    """Of a judge that was asked in both orders, with the verdicts (both from the first answer's side) of the first
    answer shown first and of the second one shown first: how often the two differ, how often one order decides what the
    other calls a tie, and how often the answer shown first wins, of all that were decided.
    """
    asked = [(sign(a), sign(b)) for a, b in orders if a is not None and b is not None]
    differ = sum(a != b for a, b in asked)
    first = sum(a == 1 for a, _ in asked) + sum(b == -1 for _, b in asked)
    decided = sum(a != 0 for a, _ in asked) + sum(b != 0 for _, b in asked)
    return {
        "orders_differ": share(differ, len(asked)),
        "opposite": sum(a * b == -1 for a, b in asked),
        "first_shown_wins": share(first, decided, min(decided, len(asked))),
    }


def majority(verdicts: Iterable[int]) -> int | None:
    """The verdict of more than half; None without one."""
    counts = Counter(verdicts)
    if not counts:
        return None
    [(verdict, most)] = counts.most_common(1)
    return verdict if 2 * most > counts.total() else None
