"""A reward in a process of its own: `isolation="process"`.

The worker is spawned, builds the reward from its specification (nothing is pickled to it but plain data, nothing is
unpickled from it), runs it on its main thread and is killed when a batch takes longer than the reward's timeout. A
worker that died is started anew for the next batch.
"""

from __future__ import annotations

import json
import multiprocessing
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from rlhf_core.errors import UserError
from rlhf_core.reward_spec import BoundReward, RewardSpec, bind

BATCH_SECONDS = 600.0  # that a batch may take where the reward declares no timeout
START_SECONDS = 120.0  # a worker may import a lot before its first batch


class WorkerDied(RuntimeError):
    """The worker's process ended while it had a batch."""


class RewardFailed(RuntimeError):
    """The reward raised, in its worker. The message has the exception's type and text."""


@dataclass(frozen=True)
class _Process:
    """A running worker and our end of its pipe."""

    process: multiprocessing.process.BaseProcess
    pipe: Connection

    def receive(self, timeout: float) -> dict[str, Any]:
        try:
            if not self.pipe.poll(timeout):
                raise TimeoutError(f"no answer within {timeout:g} s")
            return json.loads(self.pipe.recv_bytes())
        except (EOFError, ConnectionError) as error:
            self.process.join(5)
            raise WorkerDied(f"the worker ended with exit code {self.process.exitcode}") from error

    def kill(self) -> None:
        self.process.kill()
        self.process.join(5)
        self.pipe.close()


class Worker:
    """One reward's process. `score` is called for one batch at a time."""

    def __init__(self, reward: BoundReward) -> None:
        self.reward = reward
        self.running: _Process | None = None

    def start(self) -> _Process:
        """Spawn the process and wait until the reward is built. Raises `UserError` if it can't be."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        name = f"rlhf-reward-{self.reward.name}"
        process = context.Process(target=_work, args=(theirs, _as_json(self.reward.spec)), name=name, daemon=True)
        process.start()
        theirs.close()
        running = _Process(process, ours)
        try:
            answer = running.receive(START_SECONDS)
        except (WorkerDied, TimeoutError) as error:
            running.kill()
            raise UserError(f"reward {self.reward.name!r}: its worker process did not start: {error}") from error
        if "error" in answer:
            running.kill()
            raise UserError(answer["error"])
        self.running = running
        return running

    def score(self, columns: Mapping[str, list[Any]], trl: Mapping[str, Any]) -> Any:
        """The reward's scores for a batch. Raises `TimeoutError`, `WorkerDied` or `RewardFailed`."""
        running = self.running or self.start()
        try:
            running.pipe.send((dict(columns), dict(trl)))
            answer = running.receive(self.reward.reward.timeout or BATCH_SECONDS)
        except (BrokenPipeError, ConnectionError) as error:
            self.stop()
            raise WorkerDied("the worker had ended before this batch") from error
        except (WorkerDied, TimeoutError):
            self.stop()
            raise
        if "error" in answer:
            raise RewardFailed(answer["error"])
        return answer["scores"]

    def stop(self) -> None:
        """Kill the process, if there is one. The next batch starts another."""
        if self.running is not None:
            self.running.kill()
        self.running = None


def _as_json(spec: RewardSpec) -> str:
    return json.dumps([spec.target, dict(spec.parameters), spec.weight, spec.name])


def _work(pipe: Connection, spec: str) -> None:
    """The worker's main thread: build the reward, then answer batches until the pipe closes."""
    import asyncio

    from rlhf_core.plugins import Catalog

    try:
        reward = bind(RewardSpec(*json.loads(spec)), Catalog(), in_worker=True)
    except UserError as error:
        pipe.send_bytes(json.dumps({"error": str(error)}).encode())
        return
    pipe.send_bytes(b"{}")
    while True:
        try:
            columns, trl = pipe.recv()
        except EOFError:
            return
        try:
            scores = reward.call(columns, trl)
            if asyncio.iscoroutine(scores):
                scores = asyncio.run(scores)
            answer: dict[str, Any] = {"scores": [_plain(score) for score in scores]}
        except Exception as error:
            answer = {"error": "".join(traceback.format_exception_only(error)).strip()}
        pipe.send_bytes(json.dumps(answer).encode())


def _plain(score: Any) -> Any:
    """A number as JSON has it; anything else as text, which the caller refuses as it would here."""
    if score is None or isinstance(score, str):
        return score
    try:
        return float(score)
    except (TypeError, ValueError):
        return f"<{type(score).__name__}>"
