"""Whether the two answers of a pair are the same, or nearly: there is little to prefer then.

Nearly is what `rlhf data stats` calls nearly the same text: 0.8 of the runs of five characters that either has are in
both. Most pairs are told apart by their lengths, or by a few runs that the other answer lacks.
"""

from __future__ import annotations

from rlhf_core.commands import SIMILAR, runs, similarity

PROBES = 12  # runs of the shorter answer that are looked for in the longer one
FOUND = 5  # of them, at least: with a similarity of 0.8 it has eight, where the differences are all over the text
RUN = 16  # characters
LONGEST = 20_000  # characters that are compared


def likeness(one: str, other: str) -> str | None:
    """`same`, `nearly` or None."""
    if one == other:
        return "same"
    short, long = sorted((one, other), key=len)
    if len(short) < 0.7 * len(long):
        return None
    short, long = plain(short), plain(long)
    if short == long:
        return "same"
    if len(short) < 2 * RUN or len(short) < SIMILAR * len(long) - RUN:
        return None
    step = max(1, (len(short) - RUN) // PROBES)
    hits = sum(short[at : at + RUN] in long for at in range(0, step * PROBES, step))
    return "nearly" if hits >= FOUND and similarity(runs(short), runs(long)) >= SIMILAR else None


def plain(text: str) -> str:
    """Without differences in spaces and capital letters."""
    return " ".join(text.casefold().split())[:LONGEST]
