"""Rewards at run time: all rewards of a run are evaluated together, once for each batch.

Each row's outcome is a score, `None` (does not apply) or an error. An error never ends the run and never counts as
zero. A batch whose function raised or took too long is retried row by row; a wrong length fails the full batch; a wrong
type, NaN, infinity and what float32 can't sum fail their row. Async rewards, concurrent ones and workers run at the
same time, the others on the main thread, where nothing can stop them. Needs no torch.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_core.data.encoding import tools_of
from rlhf_core.data.projecting import prompt_of
from rlhf_core.errors import UserError
from rlhf_core.phases import phase
from rlhf_core.rewards.batch import RewardBatch, callbacks_of, columns_of
from rlhf_core.rewards.binding import CALLBACK_NAMES, FINISHED, LOGS, ROW, BoundReward, check_columns
from rlhf_core.rewards.event_loop import BATCH_SECONDS, EventLoop
from rlhf_core.rewards.guard import guarded
from rlhf_core.rewards.outcomes import Column, Inputs, blank, check, exception, failure, join, out_of_time, weighted
from rlhf_core.rewards.samples import Samples, scores_by_prompt
from rlhf_core.rewards.worker import Worker

AT_ONCE = 64  # rows of a reward that are scored at the same time
SLOW_ROW = 0.005  # seconds a row from which scoring rows at the same time is worth the effort

log = logging.getLogger("rlhf")


class RewardRuntime:
    """The rewards of one run. Samples and errors are written to `folder`.

    An answer's text is what its prompt has opened of it, `opening`, and its decoded tokens. `rows` are the run's, by
    their number in the column `ROW`; `text_prompts`: their prompts were plain text. `finished` says of an answer's
    tokens whether it ended by itself. `stop_reason`: what a reward's `RunStopped` said. `samples` are those of the last
    batch. A trainer that says what it made of the scores sets `samples.wait_for_advantages`, and calls
    `samples.advantages` after each batch.
    """

    def __init__(
        self,
        rewards: Sequence[BoundReward],
        decode: Callable[[Sequence[int]], str],
        folder: Path | None = None,
        *,
        opening: Callable[..., str] = lambda prompt, tools=None: "",
        rows: Sequence[Mapping[str, Any]] = (),
        text_prompts: bool = False,
        finished: Callable[[Sequence[int]], bool] = lambda ids: True,
    ) -> None:
        self.rewards = list(rewards)
        self.decode, self.opening, self.finished = decode, opening, finished
        self.rows, self.text_prompts = rows, text_prompts
        self.counts: dict[str, list[int]] = {reward.name: [0, 0] for reward in rewards}  # failed, seen since last taken
        self.spread: dict[str, list[int]] = {r.name: [0, 0] for r in rewards}  # groups, those whose scores differ
        self.samples = Samples(folder)
        self.stop_reason: str | None = None
        self._elsewhere: dict[str, Worker | EventLoop] = {r.name: Worker(r) for r in rewards if r.kind == "process"}
        self._elsewhere |= {r.name: EventLoop(r) for r in rewards if r.kind == "async"}
        self._batches = ThreadPoolExecutor(len(self.rewards) or 1)
        self._rows = {r.name: ThreadPoolExecutor(AT_ONCE) for r in rewards if r.kind in ("concurrent", "async")}
        self._advised: set[str] = set()
        self._settled: set[str] = set()  # rewards of which it is known whether they take strings
        self._as_messages: set[str] = set()
        self._scored: tuple[Any, dict[str, Column]] = (None, {})
        self._closed = False

    @property
    def weights(self) -> list[float]:
        return [reward.weight for reward in self.rewards]

    def check_columns(self, available: Sequence[str], source: str) -> None:
        """Raise `UserError` if the data lacks a column that a reward needs."""
        check_columns(self.rewards, available, source)

    def start(self) -> None:
        """Start the worker processes, so that a reward that can't be built is an error before training."""
        if not faulthandler.is_enabled():
            faulthandler.enable(2)  # a crash of an ordinary reward ends the run: this says where it was
        for place in self._elsewhere.values():
            place.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of a folder that is gone, a disk that is full: the run has said it
            self.samples.write()
        self._closed = True
        for pool in (self._batches, *self._rows.values()):
            pool.shutdown(wait=False, cancel_futures=True)
        for place in self._elsewhere.values():
            place.stop()

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

    def batch(
        self,
        rows: Sequence[Mapping[str, Any]],
        completion_ids: Sequence[Sequence[int]],
        trl: Mapping[str, Any] | None = None,
    ) -> RewardBatch:
        """The answers `completion_ids`, one to each of `rows`, as rewards get them."""
        prompts = [prompt_of(row) for row in rows]
        openings = [self.opening(prompt, tools_of(row)) for prompt, row in zip(prompts, rows, strict=True)]
        texts = [opening + self.decode(ids) for opening, ids in zip(openings, completion_ids, strict=True)]
        completions = [[{"role": "assistant", "content": text}] for text in texts]
        return RewardBatch(prompts, completions, completion_ids, columns_of(rows), trl or {}, texts)

    def score(self, batch: RewardBatch) -> list[float | None]:
        """Each row's weighted sum of scores (`totals`), recorded and counted as TRL's calls are."""
        columns = self.evaluate(batch)
        self._after_batch(batch, columns)
        for name, column in columns.items():
            if scored := [score for score in column.scores if score is not None]:
                batch.log_metric(f"rewards/{name}/mean", statistics.fmean(scored))
        return self.totals(columns)

    def totals(self, columns: Mapping[str, Column]) -> list[float | None]:
        """Each row's weighted sum of scores. A reward that does not apply to a row adds nothing. None where one failed,
        or where none applies.
        """
        return weighted([columns[reward.name] for reward in self.rewards], self.weights)

    @phase("rewards")
    def evaluate(self, batch: RewardBatch) -> dict[str, Column]:
        """Score a batch with every reward. Those that do not need the main thread run meanwhile."""
        if ROW in batch.columns:
            rows = [self.rows[number] for number in batch.columns[ROW]]
            vars(batch).update(vars(self.batch(rows, batch.completion_ids, batch.trl)))
        answers = zip(batch.prompts, batch.completion_ids, strict=True)
        batch.texts = batch.texts or [self.opening(prompt) + self.decode(ids) for prompt, ids in answers]
        others = {r.name: self._batches.submit(self._score, r, batch) for r in self.rewards if r.kind != "ordinary"}
        columns: dict[str, Column] = {}
        for reward in self.rewards:
            if reward.kind == "ordinary":
                processor = time.process_time()
                columns[reward.name] = self._score(reward, batch)
                self._advise(reward, columns[reward.name], time.process_time() - processor)
        columns |= {name: column.result() for name, column in others.items()}
        stops = (f"reward {name!r}: {column.stop_run}" for name, column in columns.items() if column.stop_run)
        self.stop_reason = self.stop_reason or next(stops, None)
        return {reward.name: columns[reward.name] for reward in self.rewards}

    def _score(self, reward: BoundReward, batch: RewardBatch) -> Column:
        """The outcome of a batch. A bare function that can't take text prompts and their answers as strings, as TRL
        passes them, gets messages.
        """
        column = self._score_once(reward, batch)
        if self.text_prompts and None in reward.as_text.values() and reward.name not in self._settled:
            if column.failed == len(batch):
                self._as_messages.add(reward.name)
                if (other := self._score_once(reward, batch)).failed == len(batch):
                    self._as_messages.remove(reward.name)
                    return column
                column = other
            self._settled.add(reward.name)
        return column

    def _score_once(self, reward: BoundReward, batch: RewardBatch) -> Column:
        """One call for the batch; one for each row of a concurrent reward, and where the batch's call raised or took
        too long.
        """
        started, size = time.perf_counter(), len(batch)
        seconds = reward.reward.timeout or BATCH_SECONDS
        column = None
        if reward.kind != "concurrent":
            column = self._call(reward, self._inputs(reward, batch), size, seconds)
        if column is None or ((column.raised or column.stopped) and size > 1 and not reward.reward.batchwise):
            data, trl = self._inputs(reward, batch)

            def score_row(i: int, limit: float) -> Column:
                lists = ("prompts", "completions", "completion_ids", FINISHED)
                alone = {name: [trl[name][i]] for name in lists if name in trl}
                inputs = {name: [values[i]] for name, values in data.items()}, {**trl, **alone}
                return self._call(reward, inputs, 1, limit)

            column = join(self._rows_alone(reward, score_row, size, seconds))
        column.seconds = time.perf_counter() - started
        return column

    def _rows_alone(
        self, reward: BoundReward, score_row: Callable[[int, float], Column], size: int, seconds: float
    ) -> list[Column]:
        """The outcome of each row by itself, of all within `seconds`.

        In a worker one row runs at a time. First each gets an equal share of half the time, so that no slow row keeps
        the others from being scored; then those which took longer share what is left.
        """
        if threads := self._rows.get(reward.name):
            deadline = time.monotonic() + seconds
            return list(threads.map(lambda i: score_row(i, deadline - time.monotonic()), range(size)))
        if reward.kind != "process":
            return [score_row(i, seconds) for i in range(size)]
        with contextlib.suppress(UserError):  # which each row will say
            self._elsewhere[reward.name].start()  # now, so that it takes nothing of the rows' time
        deadline = time.monotonic() + seconds
        columns = [score_row(i, min(seconds / 2 / size, deadline - time.monotonic())) for i in range(size)]
        slow = [i for i, column in enumerate(columns) if column.stopped]
        for rank, i in enumerate(slow):
            if (left := deadline - time.monotonic()) > 0:
                columns[i] = score_row(i, left / (len(slow) - rank))
        return columns

    def _call(self, reward: BoundReward, inputs: Inputs, size: int, seconds: float) -> Column:
        """One call, here or where the reward runs, which is stopped there after `seconds`."""
        elsewhere, inputs = self._elsewhere.get(reward.name), (inputs[0], callbacks_of(inputs[1], size))
        if self._closed:
            return failure("the run ends", size)
        if elsewhere and seconds <= 0:
            return out_of_time("the rows before it used up the time", size)
        try:
            if elsewhere:
                return elsewhere.score(inputs, size, seconds)
            with guarded(reward.name):
                return check(reward.call(*inputs), size)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a reward may raise anything, also what no `except Exception` catches
            return exception(error, size)

    def _advise(self, reward: BoundReward, column: Column, processor: float) -> None:
        """Say once that an ordinary reward mostly waited, where the user has not set `concurrent`."""
        size = len(column.scores)
        waited = size > 1 and column.seconds > SLOW_ROW * size and processor < column.seconds / 2
        possible = not reward.reward.batchwise and not reward.signature.trl & LOGS
        if waited and possible and reward.spec.concurrent is None and reward.name not in self._advised:
            self._advised.add(reward.name)
            log.warning(
                f"reward {reward.name!r} took {column.seconds:.2g} s for {size} rows and mostly waited. If the score "
                "of a row depends on that row alone, score the rows at the same time with "
                f"--reward '{replace(reward.spec, concurrent=True)}'"
            )

    def _inputs(self, reward: BoundReward, batch: RewardBatch) -> Inputs:
        """(columns, TRL's names) for one reward: copies, so that no reward can change the inputs of another."""
        strings = self.text_prompts and reward.name not in self._as_messages
        as_text = {name: strings if text is None else text for name, text in reward.as_text.items()}
        trl = {
            "prompts": [_copy(prompt[-1]["content"] if as_text["prompts"] else prompt) for prompt in batch.prompts],
            "completions": list(batch.texts) if as_text["completions"] else [_copy(c) for c in batch.completions],
            "completion_ids": [list(ids) for ids in batch.completion_ids],
        }
        if FINISHED in reward.signature.trl:
            trl[FINISHED] = [self.finished(ids) for ids in batch.completion_ids]
        if reward.kind != "process":
            # Logging is for full batches, in the order of their rows.
            logs = LOGS if reward.kind == "concurrent" else ()
            trl |= {name: value for name, value in batch.trl.items() if name not in logs}
        return {key: [_copy(value) for value in values] for key, values in batch.columns.items()}, trl

    def _after_batch(self, batch: RewardBatch, columns: Mapping[str, Column]) -> None:
        """Count, log and record the outcomes."""
        for name, column in columns.items():
            self.counts[name][0] += column.failed
            self.counts[name][1] += len(batch)
            groups = scores_by_prompt(batch.prompts, column.scores)
            self.spread[name][0] += len(groups)
            self.spread[name][1] += sum(len({score for score in group if score is not None}) > 1 for group in groups)
            batch.log_metric(f"rewards/{name}/error_rate", column.failed / len(batch))
            batch.log_metric(f"rewards/{name}/timeout_rate", column.timed_out / len(batch))
            batch.log_metric(f"rewards/{name}/latency", column.seconds)
        self.samples.add(batch, columns, text_prompts=self.text_prompts, finished=self.finished)


def _copy(value: Any) -> Any:
    """A copy of all lists and dicts, with the same leaves."""
    if isinstance(value, list):
        return [_copy(item) for item in value]
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return value
