"""Call rewards on answers, a batch at a time as training does, and say what came out as plain data.

There is no tokenizer here: a reward that takes `completion_ids` gets one id a character, of which a warning tells.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf_core.errors import UserError
from rlhf_core.reward_report import statistics
from rlhf_core.reward_report.advice import warnings
from rlhf_core.reward_report.answers import Answer, Answers
from rlhf_core.rewards.binding import BoundReward
from rlhf_core.rewards.runtime import Column, RewardBatch, RewardRuntime
from rlhf_core.rewards.smoke_test import PLACEHOLDERS

BATCH = 64  # completions, or one group if that is larger
EXAMPLES = 5  # best and worst answers that are kept
LONGEST = 4000  # characters kept of an example
_PARTICULARS = re.compile(r"'[^']*'|\"[^\"]*\"|\d+(?:\.\d+)?")  # what differs between errors of one kind


def score(rewards: Sequence[BoundReward], answers: Answers) -> dict[str, Any]:
    """Everything that is shown, as JSON has it. Raises `UserError` for a missing column, and where nothing succeeds."""
    runtime = RewardRuntime(rewards, lambda ids: "".join(map(chr, ids)))
    runtime.check_columns(answers.columns, answers.source)
    try:
        runtime.start()
        rows, columns = _call(runtime, answers)
    finally:
        runtime.close()
    if all(column.failed == len(rows) for column in columns.values()):
        failed = "".join(f"\n  {name}: {_failures(column, rows)[0]['message']}" for name, column in columns.items())
        raise UserError(f"{answers.source}: every reward failed on all of its {len(rows):,} completions:{failed}")
    results = {reward.name: _result(reward, columns[reward.name], rows) for reward in rewards}
    return {
        "source": answers.source,
        "format": answers.format,
        "completions": len(rows),
        "groups": len({row.group for row in rows}),
        "rewards": results,
        "correlations": list(_correlations(columns)),
        "warnings": [
            *answers.warnings,
            *(text for reward in rewards for text in _about_ids(reward)),
            *(text for name, result in results.items() for text in warnings(name, result, own=answers.own)),
        ],
        "own_answers": answers.own,
    }


def _call(runtime: RewardRuntime, answers: Answers) -> tuple[list[Answer], dict[str, Column]]:
    """(the answers, those of a group beside each other; one column a reward over all of them)."""
    names = answers.columns
    rows: list[Answer] = []
    columns = {reward.name: Column([], []) for reward in runtime.rewards}
    for part in batches(answers.rows):
        batch = RewardBatch(
            [row.prompt for row in part],
            [row.completion for row in part],
            [list(map(ord, row.text)) for row in part],
            {name: [row.columns.get(name) for row in part] for name in names},
            PLACEHOLDERS,
        )
        rows += part
        for name, column in runtime.evaluate(batch).items():
            full = columns[name]
            full.scores += column.scores
            full.errors += column.errors
            full.timed_out += column.timed_out
            full.seconds += column.seconds
    return rows, columns


def batches(rows: Sequence[Answer]) -> Iterator[list[Answer]]:
    """Batches of whole groups, so that a reward which compares the answers of a prompt sees all of them."""
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
    """What one reward said of all rows."""
    scores = [score for score in column.scores if score is not None]
    sides = {side: [s for s, row in zip(column.scores, rows, strict=True) if row.side == side] for side in _SIDES}
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
        "pairs": statistics.pairs(*sides.values()) if sides["chosen"] else None,
        "length_correlation": statistics.spearman(column.scores, [float(len(row.text)) for row in rows]),
        "seconds_per_row": column.seconds / len(rows),
        "seconds_per_batch": column.seconds / len(rows) * BATCH,
        "failures": _failures(column, rows),
        "best": _examples((i for _, i in highest), column, rows),
        "worst": _examples((i for _, i in lowest), column, rows),
    }


_SIDES = ("chosen", "rejected")


def _failures(column: Column, rows: Sequence[Answer]) -> list[dict[str, Any]]:
    """The errors by kind, the most frequent first, each with the first message of its kind and where that was."""
    kinds: dict[str, dict[str, Any]] = {}
    for error, row in zip(column.errors, rows, strict=True):
        if error is not None:
            kind = kinds.setdefault(
                _PARTICULARS.sub("…", error), {"message": error, "location": row.location, "count": 0}
            )
            kind["count"] += 1
    return sorted(kinds.values(), key=lambda kind: -kind["count"])


def _examples(order: Iterator[int], column: Column, rows: Sequence[Answer]) -> list[dict[str, Any]]:
    """The first few answers of different text."""
    shown: dict[str, dict[str, Any]] = {}
    for i in order:
        row = rows[i]
        shown.setdefault(
            row.text,
            {
                "score": column.scores[i],
                "location": row.location,
                "side": row.side,
                "prompt": row.prompt[-1]["content"][:LONGEST],
                "completion": row.text[:LONGEST],
            },
        )
        if len(shown) == EXAMPLES:
            break
    return list(shown.values())


def _correlations(columns: Mapping[str, Column]) -> Iterator[dict[str, Any]]:
    for (a, first), (b, second) in itertools.combinations(columns.items(), 2):
        yield {"rewards": [a, b], "spearman": statistics.spearman(first.scores, second.scores)}


def _about_ids(reward: BoundReward) -> Iterator[str]:
    if "completion_ids" in reward.signature.trl:
        yield (
            f"{reward.name} takes completion_ids: without a tokenizer it was given one id a character, so what it says "
            "of lengths is in characters here"
        )
