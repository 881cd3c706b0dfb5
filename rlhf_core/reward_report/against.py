"""How far rewards agree with people: `rlhf score --against`, with results for JSON.

A reward's scores of both answers give its verdict on a pair. One that compares two answers (`Reward.pairwise`) is asked
for that as well, in both orders, which shows whether it prefers what it reads first.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_core import statistics
from rlhf_core.data.progress import Progress, silent
from rlhf_core.errors import RunStopped
from rlhf_core.reward import Planned
from rlhf_core.reward_report import agreement
from rlhf_core.reward_report.answers import Answer, Answers
from rlhf_core.reward_report.human import Human, Judged, prompts_of
from rlhf_core.reward_report.measuring import said
from rlhf_core.rewards.before_run import said_before
from rlhf_core.rewards.binding import BoundReward
from rlhf_core.rewards.outcomes import Column
from rlhf_core.rewards.pairwise import compare_answers


def compared(
    rewards: Sequence[BoundReward],
    human: Human,
    rows: Sequence[Answer],
    columns: Mapping[str, Column],
    progress: Progress = silent,
) -> dict[str, Any]:
    """Each reward beside what people said; `columns` are the rewards' scores of `rows`, the answers of `human`."""
    number = {id(answer): i for i, answer in enumerate(rows)}
    order = [number[id(answer)] for answer in human.answers.rows]
    scores = {name: [column.scores[i] for i in order] for name, column in columns.items()}
    found: dict[str, Any] = {"source": human.source, "kind": human.kind, "people": human.about}
    found["warnings"] = list(human.warnings)
    if not human.pairs:
        groups = [answer.group for answer in human.answers.rows]
        found["scores"] = sum(score is not None for score in human.scores)
        found["rewards"] = {name: _of_scores(human.scores, values, groups) for name, values in scores.items()}
        return found
    found["pairs"] = len(human.pairs)
    found["prompts"] = len(set(prompts_of(human.pairs)))
    lengths = lengths_of(human.pairs)
    found["longer_wins"] = agreement.length_bias([pair.verdict for pair in human.pairs], lengths)
    found["rewards"] = {
        reward.name: of_pairs(human.pairs, verdicts(scores[reward.name]), lengths)
        | {"pairwise": of_pairwise(reward, human.pairs, lengths, progress)}
        for reward in rewards
    }
    return found


def planned(rewards: Sequence[BoundReward], answers: Answers, human: Human | None) -> list[tuple[str, str]]:
    """(label, text) of what rewards say of all that they will be asked. Raises `UserError` for one that can't work."""
    lines = said(rewards, answers)
    if human is not None and human.answers is not answers:
        lines += said(rewards, human.answers)
    if human is not None and human.pairs:
        comparing = [one for one in rewards if one.reward.pairwise is not None]
        told = f"then compares {len(human.pairs):,} pairs, each in both orders"
        lines += [("Reward", f"{one.name}: {told}") for one in comparing]
        count = 2 * len(human.pairs)
        length = sum(map(sum, lengths_of(human.pairs))) // count
        asked = Planned([pair.prompt for pair in human.pairs], count, length, comparisons=count)
        lines += said_before(comparing, asked)
    return lines


def verdicts(scores: Sequence[float | None]) -> list[int | None]:
    """Of the scores of each pair's first and second answer, one after the other: None where one has no score."""
    return [_verdict(a, b) for a, b in zip(scores[::2], scores[1::2], strict=True)]


def _verdict(a: float | None, b: float | None) -> int | None:
    if a is None or b is None:
        return None
    return 0 if statistics.same(a, b) else agreement.sign(a - b)


def lengths_of(pairs: Sequence[Judged]) -> list[tuple[int, int]]:
    """In characters."""
    return [(len(text(pair.first)), len(text(pair.second))) for pair in pairs]


def text(turns: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(turn["content"] for turn in turns)


def of_pairs(pairs: Sequence[Judged], said: Sequence[int | None], lengths: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """A judge's verdicts beside those of people."""
    human = [pair.verdict for pair in pairs]
    return {
        **agreement.agreement(human, said, prompts_of(list(pairs))),
        "without_verdict": sum(verdict is None for verdict in said),
        "longer_wins": agreement.length_bias(said, lengths),
    }


def of_pairwise(
    reward: BoundReward, pairs: Sequence[Judged], lengths: Sequence[tuple[int, int]], progress: Progress = silent
) -> dict[str, Any] | None:
    """A reward that is asked which answer is better, in both orders; None of one that can't be. `stopped` is why it
    stopped, as where its budget is spent.
    """
    if reward.reward.pairwise is None:
        return None

    def told(done: int) -> None:
        progress(f"{reward.name} compares {len(pairs):,} pairs in both orders …", done / len(pairs))

    told(0)
    texts = [text(pair.first) for pair in pairs], [text(pair.second) for pair in pairs]
    try:
        found = compare_answers(reward, [pair.prompt for pair in pairs], *texts, told)
    except RunStopped as error:
        return {"stopped": str(error)}
    errors = [one.error for one in found if one.error is not None]
    return {
        **of_pairs(pairs, [one.verdict for one in found], lengths),
        **agreement.order_bias([one.orders for one in found]),
        "failed": len(errors),
        "first_error": errors[0] if errors else None,
    }


def _of_scores(human: Sequence[float | None], given: Sequence[float | None], groups: Sequence[str]) -> dict[str, Any]:
    """A reward's scores beside people's: their order over all answers, and pairs of one prompt."""
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        if human[i] is not None and given[i] is not None:
            members.setdefault(group, []).append(i)
    both = [(i, j, group) for group, rows in members.items() for i, j in itertools.combinations(rows, 2)]
    return {
        "scored": sum(len(rows) for rows in members.values()),
        "spearman": statistics.spearman(human, given),
        "within_prompts": agreement.agreement(
            [_verdict(human[i], human[j]) for i, j, _ in both],
            [_verdict(given[i], given[j]) for i, j, _ in both],
            [group for _, _, group in both],
        )
        if both
        else None,
    }
