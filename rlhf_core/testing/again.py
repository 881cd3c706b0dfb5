"""The rules on scoring the same rows again: twice, one by one, in another order, in a process and in a thread."""

from __future__ import annotations

from collections.abc import Callable

from rlhf_core.testing.bench import Bench, Outcome
from rlhf_core.testing.golden import Row, shown
from rlhf_core.testing.report import Report, Result

CLOSE = 1e-4  # relative: a reward model's scores move so much with the padding of a batch


def examine(report: Report, bench: Bench, rows: list[Row], expected: list[Outcome]) -> None:
    """Add these rules to `report`. `expected` are the outcomes of `rows` that the others are compared with."""
    reward = bench.bound.reward

    def rule(text: str, score: Callable[[], list[Outcome]], how: str, what_to_do: str, skip: str = "") -> None:
        result = report.rule(text)
        if skip:
            result.note(skip)
        else:
            all_the_same(result, bench, expected, score(), how, what_to_do)

    varies = "" if reward.deterministic else "it declares deterministic=False, so only its errors are compared"
    depends = "it declares batchwise=True: its scores depend on the full batch" if reward.batchwise else varies
    rule("is deterministic", lambda: bench.scores(rows), "the second time", "or declare deterministic=False", varies)
    rule(
        "scores a row the same, however the batch is split or ordered",
        lambda: [bench.scores([row])[0] for row in rows],
        "alone",
        "or declare batchwise=True",
        depends,
    )
    if not depends:
        order = bench.scores(rows[::-1])[::-1]
        all_the_same(report.results[-1], bench, expected, order, "in the opposite order", "or declare batchwise=True")
    callbacks = "" if bench.can_be_isolated else "it needs arguments that exist only in the trainer's process"
    rule(
        "is rebuilt in a fresh process, and scores the same there",
        lambda: bench.fresh_scores(rows),
        "in a fresh process",
        "keep no state in the module beyond its parameters, and don't depend on the order of a set",
        callbacks,
    )
    rule(
        "works off the main thread",
        lambda: bench.threaded_scores(rows),
        "in another thread",
        "or declare isolation='process', which runs it on a main thread",
        "it runs on the main thread of its own process" if bench.isolated else "",
    )


def all_the_same(
    rule: Result, bench: Bench, expected: list[Outcome], found: list[Outcome], how: str, what_to_do: str
) -> None:
    for one, other in zip(expected, found, strict=True):
        if one.error != other.error:
            rule.fault(f"{one.row.location}, {how}: {other.error or 'no error, unlike before'}")
        elif bench.bound.reward.deterministic and not _close(one.score, other.score):
            rule.fault(f"{one.row.location}, {how}: {shown(other.score)} instead of {shown(one.score)}: {what_to_do}")


def _close(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= CLOSE * max(1.0, abs(one), abs(other))
