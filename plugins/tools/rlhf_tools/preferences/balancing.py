"""Pairs in which the chosen answer is longer about as often as shorter: `--balance-length`. Pure.

1. While one kind has more pairs, a prompt of that kind gives instead its widest pair of the other kind, if it has one
   above the margin: those prompts first whose margin shrinks least.
2. If one kind still has more, its pairs with the smallest margins are left out, until it has one more at most.

Among equals the order is drawn by the seed. Pairs of two answers of one length belong to neither kind, and stay.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlhf_tools.preferences.selecting import Pair


def balanced(pairs: Sequence[Pair], others: Mapping[int, Mapping[int, Pair]], seed: int) -> list[Pair]:
    """`pairs`, balanced, in their order. `others`: of a prompt, its widest pairs by kind (`Pair.longer`)."""
    found = list(pairs)
    surplus = sum(pair.longer for pair in found)
    more = 1 if surplus > 0 else -1
    of_more = [i for i, pair in enumerate(found) if pair.longer == more]
    random.Random(seed).shuffle(of_more)
    exchanged = {i: other for i in of_more if (other := others.get(found[i].prompt, {}).get(-more)) is not None}
    by_loss = sorted(exchanged, key=lambda i: found[i].margin - exchanged[i].margin)
    for i in by_loss[: abs(surplus) // 2]:
        found[i] = exchanged[i]
    surplus = abs(sum(pair.longer for pair in found))
    left = sorted((i for i in of_more if found[i].longer == more), key=lambda i: found[i].margin)
    without = set(left[: max(0, surplus - 1)])
    return [pair for i, pair in enumerate(found) if i not in without]
