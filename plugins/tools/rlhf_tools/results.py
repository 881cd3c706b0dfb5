"""From answers and their scores to what is shown: one dictionary, which is comparison.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rlhf_core.commands import bootstrap_mean, mean
from rlhf_tools import statistics
from rlhf_tools.statistics import Pair

MODES = ("greedy", "sampled")


@dataclass
class Answer:
    """One answer: `tokens` with the end token, `finished` if it came to one. A score is None where a reward does not
    apply or failed (`errors` says why); so is `total`, the weighted sum, where any failed or none applies.
    """

    text: str
    tokens: int
    finished: bool
    scores: dict[str, float | None] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    total: float | None = None


# Of one model and one mode: the answers to each prompt, one or several.
Answers = Sequence[Sequence[Answer]]


def total(scores: Mapping[str, float | None], errors: Mapping[str, str], weights: Mapping[str, float]) -> float | None:
    """The weighted sum. A reward that does not apply adds nothing."""
    given = [weights[name] * score for name, score in scores.items() if score is not None]
    return sum(given) if given and not errors else None


def summarize(answers: Mapping[str, Answers], rewards: Sequence[str], seed: int) -> dict[str, Any]:
    """Means of each model, and each model against the first. `answers` maps names to the answers of one mode."""
    baseline = next(iter(answers))
    return {
        "models": {name: _means(given, rewards) for name, given in answers.items()},
        "against_baseline": {
            name: _against(name, answers[baseline], given, rewards, seed)
            for name, given in answers.items()
            if name != baseline
        },
    }


def _means(answers: Answers, rewards: Sequence[str]) -> dict[str, Any]:
    every = [answer for group in answers for answer in group]
    return {
        "rewards": {name: _mean_of([_per_prompt(group, name) for group in answers]) for name in rewards},
        "total": _mean_of([_total(group) for group in answers]),
        "tokens": mean([answer.tokens for answer in every]),
        "characters": mean([len(answer.text) for answer in every]),
        "finished": mean([answer.finished for answer in every]),
        "failed": {name: count for name in rewards if (count := sum(name in answer.errors for answer in every))},
    }


def _mean_of(values: Sequence[float | None]) -> float | None:
    """The mean of those that have a score."""
    return mean([value for value in values if value is not None])


def _per_prompt(group: Sequence[Answer], reward: str) -> float | None:
    return _mean_of([answer.scores[reward] for answer in group])


def _total(group: Sequence[Answer]) -> float | None:
    return _mean_of([answer.total for answer in group])


def _against(name: str, first: Answers, answers: Answers, rewards: Sequence[str], seed: int) -> dict[str, Any]:
    def difference(values: Sequence[tuple[float | None, float | None]]) -> dict[str, Any] | None:
        both = [new - old for old, new in values if old is not None and new is not None]
        found = bootstrap_mean(both, seed)
        return asdict(found) if found else None

    groups = list(zip(first, answers, strict=True))
    pairs = [
        Pair(i, old.total, new.total, len(old.text), len(new.text))
        for i, (before, after) in enumerate(groups)
        for old, new in zip(before, after, strict=True)
        if old.total is not None and new.total is not None
    ]
    wins, length = statistics.win_rate(pairs), statistics.length_effect(pairs)
    return {
        "rewards": {r: difference([(_per_prompt(a, r), _per_prompt(b, r)) for a, b in groups]) for r in rewards},
        "total": difference([(_total(a), _total(b)) for a, b in groups]),
        "win_rate": asdict(wins) if wins else None,
        "length": asdict(length) if wins else None,
        "note": statistics.length_note(name, wins, length) if wins else None,
    }
