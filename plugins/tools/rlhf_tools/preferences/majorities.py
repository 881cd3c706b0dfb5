"""A file of labels as pairs: what more than half of those who labelled a pair say of it."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_core import UserError
from rlhf_core.commands import Label, agreement, by_pair, votes
from rlhf_tools.preferences.auditing import Said


def decided(labels: Sequence[Label], source: str) -> list[Said]:
    """Raises `UserError` where no pair has a majority."""
    current = {(label.id, label.labeller): label for label in labels}.values()
    rows = []
    for same in by_pair(current).values():
        verdict = agreement.majority(votes(same))
        if verdict:
            label = same[0]
            chosen, rejected = (label.a, label.b) if verdict == label.order else (label.b, label.a)
            rows.append(Said(label.location, label.prompt, chosen, rejected))
    if not rows:
        raise UserError(f"{source}: there is no pair in it of which more than half of its labellers say the same")
    return rows
