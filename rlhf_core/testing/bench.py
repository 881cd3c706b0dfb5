"""Scoring rows with one reward exactly as a run does, by the run's own `RewardRuntime`; needs neither model nor torch.

A token is one character here, so that every text reaches the reward, also one that no tokenizer would decode to.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence

from rlhf_core.rewards.batch import RewardBatch, columns_of
from rlhf_core.rewards.binding import CALLBACK_NAMES, BoundReward
from rlhf_core.rewards.runtime import RewardRuntime
from rlhf_core.rewards.smoke_test import PLACEHOLDERS
from rlhf_core.testing.golden import Row

SECONDS = 60.0  # timeout of a batch in the worker, if the reward declares none; the first batch may load a model


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the reward returned for one row: `score`, or None; `error` says why it failed."""

    row: Row
    score: float | None
    error: str | None


class Bench:
    """One bound reward. `seen` collects every outcome, for the rule on its range."""

    def __init__(self, bound: BoundReward) -> None:
        self.bound = bound
        self.seen: list[Outcome] = []
        self._runtime = RewardRuntime([bound], decode)
        self._worker: RewardRuntime | None = None

    @property
    def isolated(self) -> bool:
        return self.bound.reward.isolation == "process"

    @property
    def can_be_isolated(self) -> bool:
        return not self.bound.signature.required_trl & CALLBACK_NAMES

    def scores(self, rows: Sequence[Row]) -> list[Outcome]:
        """As a run would get them."""
        return self._evaluate(self._runtime, rows)

    def fresh_scores(self, rows: Sequence[Row]) -> list[Outcome]:
        """From a new process that builds the reward from its specification and is killed when it takes too long."""
        if self._worker is None:
            seconds = self.bound.reward.timeout or SECONDS
            reward = dataclasses.replace(
                self.bound.reward,
                isolation="process",
                timeout=seconds,
                concurrent=False,  # as what follows, of which a worker has nothing
                before_run=None,
                pairwise=None,
                describe=None,
            )
            self._worker = RewardRuntime([dataclasses.replace(self.bound, reward=reward, function=None)], decode)
        return self._evaluate(self._worker, rows)

    def threaded_scores(self, rows: Sequence[Row]) -> list[Outcome]:
        """From a thread that is not the main one."""
        found: list[Outcome] = []
        thread = threading.Thread(target=lambda: found.extend(self.scores(rows)), name="conformance")
        thread.start()
        thread.join()
        return found

    def close(self) -> None:
        self._runtime.close()
        if self._worker is not None:
            self._worker.close()

    def _evaluate(self, runtime: RewardRuntime, rows: Sequence[Row]) -> list[Outcome]:
        (column,) = runtime.evaluate(batch_of(rows)).values()
        found = [Outcome(*each) for each in zip(rows, column.scores, column.errors, strict=True)]
        self.seen += found
        return found


def decode(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def batch_of(rows: Sequence[Row]) -> RewardBatch:
    """Rows as a run has them: messages, token ids, and a column that is None where a row does not have it."""
    return RewardBatch(
        [row.prompt for row in rows],
        [[{"role": "assistant", "content": row.completion}] for row in rows],
        [[ord(character) for character in row.completion] for row in rows],
        columns_of([row.columns for row in rows]),
        PLACEHOLDERS,
    )
