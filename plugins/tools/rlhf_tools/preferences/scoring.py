"""Who judges the answers of `rlhf preferences make`: rewards that score each, or one that compares two at a time.

Compared two by two, every answer of a prompt meets every other one, in both orders. Its score is its share of wins:
a win counts 1, a tie, and a comparison whose orders disagree, a half; what failed does not count.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from rlhf_core import RunStopped
from rlhf_core.commands import PLACEHOLDERS, BoundReward, RewardBatch, RewardRuntime, columns_of, compare_answers
from rlhf_tools.preferences.selecting import Prompt, Rated, Verdict, usable
from rlhf_tools.results import total

AT_ONCE = 64  # answers, or comparisons, before they are on the disk
SURE = 4  # answers that a judge fails on, of as many, after which the others are not tried


class Judge(Protocol):
    """`judge(prompts)`: what is to be kept of each of them, as plain data; `put(prompt, kept)`: the prompt with its
    answers' scores. `spent`: what it said that it spent, so far, in this process.
    """

    spent: dict[str, float]

    def size(self, answers: int) -> int: ...

    def judge(self, prompts: Sequence[Prompt], keep_refusals: bool) -> list[Any]: ...

    def put(self, prompt: Prompt, kept: Any) -> None: ...


def worth_judging(prompt: Prompt, keep_refusals: bool) -> list[int]:
    """The numbers of the answers; none where there is nothing to compare."""
    kept, _ = usable(prompt, keep_refusals)
    return kept if len(kept) > 1 else []


@dataclass
class Pointwise:
    """The weighted sum of rewards. Kept of a prompt: [the answer's number, its score, the error] of each."""

    runtime: RewardRuntime
    spent: dict[str, float] = field(default_factory=dict)

    def size(self, answers: int) -> int:
        """Prompts of a batch, each with that many answers."""
        return max(1, AT_ONCE // answers)

    def judge(self, prompts: Sequence[Prompt], keep_refusals: bool) -> list[Any]:
        judged = [(prompt, worth_judging(prompt, keep_refusals)) for prompt in prompts]
        rows = [prompt for prompt, numbers in judged for _ in numbers]
        answers = [prompt.answers[number] for prompt, numbers in judged for number in numbers]
        scores = iter(self._scores(rows, answers) if rows else [])
        return [[[number, *next(scores)] for number in numbers] for _, numbers in judged]

    def _scores(self, prompts: Sequence[Prompt], answers: Sequence[Rated]) -> list[tuple[float | None, str | None]]:
        """An answer whose tokens are not known has an id for each character, as in `rlhf score`."""
        batch = RewardBatch(
            [prompt.messages for prompt in prompts],
            [[{"role": "assistant", "content": answer.text}] for answer in answers],
            [list(map(ord, answer.text)) if answer.ids is None else answer.ids for answer in answers],
            columns_of([prompt.row for prompt in prompts]),
            {**PLACEHOLDERS, "log_metric": self.spent.__setitem__},
            [answer.text for answer in answers],
        )
        columns = self.runtime.evaluate(batch)
        if self.runtime.stop_reason:
            raise RunStopped(self.runtime.stop_reason)
        weights = {reward.name: reward.weight for reward in self.runtime.rewards}
        found = []
        for i in range(len(answers)):
            errors = {name: error for name, column in columns.items() if (error := column.errors[i]) is not None}
            score = total({name: column.scores[i] for name, column in columns.items()}, errors, weights)
            found.append((score, next((f"{name}: {error}" for name, error in errors.items()), None)))
        _stop_if_all_failed([error for _, error in found])
        return found

    def put(self, prompt: Prompt, kept: Any) -> None:
        for number, score, error in kept:
            prompt.answers[number] = replace(prompt.answers[number], score=score, error=error)


@dataclass
class Pairwise:
    """A reward that compares. Kept of a prompt: [number, number, verdict, whether both orders agree, the error]."""

    reward: BoundReward
    spent: dict[str, float] = field(default_factory=dict)

    def size(self, answers: int) -> int:
        """Prompts of a batch, each with that many answers."""
        return max(1, AT_ONCE // max(1, answers * (answers - 1)))

    def judge(self, prompts: Sequence[Prompt], keep_refusals: bool) -> list[Any]:
        pairs = [list(itertools.combinations(worth_judging(prompt, keep_refusals), 2)) for prompt in prompts]
        asked = [(prompt, pair) for prompt, each in zip(prompts, pairs, strict=True) for pair in each]
        first, second = ([prompt.answers[pair[side]].text for prompt, pair in asked] for side in (0, 1))
        prompts_of = [prompt.messages for prompt, _ in asked]
        said = (
            compare_answers(self.reward, prompts_of, first, second, log_metric=self.spent.__setitem__) if asked else []
        )
        _stop_if_all_failed([one.error for one in said])
        found = iter(said)
        return [
            [[*pair, one.verdict, bool(one.agree), one.error] for pair in each for one in (next(found),)]
            for each in pairs
        ]

    def put(self, prompt: Prompt, kept: Any) -> None:
        prompt.verdicts = {(a, b): Verdict(verdict, agree) for a, b, verdict, agree, _ in kept}
        for number in dict.fromkeys(each for a, b, *_ in kept for each in (a, b)):
            score = share_of_wins(prompt, number)
            errors = [error for a, b, *_, error in kept if number in (a, b) and error is not None]
            error = errors[0] if score is None and errors else None
            prompt.answers[number] = replace(prompt.answers[number], score=score, error=error)


def share_of_wins(prompt: Prompt, number: int) -> float | None:
    """Of an answer against the others; None where no comparison came out."""
    others = [b if a == number else a for a, b in prompt.verdicts if number in (a, b)]
    points = [
        (verdict.better + 1) / 2
        for other in others
        if (verdict := prompt.verdict(number, other)) is not None and verdict.better is not None
    ]
    return sum(points) / len(points) if points else None


def _stop_if_all_failed(errors: Sequence[str | None]) -> None:
    """Raise `RunStopped` where nothing came out: the next answers would fail as well, and be lost."""
    if len(errors) >= SURE and all(errors):
        raise RunStopped(f"the judge failed on all of {len(errors)} answers: {errors[0]}")
