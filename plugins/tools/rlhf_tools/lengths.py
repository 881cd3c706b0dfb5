"""Whether the length of two answers tells which is better. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

DECIDED = 0.9  # share of pairs from which on their length alone tells the better answer
WARNING = "the better answer is the {which} one in {share} of the pairs: a model may learn nothing but the length"


def decided_by_length(differences: Sequence[int]) -> tuple[str, float] | None:
    """("longer" or "shorter", the share of pairs in which the better answer is), if that is nearly always so.
    `differences`: the length of the better answer, less that of the other, of each pair.
    """
    for which, sign in (("longer", 1), ("shorter", -1)):
        share = sum(sign * difference > 0 for difference in differences) / max(1, len(differences))
        if share >= DECIDED:
            return which, share
    return None
