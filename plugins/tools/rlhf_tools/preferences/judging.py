"""A reward as the judge of pairs: its verdict on each, beside the file and beside people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_core import Planned, RunStopped
from rlhf_core.commands import (
    Answer,
    Answers,
    BoundReward,
    Label,
    agreement,
    by_pair,
    compare_answers,
    current_labels,
    pair_id,
    said_before,
    score_answers,
    text_of,
    verdicts,
    votes,
)
from rlhf_tools.preferences.auditing import Said, key
from rlhf_tools.preferences.words import say

SOME = 64  # rows by whose lengths the cost is estimated


def planned(reward: BoundReward, rows: Sequence[Said]) -> list[tuple[str, str]]:
    """(label, text) of what a judge says of all that it will be asked. Raises `UserError` for one that can't work."""
    length = max(len(_text(row.chosen)) for row in rows[:SOME])
    comparisons = 0 if reward.reward.pairwise is None else 2 * len(rows)
    asked = Planned([row.prompt for row in rows[:SOME]], 2 * len(rows), length, 2, comparisons)
    return said_before([reward], asked)


def judged(
    reward: BoundReward, rows: Sequence[Said], labels: Sequence[Label], progress: Any, lang: str
) -> tuple[dict[str, Any], list[int | None]]:
    """(how far a judge agrees with the file and with people, its verdict on each row: 1 for the chosen answer).

    One that compares two answers is asked that, in both orders; any other scores both. `stopped` is why it stopped, as
    where its budget is spent.
    """
    doing = say(lang, "{name} judges {count:,} pairs …", name=reward.name, count=len(rows))
    progress(doing, 0.0)
    found: dict[str, Any] = {"name": reward.name, "spec": str(reward.spec), "stopped": None}
    if reward.reward.pairwise is not None:
        try:
            said, more = _compared(reward, rows, lambda done: progress(doing, done / len(rows)))
        except RunStopped as error:
            said, more = [None] * len(rows), {"stopped": str(error)}
        found |= more
    else:
        said, found["stopped"] = _scored(reward, rows)
    sides = [row.order for row in rows]
    prompts = [key(row.prompt) for row in rows]
    own = [None if verdict is None else verdict * side for verdict, side in zip(said, sides, strict=True)]
    lengths = [(len(text_of(row.chosen)), len(text_of(row.rejected))) for row in rows]
    return found | {
        "without_verdict": sum(verdict is None for verdict in said),
        "longer_wins": agreement.length_bias(said, lengths),
        "file": agreement.agreement(sides, own, prompts),
        "people": agreement.agreement(people_of(rows, labels), own, prompts) if labels else None,
    }, said


def people_of(rows: Sequence[Said], labels: Sequence[Label]) -> list[int | None]:
    """What people say of each row, in the own order of its answers."""
    majorities = {name: agreement.majority(votes(same)) for name, same in by_pair(current_labels(labels)).items()}
    return [majorities.get(pair_id(row.prompt, row.chosen, row.rejected)) for row in rows]


def _compared(reward: BoundReward, rows: Sequence[Said], told: Any) -> tuple[list[int | None], dict[str, Any]]:
    texts = [[_text(turns) for turns in side] for side in zip(*((r.chosen, r.rejected) for r in rows), strict=True)]
    found = compare_answers(reward, [row.prompt for row in rows], *texts, told)
    errors = [one.error for one in found if one.error is not None]
    more = {**agreement.order_bias([one.orders for one in found]), "failed": len(errors)}
    return [one.verdict for one in found], more | {"first_error": errors[0] if errors else None}


def _text(turns: Any) -> str:
    return "\n".join(turn["content"] for turn in turns)


def _scored(reward: BoundReward, rows: Sequence[Said]) -> tuple[list[int | None], str | None]:
    """(verdicts, why it stopped)."""
    answers = [
        Answer(row.location, row.prompt, turns, row.columns, f"{number}")
        for number, row in enumerate(rows)
        for turns in (row.chosen, row.rejected)
    ]
    _, columns = score_answers([reward], Answers("the pairs", "pairs", answers))
    return verdicts(columns[reward.name].scores), columns[reward.name].stop_run
