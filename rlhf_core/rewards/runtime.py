"""Rewards at run time: all rewards of a run are evaluated together, once for each batch.

Each row's outcome is a score, `None` (does not apply) or an error. An error never ends the run and never counts as
zero. A batch whose function raised is retried row by row; a wrong length fails the full batch; a wrong type, NaN and
infinity fail their row. Async rewards, concurrent ones and workers run at the same time, the others on the main thread,
where nothing can stop them. Needs no torch.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_core.errors import UserError
from rlhf_core.reward import CALLBACK_NAMES
from rlhf_core.rewards.binding import BoundReward
from rlhf_core.rewards.concurrency import AT_ONCE, AsyncRunner, advice, score_here, score_rows
from rlhf_core.rewards.outcomes import Column, Inputs, blank
from rlhf_core.rewards.worker import Worker

log = logging.getLogger("rlhf")


@dataclass
class RewardBatch:
    """What rewards score: lists with one entry per row. The rows of a group are consecutive.

    `prompts` and `completions` hold messages, `completion_ids` the completion's tokens, `columns` the data's other
    columns by name. `trl` has TRL's other arguments (`trainer_state`, `log_metric(name, value)`,
    `log_extra(column, values)`); without it nothing is logged.
    """

    prompts: Sequence[Any]
    completions: Sequence[Any]
    completion_ids: Sequence[Sequence[int]]
    columns: Mapping[str, Sequence[Any]]
    trl: Mapping[str, Any] = field(default_factory=dict)
    texts: Sequence[str] = field(default=(), compare=False)  # the decoded completions, set by `evaluate`

    def __len__(self) -> int:
        return len(self.completions)


class RewardRuntime:
    """The rewards of one run. `decode` turns token ids into text; samples and errors are written to `folder`."""

    def __init__(
        self, rewards: Sequence[BoundReward], decode: Callable[[Sequence[int]], str], folder: Path | None = None
    ) -> None:
        self.rewards = list(rewards)
        self.decode = decode
        self.folder = folder
        self.counts: dict[str, list[int]] = {reward.name: [0, 0] for reward in rewards}  # failed, seen since last taken
        self.last: list[dict[str, Any]] = []
        self._pool = ThreadPoolExecutor(AT_ONCE, "rlhf-rewards")
        self._workers = {r.name: Worker(r) for r in rewards if r.kind == "process"}
        self._async = {r.name: AsyncRunner(r) for r in rewards if r.kind == "async"}
        self._advised: set[str] = set()
        self._scored: tuple[Any, dict[str, Column]] = (None, {})

    @property
    def weights(self) -> list[float]:
        return [reward.weight for reward in self.rewards]

    def check_columns(self, available: Sequence[str], source: str) -> None:
        """Raise `UserError` if the data lacks a column that a reward needs."""
        for reward in self.rewards:
            if missing := reward.missing_columns(available):
                have = ", ".join(name for name in available if name != "prompt") or "none"
                raise UserError(
                    f"reward {reward.name!r} needs the column{'s' * (len(missing) > 1)} {', '.join(missing)}, "
                    f"which {source} does not have. Its columns: {have}."
                )

    def start(self) -> None:
        """Start the worker processes, so that a reward that can't be built is an error before training."""
        for worker in self._workers.values():
            worker.start()

    def close(self) -> None:
        for worker in self._workers.values():
            worker.stop()
        for runner in self._async.values():
            runner.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def functions(self, *, blank_errors: bool = False) -> list[Callable[..., list[float | None]]]:
        """One column function per reward, as TRL calls them. The first call for a batch evaluates all rewards.

        `blank_errors`: a row for which one reward failed gets no score from any. For trainers that sum a row's scores
        before they compare rows, where a missing score would act as a zero.
        """
        return [self._column_function(reward.name, blank_errors) for reward in self.rewards]

    def _column_function(self, name: str, blank_errors: bool) -> Callable[..., list[float | None]]:
        def column(prompts: Any, completions: Any, completion_ids: Any, **rest: Any) -> list[float | None]:
            if self._scored[0] is not completions:  # TRL passes the same list to every function of a batch
                trl = {key: rest.pop(key) for key in CALLBACK_NAMES if key in rest}
                batch = RewardBatch(prompts, completions, completion_ids, rest, trl)
                columns = self.evaluate(batch)
                if blank_errors:
                    blank(list(columns.values()))
                self._after_batch(batch, columns)
                self._scored = (completions, columns)
            return self._scored[1][name].scores

        column.__name__ = name
        return column

    def score(self, batch: RewardBatch) -> list[float | None]:
        """Each row's weighted sum of scores, recorded and counted as TRL's calls are.

        A reward that does not apply to a row adds nothing. None where one failed, or where none applies.
        """
        columns = self.evaluate(batch)
        self._after_batch(batch, columns)
        totals: list[float | None] = [None] * len(batch)
        for reward in self.rewards:
            scores = columns[reward.name].scores
            if scored := [(i, score) for i, score in enumerate(scores) if score is not None]:
                mean = sum(score for _, score in scored) / len(scored)
                _log_metric(batch)(f"rewards/{reward.name}/mean", mean)
            for i, score in scored:
                totals[i] = (totals[i] or 0.0) + reward.weight * score
        failed = {i for column in columns.values() for i, error in enumerate(column.errors) if error is not None}
        return [None if i in failed else total for i, total in enumerate(totals)]

    def evaluate(self, batch: RewardBatch) -> dict[str, Column]:
        """Score a batch with every reward. Those that do not need the main thread run meanwhile."""
        batch.texts = batch.texts or [self.decode(ids) for ids in batch.completion_ids]
        size, here = len(batch), [reward for reward in self.rewards if reward.kind == "ordinary"]
        waiting = {r.name: self._start_batch(r, batch, size) for r in self.rewards if r.kind != "ordinary"}
        columns = {r.name: score_here(r, functools.partial(self._inputs, r, batch), size) for r in here}
        columns |= {name: wait() for name, wait in waiting.items()}
        for reward in here:
            hint = advice(reward, columns[reward.name])
            if hint and reward.name not in self._advised:
                self._advised.add(reward.name)
                log.warning(hint)
        return {reward.name: columns[reward.name] for reward in self.rewards}

    def _start_batch(self, reward: BoundReward, batch: RewardBatch, size: int) -> Callable[[], Column]:
        """Start to score a batch off the main thread. Returns a function that waits for its column."""
        fresh = functools.partial(self._inputs, reward, batch)
        if reward.kind == "process":
            return self._pool.submit(self._workers[reward.name].column, fresh, size).result
        if reward.kind == "async":
            return self._async[reward.name].submit(fresh, size)
        return score_rows(reward, fresh, size, self._pool)

    def _inputs(self, reward: BoundReward, batch: RewardBatch) -> Inputs:
        """(columns, TRL's names) for one reward: copies, so that no reward can change the inputs of another."""
        completions = batch.texts if reward.reward.view == "text" else [_copy(c) for c in batch.completions]
        trl = {
            "prompts": [_copy(prompt) for prompt in batch.prompts],
            "completions": list(completions),
            "completion_ids": [list(ids) for ids in batch.completion_ids],
        }
        if reward.reward.isolation == "inline":
            trl |= batch.trl
        return {key: [_copy(value) for value in values] for key, values in batch.columns.items()}, trl

    def _after_batch(self, batch: RewardBatch, columns: Mapping[str, Column]) -> None:
        """Count, log and record the outcomes."""
        log_metric = _log_metric(batch)
        for name, column in columns.items():
            self.counts[name][0] += column.failed
            self.counts[name][1] += len(batch)
            log_metric(f"rewards/{name}/error_rate", column.failed / len(batch))
            log_metric(f"rewards/{name}/timeout_rate", column.timed_out / len(batch))
            log_metric(f"rewards/{name}/latency", column.seconds)
        state = batch.trl.get("trainer_state")
        step = state.global_step + 1 if state else 0
        self.last = [
            {
                "step": step,
                "prompt": batch.prompts[i],
                "completion": text,
                "rewards": {name: column.scores[i] for name, column in columns.items()},
                "columns": {name: values[i] for name, values in batch.columns.items()},
            }
            for i, text in enumerate(batch.texts)
        ]
        if self.folder is not None:
            failed = [
                {"step": step, "reward": name, "error": error, "prompt": one["prompt"], "completion": one["completion"]}
                for name, column in columns.items()
                for one, error in zip(self.last, column.errors, strict=True)
                if error is not None
            ]
            _append(self.folder / "samples.jsonl", self.last)
            _append(self.folder / "reward_errors.jsonl", failed)


def _log_metric(batch: RewardBatch) -> Callable[[str, float], None]:
    return batch.trl.get("log_metric", lambda name, value: None)


def _copy(value: Any) -> Any:
    """A copy of all lists and dicts, with the same leaves."""
    if isinstance(value, list):
        return [_copy(item) for item in value]
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return value


def _append(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append lines with one write, since all processes of a run write to the same file."""
    text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    data = text.encode("utf-8", "backslashreplace")  # a lone surrogate as JSON writes it
    with file.open("ab", buffering=0) as stream:
        stream.write(data)
