"""A file of labels as pairs: what more than half of those who labelled a pair say of it."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_core import UserError
from rlhf_core.commands import Label, agreement, by_pair, current_labels, votes
from rlhf_tools.preferences.auditing import Said


def pairs_in(labels: Sequence[Label], source: str) -> list[Said]:
    """All pairs that are labelled; those without a majority, or with one for a tie, say nothing (`decided`).

    Raises `UserError` for a file without a label.
    """
    rows = []
    for same in by_pair(current_labels(labels)).values():
        verdict, label = agreement.majority(votes(same)), same[0]
        turned = bool(verdict) and verdict != label.order
        chosen, rejected = (label.b, label.a) if turned else (label.a, label.b)
        rows.append(Said(label.location, label.prompt, chosen, rejected, decided=bool(verdict)))
    if not rows:
        raise UserError(f"{source}: there is no label in it")
    return rows
