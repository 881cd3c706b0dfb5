"""Win rates by a judge that reads two answers at a time, in both orders: `rlhf compare --judge SPEC`. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rlhf_core import Catalog, Planned, UserError
from rlhf_core.commands import (
    BoundReward,
    Comparison,
    RewardSpec,
    agreement,
    bind_rewards,
    check_pairwise,
    compare_answers,
    said_before,
)
from rlhf_tools import statistics
from rlhf_tools.results import MODES, Answers
from rlhf_tools.statistics import Pair


def bind_judge(given: str, catalog: Catalog) -> BoundReward:
    """Raises `UserError` for what can't compare answers."""
    [judge] = bind_rewards([RewardSpec.read(given)], catalog)
    check_judge(judge)
    return judge


def check_judge(judge: BoundReward) -> None:
    """Raises `UserError` for what can't compare answers, and for a weight."""
    check_pairwise(judge)
    if judge.weight != 1:
        raise UserError(f"--judge {judge.spec}: a weight has no effect on which of two answers is better")


def said(judge: BoundReward, prompts: Sequence[Any], others: int, samples: int, tokens: int) -> list[tuple[str, str]]:
    """What the judge says of all that it will be asked: each pair in both orders. Raises `UserError`."""
    comparisons = 2 * len(prompts) * others * (1 + samples)
    planned = Planned(prompts, 2 * comparisons, tokens, comparisons=comparisons)
    return said_before([judge], planned)


def judged(
    judge: BoundReward,
    prompts: Sequence[Any],
    answers: Mapping[str, Mapping[str, Answers]],
    progress: Callable[[str, float], None],
) -> dict[str, dict[str, Any]]:
    """{mode: {model: its win rate against the first}}. Raises `RunStopped` when the judge's budget is spent."""
    baseline, *others = answers
    found: dict[str, dict[str, Any]] = {}
    for mode in MODES:
        found[mode] = {}
        for name in others:
            rows = _rows(answers[baseline][mode], answers[name][mode])
            result = compare_answers(
                judge,
                [prompts[number] for number, _, _ in rows],
                [new for _, _, new in rows],
                [old for _, old, _ in rows],
                lambda done, name=name, rows=rows: progress(f"{judge.name} reads {name}'s answers", done / len(rows)),
            )
            found[mode][name] = summary(name, rows, result)
    return found


def _rows(first: Answers, second: Answers) -> list[tuple[int, str, str]]:
    """(prompt, the first model's answer, the other's) for each pair of answers."""
    return [
        (i, old.text, new.text)
        for i, (before, after) in enumerate(zip(first, second, strict=True))
        for old, new in zip(before, after, strict=True)
    ]


def summary(name: str, rows: Sequence[tuple[int, str, str]], result: Sequence[Comparison]) -> dict[str, Any]:
    """Win rate, on how many pairs the orders differ, how often what is read first wins, and what failed."""
    pairs = [
        Pair(i, 0.0, float(one.verdict), len(old), len(new))
        for (i, old, new), one in zip(rows, result, strict=True)
        if one.verdict is not None
    ]
    wins, length = statistics.win_rate(pairs), statistics.length_effect(pairs)
    errors = [one.error for one in result if one.error is not None]
    return {
        "win_rate": asdict(wins) if wins else None,
        **agreement.order_bias([one.orders for one in result]),
        "failed": len(errors),
        "error": errors[0] if errors else None,
        "note": statistics.length_note(name, wins, length) if wins else None,
    }
