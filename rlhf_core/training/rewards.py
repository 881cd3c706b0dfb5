"""Rewards at run time: all rewards of a run are evaluated jointly, once a batch.

Each row's outcome is a score, `None` (does not apply) or an error. An error never ends the run and never counts as
zero. A batch whose function raised is retried row by row; a wrong length fails the whole batch; a wrong type, NaN and
infinity fail their row. Needs no torch.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_core.errors import UserError
from rlhf_core.reward import CALLBACK_NAMES
from rlhf_core.reward_spec import BoundReward
from rlhf_core.training.worker import BATCH_SECONDS, RewardFailed, Worker, WorkerDied


@dataclass
class Column:
    """What one reward said of a batch. `scores[i]` is a number or None; `errors[i]` says why it failed, or is None."""

    scores: list[float | None]
    errors: list[str | None]
    timed_out: int = 0
    seconds: float = 0.0
    raised: bool = False

    @property
    def failed(self) -> int:
        return sum(error is not None for error in self.errors)


@dataclass
class Batch:
    """What the rewards are asked about: messages in `prompts` and `completions`, the data's other columns as lists."""

    prompts: Sequence[Any]
    completions: Sequence[Any]
    completion_ids: Sequence[Sequence[int]]
    columns: Mapping[str, Sequence[Any]]
    trl: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.completions)


class RewardRuntime:
    """The rewards of one run. `decode` turns token ids into text; samples and errors are written to `folder`."""

    def __init__(
        self,
        rewards: Sequence[BoundReward],
        decode: Callable[[Sequence[int]], str],
        folder: Path | None = None,
    ) -> None:
        self.rewards = list(rewards)
        self.decode = decode
        self.folder = folder
        self.blank_errors = False
        self.counts: dict[str, list[int]] = {reward.name: [0, 0] for reward in rewards}  # failed, seen since last taken
        self.last: list[dict[str, Any]] = []
        self._workers = {r.name: Worker(r) for r in rewards if r.reward.isolation == "process"}
        self._loop: asyncio.AbstractEventLoop | None = None
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
        """Start the worker processes, so that a reward that can't be built there is found before training."""
        for worker in self._workers.values():
            worker.start()

    def close(self) -> None:
        for worker in self._workers.values():
            worker.stop()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    def functions(self) -> list[Callable[..., list[float | None]]]:
        """One column function per reward, as TRL calls them; the first to be called for a batch evaluates them all."""
        return [self._column_function(reward.name) for reward in self.rewards]

    def _column_function(self, name: str) -> Callable[..., list[float | None]]:
        def column(prompts: Any, completions: Any, completion_ids: Any, **rest: Any) -> list[float | None]:
            if self._scored[0] is not completions:  # TRL hands the same list to every function of a batch
                trl = {key: rest.pop(key) for key in CALLBACK_NAMES if key in rest}
                batch = Batch(prompts, completions, completion_ids, rest, trl)
                columns = self.evaluate(batch)
                self._after_batch(batch, columns)
                self._scored = (completions, columns)
            return self._scored[1][name].scores

        column.__name__ = name
        return column

    def score(self, batch: Batch) -> list[float | None]:
        """Each row's weighted sum of scores, written down and counted as TRL's calls are.

        A reward that does not apply to a row adds nothing. None where one failed, or where none applies.
        """
        columns = self.evaluate(batch)
        self._after_batch(batch, columns)
        for name, column in columns.items():
            if given := [score for score in column.scores if score is not None]:
                batch.trl["log_metric"](f"rewards/{name}/mean", sum(given) / len(given))
        return [self._total(columns, i) for i in range(len(batch))]

    def _total(self, columns: Mapping[str, Column], i: int) -> float | None:
        scored = [(r.weight, score) for r in self.rewards if (score := columns[r.name].scores[i]) is not None]
        failed = any(column.errors[i] is not None for column in columns.values())
        return sum(weight * score for weight, score in scored) if scored and not failed else None

    def evaluate(self, batch: Batch) -> dict[str, Column]:
        """Score a batch with every reward. Async rewards run together with each other and with the rest."""
        texts = [self.decode(ids) for ids in batch.completion_ids] if self._wants_text() else []
        inputs = {reward.name: self._inputs(reward, batch, texts) for reward in self.rewards}
        waiting = {r.name: self._submit(r, inputs[r.name], len(batch)) for r in self.rewards if r.is_async}
        columns = {
            r.name: waiting[r.name]() if r.name in waiting else self._score(r, inputs[r.name], len(batch))
            for r in sorted(self.rewards, key=lambda r: r.is_async)
        }
        if self.blank_errors:
            _blank(list(columns.values()))
        return {reward.name: columns[reward.name] for reward in self.rewards}

    def _wants_text(self) -> bool:
        return any(reward.reward.view == "text" for reward in self.rewards)

    def _inputs(self, reward: BoundReward, batch: Batch, texts: list[str]) -> _Inputs:
        """(columns, TRL's names) for one reward: lists of its own, so that no reward can change what another sees."""
        completions = texts if reward.reward.view == "text" else [_copy(c) for c in batch.completions]
        trl = {
            "prompts": [_copy(prompt) for prompt in batch.prompts],
            "completions": list(completions),
            "completion_ids": [list(ids) for ids in batch.completion_ids],
        }
        if reward.reward.isolation == "inline":
            trl |= batch.trl
        return {key: [_copy(value) for value in values] for key, values in batch.columns.items()}, trl

    def _score(self, reward: BoundReward, inputs: _Inputs, size: int) -> Column:
        """A reward that is not async: the batch, and row by row if the batch raised."""
        worker = self._workers.get(reward.name)
        call = worker.score if worker else reward.call
        started = time.perf_counter()
        column = _attempt(call, inputs, size)
        if column.raised and size > 1 and not reward.reward.batchwise:
            column = _join([_attempt(call, _row(inputs, i), 1) for i in range(size)])
        column.seconds = time.perf_counter() - started
        return column

    def _submit(self, reward: BoundReward, inputs: _Inputs, size: int) -> Callable[[], Column]:
        """Start an async reward on the event loop's thread; the function returned waits for its column."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="rlhf-async-rewards", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(_score_async(reward, inputs, size), self._loop).result

    def _after_batch(self, batch: Batch, columns: Mapping[str, Column]) -> None:
        """Count, log and write down what came out."""
        log_metric = batch.trl.get("log_metric", lambda name, value: None)
        for name, column in columns.items():
            self.counts[name][0] += column.failed
            self.counts[name][1] += len(batch)
            log_metric(f"rewards/{name}/error_rate", column.failed / len(batch))
            log_metric(f"rewards/{name}/timeout_rate", column.timed_out / len(batch))
            log_metric(f"rewards/{name}/latency", column.seconds)
        state = batch.trl.get("trainer_state")
        step = state.global_step + 1 if state else 0
        self.last = [self._sample(batch, columns, i, step) for i in range(len(batch))]
        if self.folder is not None:
            failed = [
                {
                    "step": step,
                    "reward": name,
                    "error": error,
                    "prompt": batch.prompts[i],
                    "completion": self.last[i]["completion"],
                }
                for name, column in columns.items()
                for i, error in enumerate(column.errors)
                if error is not None
            ]
            _append(self.folder / "samples.jsonl", self.last)
            _append(self.folder / "reward_errors.jsonl", failed)

    def _sample(self, batch: Batch, columns: Mapping[str, Column], i: int, step: int | None) -> dict[str, Any]:
        row = {name: values[i] for name, values in batch.columns.items()}
        scores = {name: column.scores[i] for name, column in columns.items()}
        text = self.decode(batch.completion_ids[i])
        return {"step": step, "prompt": batch.prompts[i], "completion": text, "rewards": scores, "columns": row}


_Inputs = tuple[dict[str, list[Any]], dict[str, Any]]


def _attempt(call: Callable[..., Any], inputs: _Inputs, size: int) -> Column:
    """One call. Whatever goes wrong in it becomes the rows' errors."""
    try:
        return _check(call(*inputs), size)
    except TimeoutError as error:
        return Column([None] * size, [f"timeout: {error}"] * size, timed_out=size)
    except (WorkerDied, UserError) as error:
        return Column([None] * size, [str(error)] * size)
    except (Exception, SystemExit) as error:  # a reward may raise anything
        return Column([None] * size, [_describe(error)] * size, raised=True)


async def _score_async(reward: BoundReward, inputs: _Inputs, size: int) -> Column:
    started = time.perf_counter()
    column = await _attempt_async(reward, inputs, size)
    if column.raised and size > 1 and not reward.reward.batchwise:
        rows = [_attempt_async(reward, _row(inputs, i), 1) for i in range(size)]
        column = _join(await asyncio.gather(*rows))
    column.seconds = time.perf_counter() - started
    return column


async def _attempt_async(reward: BoundReward, inputs: _Inputs, size: int) -> Column:
    try:
        result = await asyncio.wait_for(reward.call(*inputs), reward.reward.timeout or BATCH_SECONDS)
    except TimeoutError:
        return Column([None] * size, ["timeout"] * size, timed_out=size)
    except (Exception, SystemExit) as error:  # a reward may raise anything
        return Column([None] * size, [_describe(error)] * size, raised=True)
    return _check(result, size)


def _check(result: Any, size: int) -> Column:
    """Sort a function's result into scores, rows it does not apply to, and errors."""
    if isinstance(result, str | bytes | Mapping):
        return _all_failed(f"returned {type(result).__name__}, not a list of {size} scores", size)
    try:
        values = list(result)
    except TypeError:
        return _all_failed(f"returned {type(result).__name__}, not a list of {size} scores", size)
    if len(values) != size:
        return _all_failed(f"returned {len(values)} scores for {size} completions", size)
    column = Column([None] * size, [None] * size)
    for i, value in enumerate(values):
        if value is not None:
            column.scores[i], column.errors[i] = _number(value)
    return column


def _number(value: Any) -> tuple[float | None, str | None]:
    """(score, None) or (None, what is wrong with it)."""
    if isinstance(value, str | bytes):
        return None, f"{value!r:.80} is text, not a number"
    try:
        score = float(value)
    except (TypeError, ValueError):
        return None, f"{value!r:.80} is {type(value).__name__}, not a number"
    return (score, None) if math.isfinite(score) else (None, f"{score} is not a finite number")


def _all_failed(reason: str, size: int) -> Column:
    return Column([None] * size, [reason] * size)


def _join(rows: Sequence[Column]) -> Column:
    return Column(
        [row.scores[0] for row in rows], [row.errors[0] for row in rows], timed_out=sum(row.timed_out for row in rows)
    )


def _blank(columns: Sequence[Column]) -> None:
    """Leave a row with an error out of every column: summed before it is normalized, one None would act as a zero."""
    for i in range(len(columns[0].scores) if columns else 0):
        if any(column.errors[i] is not None for column in columns):
            for column in columns:
                column.scores[i] = None


def _row(inputs: _Inputs, i: int) -> _Inputs:
    columns, trl = inputs
    alone = {key: [trl[key][i]] for key in ("prompts", "completions", "completion_ids")}
    return {key: [values[i]] for key, values in columns.items()}, {**trl, **alone}


def _copy(value: Any) -> Any:
    """Lists and dicts copied through, the rest as it is."""
    if isinstance(value, list):
        return [_copy(item) for item in value]
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return value


def _describe(error: BaseException) -> str:
    return str(error) if isinstance(error, RewardFailed) else "".join(traceback.format_exception_only(error)).strip()


def _append(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add lines by one write, since all processes of a run write to the same file."""
    with file.open("ab", buffering=0) as stream:
        stream.write(b"".join(_line(row) for row in rows))


def _line(row: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:  # a lone surrogate in the data
        return json.dumps(row, default=str).encode() + b"\n"
