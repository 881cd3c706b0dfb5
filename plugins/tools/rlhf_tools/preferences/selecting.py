"""From the rated answers of prompts to pairs of a better and a worse one. Pure functions.

What is left out of a prompt's answers: those cut at the length limit, those that refuse to answer, empty ones, and what
another answer says word for word; then those that the judge failed on, or does not apply to: none counts as 0.

Of what is left each prompt gives its best answer against its worst, or all pairs. A pair is near a tie if its scores
differ by less than the margin: as given, else a twentieth of the spread of all scores (from their 5th to their 95th
percentile, or of all where these are equal). Where answers were compared two by two, a pair also needs that comparison
to say the same in both orders.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_core import UserError
from rlhf_core.commands import same
from rlhf_tools.preferences.refusals import is_refusal

NEAR = 0.05  # of the spread of all scores
TAILS = 0.05  # of the scores, at each end, that the spread does not count
MOST = 1_000_000  # pairs
SHOWN = 5  # refusals

# Why an answer, a prompt or a pair is left out: as data sheets call it, and in a sentence.
ANSWERS = {
    "not_sampled": "no answer came",
    "cut": "cut at the length limit",
    "refusal": "refuse to answer",
    "empty": "empty",
    "damaged": "with broken characters",
    "repeated": "the same as another answer to the prompt",
    "failed": "the judge failed on them",
    "not_scored": "without a score",
}
PROMPTS = {"too_few": "fewer than two answers that can be compared"}
PAIRS = {
    "tie": "tied",
    "near_tie": "nearly tied",
    "unconfirmed": "compared with each other, the two say otherwise",
    "unbalanced": "left out to balance the lengths",
}


@dataclass(slots=True)
class Rated:
    """An answer. `score` is None where it has none: `error` says why, if the judge failed. `columns` are written with
    it, each with `_chosen` or `_rejected` after its name. `ids`: its tokens, if they are known and asked for.
    """

    text: str
    score: float | None = None
    model: str | None = None
    error: str | None = None
    finished: bool = True
    columns: Mapping[str, Any] = field(default_factory=dict)
    ids: Sequence[int] | None = None


@dataclass(frozen=True)
class Verdict:
    """Two answers compared in both orders: 1, the first is better, -1, the second is, 0, a tie (also where the orders
    disagree), None, the comparison failed. `agree`: both orders say the same.
    """

    better: int | None
    agree: bool


@dataclass
class Prompt:
    """Messages and the answers to them. `row`: as the data has it, for rewards; `columns`: what else it has, for who
    learns of the pairs. `verdicts`: of two answers by their numbers, the smaller first.
    """

    messages: Any
    answers: list[Rated]
    columns: Mapping[str, Any] = field(default_factory=dict)
    row: Mapping[str, Any] = field(default_factory=dict)
    verdicts: Mapping[tuple[int, int], Verdict] = field(default_factory=dict)

    def verdict(self, a: int, b: int) -> Verdict | None:
        """As the first of the two sees it."""
        if (found := self.verdicts.get((min(a, b), max(a, b)))) is None or a < b or not found.better:
            return found
        return Verdict(-found.better, found.agree)


@dataclass(frozen=True)
class Pair:
    """Two answers to the prompt of this number."""

    prompt: int
    chosen: Rated
    rejected: Rated
    agree: bool | None = None

    @property
    def margin(self) -> float:
        assert self.chosen.score is not None
        assert self.rejected.score is not None
        return self.chosen.score - self.rejected.score

    @property
    def longer(self) -> int:
        """1 if the chosen answer is longer, -1 if it is shorter, 0 if both have as many characters."""
        difference = len(self.chosen.text) - len(self.rejected.text)
        return (difference > 0) - (difference < 0)


@dataclass
class Selected:
    """The pairs, in the order of the prompts, and how many were left out for which reason."""

    pairs: list[Pair]
    margin: float
    answers: Counter[str] = field(default_factory=Counter)
    prompts: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)  # pairs
    refusals: list[str] = field(default_factory=list)


def why_not(answer: Rated, seen: set[str], keep_refusals: bool = False) -> str | None:
    """Why an answer is not worth judging: a key of `ANSWERS`. `seen` are the texts before it."""
    if answer.error is not None and not answer.text:
        return "not_sampled"
    if not answer.finished:
        return "cut"
    if not answer.text.strip():
        return "empty"
    if not answer.text.isascii() and _is_damaged(answer.text):
        return "damaged"
    if answer.text in seen:
        return "repeated"
    return "refusal" if not keep_refusals and is_refusal(answer.text) else None


def _is_damaged(text: str) -> bool:
    """Whether a character is broken: half of a pair, or U+FFFD, which stands where tokens made none."""
    if "\ufffd" in text:
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def usable(prompt: Prompt, keep_refusals: bool = False) -> tuple[list[int], list[tuple[int, str]]]:
    """(the numbers of the answers that are worth judging, those of the others, each with the reason)."""
    kept, others, seen = [], [], set[str]()
    for number, answer in enumerate(prompt.answers):
        if (reason := why_not(answer, seen, keep_refusals)) is None:
            kept.append(number)
        else:
            others.append((number, reason))
        seen.add(answer.text)
    return kept, others


def default_margin(scores: Sequence[float]) -> float:
    ordered = sorted(scores)
    if not ordered:
        return 0.0
    tail = math.floor(TAILS * (len(ordered) - 1))
    spread = ordered[-1 - tail] - ordered[tail]
    return NEAR * (spread or ordered[-1] - ordered[0])


def select(
    prompts: Sequence[Prompt],
    *,
    margin: float | None = None,
    every: bool = False,
    balance: bool = False,
    keep_refusals: bool = False,
    seed: int = 42,
) -> Selected:
    """The pairs of all prompts. `every`: all of a prompt, else its best answer against its worst."""
    from rlhf_tools.preferences.balancing import balanced

    selected = Selected([], 0.0)
    rated: list[tuple[int, list[int]]] = []
    for number, prompt in enumerate(prompts):
        kept, others = usable(prompt, keep_refusals)
        selected.answers.update(reason for _, reason in others)
        refused = [prompt.answers[one].text for one, reason in others if reason == "refusal"]
        selected.refusals += refused[: SHOWN - len(selected.refusals)]
        if len(kept) > 1:  # of one alone there was nothing to judge
            without = [prompt.answers[one].error for one in kept if prompt.answers[one].score is None]
            selected.answers.update("not_scored" if error is None else "failed" for error in without)
            kept = [one for one in kept if prompt.answers[one].score is not None]
        if len(kept) > 1:
            rated.append((number, kept))
        else:
            selected.prompts["too_few"] += 1
    scores = [score for n, kept in rated for one in kept if (score := prompts[n].answers[one].score) is not None]
    selected.margin = default_margin(scores) if margin is None else margin
    if every:
        selected.pairs = _every(prompts, rated, selected)
    else:
        best = (best_pair(number, prompts[number], kept, selected) for number, kept in rated)
        selected.pairs = [pair for pair in best if pair is not None]
    if balance:
        others = {} if every else {n: widest(n, prompts[n], kept, selected.margin) for n, kept in rated}
        before = len(selected.pairs)
        selected.pairs = balanced(selected.pairs, others, seed)
        selected.left_out["unbalanced"] += before - len(selected.pairs)
    selected.left_out = +selected.left_out
    return selected


def best_pair(number: int, prompt: Prompt, kept: Sequence[int], selected: Selected) -> Pair | None:
    """The best answer against the worst, of several the first each. Counts why not."""
    order = sorted(kept, key=lambda one: -(prompt.answers[one].score or 0.0))
    lowest = prompt.answers[order[-1]].score
    worst = next(one for one in order if prompt.answers[one].score == lowest)
    return _pair(number, prompt, order[0], worst, selected)


def _every(prompts: Sequence[Prompt], rated: Sequence[tuple[int, list[int]]], selected: Selected) -> list[Pair]:
    if (most := sum(len(kept) * (len(kept) - 1) // 2 for _, kept in rated)) > 20 * MOST:
        raise UserError(f"--all-pairs: {most:,} pairs of answers are too many: leave it out, or take fewer answers")
    found = [pair for number, kept in rated for pair in pairs_of(number, prompts[number], kept, selected)]
    if len(found) > MOST:
        raise UserError(f"--all-pairs: {len(found):,} pairs are too many: a higher --margin, or leave it out")
    return found


def pairs_of(number: int, prompt: Prompt, kept: Sequence[int], selected: Selected) -> Iterator[Pair]:
    """All pairs of a prompt above the margin, the widest first. Counts the others."""
    order = sorted(kept, key=lambda one: -(prompt.answers[one].score or 0.0))
    found = (
        _pair(number, prompt, better, worse, selected) for i, better in enumerate(order) for worse in order[i + 1 :]
    )
    yield from sorted((pair for pair in found if pair is not None), key=lambda pair: -pair.margin)


def _pair(number: int, prompt: Prompt, better: int, worse: int, selected: Selected) -> Pair | None:
    chosen, rejected = prompt.answers[better], prompt.answers[worse]
    pair = Pair(number, chosen, rejected)
    if same(pair.margin, 0.0):
        selected.left_out["tie"] += 1
        return None
    if pair.margin < selected.margin and not same(pair.margin, selected.margin):
        selected.left_out["near_tie"] += 1
        return None
    if (verdict := prompt.verdict(better, worse)) is None:
        return pair
    if verdict.better != 1:
        selected.left_out["unconfirmed"] += 1
        return None
    return Pair(number, chosen, rejected, verdict.agree)


def widest(number: int, prompt: Prompt, kept: Sequence[int], margin: float) -> dict[int, Pair]:
    """Of a prompt's pairs above the margin in which the chosen answer is longer (1) or shorter (-1), the widest."""
    if prompt.verdicts:
        pairs = pairs_of(number, prompt, kept, Selected([], margin))
        return {pair.longer: pair for pair in reversed(list(pairs)) if pair.longer}
    found: dict[int, Pair] = {}
    for longer in (1, -1):  # by length, so that what came before is shorter (longer) than what comes
        order = sorted(kept, key=lambda one: longer * len(prompt.answers[one].text))
        best = _widest(prompt.answers, order)
        if best and (pair := _pair(number, prompt, *best, Selected([], margin))) is not None:
            found[longer] = pair
    return found


def _widest(answers: Sequence[Rated], order: Sequence[int]) -> tuple[int, int] | None:
    """(better, worse), with the widest margin of those whose worse answer comes before the better one in `order`, and
    has another length.
    """
    best: tuple[float, int, int] | None = None
    lowest: int | None = None  # among the answers of other lengths that came before
    waiting: list[int] = []  # of the same length as the current one
    for one in order:
        if waiting and len(answers[waiting[0]].text) != len(answers[one].text):
            lowest = min([*waiting, *([] if lowest is None else [lowest])], key=lambda each: answers[each].score or 0.0)
            waiting = []
        waiting.append(one)
        if lowest is not None:
            margin = (answers[one].score or 0.0) - (answers[lowest].score or 0.0)
            if best is None or margin > best[0]:
                best = margin, one, lowest
    return None if best is None or best[0] <= 0 else best[1:]
