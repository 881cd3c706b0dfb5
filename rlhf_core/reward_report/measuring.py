"""Call rewards on answers in batches, as training does, and report the outcome as plain data.

There is no tokenizer: a reward that takes `completion_ids` gets one id per character, and a warning says so.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rlhf_core import statistics
from rlhf_core.errors import UserError
from rlhf_core.reward import Planned
from rlhf_core.reward_report.answers import Answer, Answers
from rlhf_core.rewards.batch import RewardBatch, columns_left_out, columns_of
from rlhf_core.rewards.before_run import said_before
from rlhf_core.rewards.binding import BoundReward
from rlhf_core.rewards.outcomes import Column, join
from rlhf_core.rewards.runtime import RewardRuntime
from rlhf_core.rewards.smoke_test import PLACEHOLDERS

BATCH = 64  # completions, or one group if that is larger
EXAMPLES = 5  # best and worst answers that are included
LONGEST = 4000  # characters of an example that are included
# What is warned of:
LENGTH = 0.8  # correlation with the length above which a model may learn nothing else
ENOUGH = 20  # scores that a meaningful correlation needs
ERRORS = 0.2  # share of failed rows, which also stops a run
SLOW = 5.0  # seconds a batch
_PARTICULARS = re.compile(r"'[^']*'|\"[^\"]*\"|\d+(?:\.\d+)?")  # differ between errors of one kind


def score(rewards: Sequence[BoundReward], answers: Answers) -> dict[str, Any]:
    """All results, for JSON. Raises `UserError` for a missing column, and if every reward failed on all rows."""
    return measured(rewards, answers, *scored(rewards, answers))


def scored(rewards: Sequence[BoundReward], answers: Answers) -> tuple[list[Answer], dict[str, Column]]:
    """(the answers, those of a group beside each other; each reward's column for all of them). Raises as `score`."""
    text = all(row.text_prompt for row in answers.rows)
    runtime = RewardRuntime(rewards, lambda ids: "".join(map(chr, ids)), text_prompts=text)
    runtime.check_columns(answers.columns, answers.source)
    try:
        runtime.start()
        rows, columns = _call(runtime, answers)
    finally:
        runtime.close()
    if all(column.failed == len(rows) for column in columns.values()):
        failed = "".join(f"\n  {name}: {_failures(column, rows)[0]['message']}" for name, column in columns.items())
        raise UserError(f"{answers.source}: every reward failed on all of its {len(rows):,} completions:{failed}")
    return rows, columns


def said(rewards: Sequence[BoundReward], answers: Answers) -> list[tuple[str, str]]:
    """(label, text) of what rewards say of all that they will be asked. Raises `UserError` for one that can't work."""
    prompts = list({row.group: row.prompt for row in answers.rows}.values())
    length = sum(len(row.text) for row in answers.rows) // max(1, len(answers.rows))
    planned = Planned(prompts, len(answers.rows), length, -(-len(answers.rows) // max(1, len(prompts))))
    return said_before(rewards, planned)


def measured(
    rewards: Sequence[BoundReward], answers: Answers, rows: list[Answer], columns: dict[str, Column]
) -> dict[str, Any]:
    """What the scores of all rows come to."""
    results = {reward.name: _result(reward, columns[reward.name], rows) for reward in rewards}
    about_ids = (
        f"{reward.name} takes completion_ids: without a tokenizer it got one id per character, so its lengths are in "
        "characters here"
        for reward in rewards
        if "completion_ids" in reward.signature.trl
    )
    advice = (text for name, result in results.items() for text in warnings(name, result, own=answers.own))
    return {
        "source": answers.source,
        "format": answers.format,
        "completions": len(rows),
        "groups": len({row.group for row in rows}),
        "rewards": results,
        "correlations": [
            {"rewards": [a, b], "spearman": statistics.spearman(columns[a].scores, columns[b].scores)}
            for a, b in itertools.combinations(columns, 2)
        ],
        "warnings": [*answers.warnings, *columns_left_out(answers.columns), *about_ids, *advice],
        "own_answers": answers.own,
    }


def _call(runtime: RewardRuntime, answers: Answers) -> tuple[list[Answer], dict[str, Column]]:
    """(the answers, those of a group beside each other; each reward's column for all of them)."""
    rows: list[Answer] = []
    found = []
    empty = dict.fromkeys(answers.columns)  # each row has the columns of all
    for part in _batches(answers.rows):
        batch = RewardBatch(
            [row.prompt for row in part],
            [row.completion for row in part],
            [list(map(ord, row.text)) for row in part],
            columns_of([{**empty, **row.columns} for row in part]),
            PLACEHOLDERS,
            [row.text for row in part],
        )
        rows += part
        found.append(runtime.evaluate(batch))
    return rows, {reward.name: join([columns[reward.name] for columns in found]) for reward in runtime.rewards}


def _batches(rows: Sequence[Answer]) -> Iterator[list[Answer]]:
    """Batches of full groups, so that a reward which compares the answers of a prompt gets all of them."""
    members: dict[str, list[Answer]] = {}
    for row in rows:
        members.setdefault(row.group, []).append(row)
    batch: list[Answer] = []
    for group in members.values():
        if batch and len(batch) + len(group) > BATCH:
            yield batch
            batch = []
        batch = batch + group
    yield batch


def _result(reward: BoundReward, column: Column, rows: Sequence[Answer]) -> dict[str, Any]:
    """One reward's results for all rows."""
    scores = [score for score in column.scores if score is not None]
    chosen, rejected = (
        [score for score, row in zip(column.scores, rows, strict=True) if row.side == side]
        for side in ("chosen", "rejected")
    )
    lowest = sorted((score, i) for i, score in enumerate(column.scores) if score is not None)
    highest = sorted(lowest, key=lambda each: -each[0])
    return {
        "spec": str(reward.spec),
        "distribution": reward.distribution,
        "range": reward.reward.range,
        "scored": len(scores),
        "not_applicable": len(rows) - len(scores) - column.failed,
        "errors": column.failed,
        "timed_out": column.timed_out,
        **statistics.summary(scores),
        "histogram": statistics.histogram(scores, reward.reward.range),
        "groups": statistics.groups(column.scores, [row.group for row in rows]),
        "pairs": statistics.pairs(chosen, rejected) if chosen else None,
        "length_correlation": statistics.spearman(column.scores, [float(len(row.text)) for row in rows]),
        "seconds_per_row": column.seconds / len(rows),
        "seconds_per_batch": column.seconds / len(rows) * BATCH,
        "failures": _failures(column, rows),
        "best": _examples((i for _, i in highest), column, rows),
        "worst": _examples((i for _, i in lowest), column, rows),
    }


def _failures(column: Column, rows: Sequence[Answer]) -> list[dict[str, Any]]:
    """The errors by kind, the most frequent first, each with the message and location of the first of its kind."""
    kinds: dict[str, dict[str, Any]] = {}
    for error, row in zip(column.errors, rows, strict=True):
        if error is not None:
            first = {"message": error, "location": row.location, "count": 0}
            kinds.setdefault(_PARTICULARS.sub("…", error), first)["count"] += 1
    return sorted(kinds.values(), key=lambda kind: -kind["count"])


def _examples(order: Iterable[int], column: Column, rows: Sequence[Answer]) -> list[dict[str, Any]]:
    """The first few answers with different texts."""
    first: dict[str, int] = {}
    for i in order:
        first.setdefault(rows[i].text, i)
    return [
        {
            "score": column.scores[i],
            "location": rows[i].location,
            "side": rows[i].side,
            "prompt": rows[i].prompt[-1]["content"][:LONGEST],
            "completion": text[:LONGEST],
        }
        for text, i in itertools.islice(first.items(), EXAMPLES)
    ]


def warnings(name: str, result: Mapping[str, Any], *, own: bool) -> Iterator[str]:
    """A sentence each on what to know of one reward's `result` before training; `own`: the answers are the data's."""
    scored, errors, low, high = (result[key] for key in ("scored", "errors", "min", "max"))
    rows = scored + result["not_applicable"] + errors
    groups, length, limits = result["groups"], result["length_correlation"], result["range"]
    if errors > ERRORS * rows:
        yield f"{name} fails on {errors / rows:.0%} of the completions; over a fifth stops a training run."
    if not scored and errors < rows:
        yield f"{name} gave no score at all."
    elif scored > 1 and statistics.same(low, high):
        yield (
            f"{name} gives each of the data's own answers {result['mean']:g}. Score a model's completions, such as a "
            "run's samples, to see whether it tells them apart."
            if own
            else f"{name} gives every completion {result['mean']:g}: there is nothing to learn from it."
        )
    elif groups["compared"] and not groups["with_signal"]:
        yield (
            f"{name} scores all completions of a prompt alike, in each of {groups['compared']:,} groups: GRPO learns "
            "only from differences within a group."
        )
    if length is not None and abs(length) > LENGTH and scored >= ENOUGH:
        way = "longer" if length > 0 else "shorter"
        yield f"{name} follows the length ({length:+.2f}): a model can raise it by writing {way} answers."
    if limits and scored and (low < limits[0] or high > limits[1]):
        yield f"{name} declares scores from {limits[0]:g} to {limits[1]:g}, and gave {low:g} to {high:g}."
    if (seconds := result["seconds_per_batch"]) > SLOW:
        yield (
            f"{name} is slow: about {seconds:.0f} s a training step of 64 completions, "
            f"{seconds * 1000 / 3600:.1f} hours in 1,000 steps."
        )
