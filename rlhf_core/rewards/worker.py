"""A reward in its own process: `isolation="process"`.

The worker builds the reward from its specification (only plain data is pickled for it, and nothing it sends is
unpickled), runs it on its main thread and is killed, with the processes it started, when a batch takes longer than the
reward's timeout. A worker that died is restarted for the next batch. It ends with the run, even by kill -9.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rlhf_core.errors import UserError, describe
from rlhf_core.grammar import RewardSpec
from rlhf_core.rewards.binding import BoundReward, bind
from rlhf_core.rewards.outcomes import Column, Inputs, OutOfTime, RewardFailed, WorkerDied, WrongResult, as_list, score

BATCH_SECONDS = 600.0  # the time limit of a batch where the reward declares no timeout
START_SECONDS = 120.0  # the time limit for building the reward, which may import a lot


@dataclass(frozen=True)
class _Process:
    """A running worker and our end of its pipe."""

    process: multiprocessing.process.BaseProcess
    pipe: Connection

    def receive(self, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        try:
            while not self.pipe.poll(max(0.0, min(1.0, deadline - time.monotonic()))):
                # A child of a process that has ended may keep its end of the pipe open.
                if self.process.exitcode is not None and not self.pipe.poll():
                    break
                if time.monotonic() >= deadline:
                    raise OutOfTime(f"no answer within {timeout:.3g} s")
            else:
                return json.loads(self.pipe.recv_bytes())
        except (EOFError, ConnectionError):
            self.process.join(5)
        raise WorkerDied(f"the worker ended with exit code {self.process.exitcode}")

    def kill(self) -> None:
        """Kill the process and all that it started."""
        if os.name == "posix" and self.process.pid is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # it has ended, or had not yet made its process group
                pass
        self.process.kill()
        self.process.join(5)
        self.pipe.close()


class Worker:
    """One reward's process. `score` is called for one batch at a time."""

    def __init__(self, reward: BoundReward) -> None:
        self.reward = reward
        self.timeout = reward.reward.timeout or BATCH_SECONDS
        self.running: _Process | None = None

    def start(self) -> _Process:
        """Spawn the process and wait until the reward is built. Raises `UserError` if it can't be."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        name = f"rlhf-reward-{self.reward.name}"
        process = context.Process(target=_work, args=(theirs, json.dumps(asdict(self.reward.spec))), name=name)
        process.start()
        theirs.close()
        running = self.running = _Process(process, ours)
        atexit.register(self.stop)  # it is not a daemon, which could start no processes, so Python would wait for it
        try:
            answer = running.receive(START_SECONDS)
        except (WorkerDied, OutOfTime) as error:
            self.stop()
            raise UserError(f"reward {self.reward.name!r}: its worker process did not start: {error}") from error
        if "error" in answer:
            self.stop()
            raise UserError(answer["error"])
        return running

    def score(self, columns: Mapping[str, list[Any]], trl: Mapping[str, Any], seconds: float | None = None) -> Any:
        """The reward's scores for a batch. Raises `OutOfTime`, `WorkerDied`, `RewardFailed` or `WrongResult`."""
        seconds = self.timeout if seconds is None else seconds
        if seconds <= 0:
            raise OutOfTime("the rows before it used up the time")
        running = self.running or self.start()
        try:
            running.pipe.send((dict(columns), dict(trl)))
            answer = running.receive(seconds)
        except (BrokenPipeError, ConnectionError) as error:
            self.stop()
            raise WorkerDied("the worker had ended before this batch") from error
        except (WorkerDied, OutOfTime):
            self.stop()
            raise
        if answer.get("spent"):
            self.stop()
        if "wrong" in answer:
            raise WrongResult(answer["wrong"])
        if "error" in answer:
            raise RewardFailed(answer["error"])
        return answer["scores"]

    def column(self, fresh: Callable[[], Inputs], size: int) -> Column:
        """Score the batch, or its rows one by one, which have the timeout together."""
        deadline = 0.0

        def inputs() -> Inputs:
            nonlocal deadline
            deadline = time.monotonic() + self.timeout
            return fresh()

        def call(columns: Mapping[str, list[Any]], trl: Mapping[str, Any]) -> Any:
            return self.score(columns, trl, deadline - time.monotonic())

        return score(call, inputs, size, batchwise=self.reward.reward.batchwise)

    def stop(self) -> None:
        """Kill the process, if there is one. The next batch starts a new one."""
        atexit.unregister(self.stop)
        running, self.running = self.running, None
        if running is not None:
            running.kill()


def _work(pipe: Connection, spec: str) -> None:
    """The worker's main thread: build the reward, then answer batches until the pipe closes."""
    from rlhf_core.catalog import Catalog

    if os.name == "posix":
        os.setsid()  # its own group, which is killed as one; Ctrl-C is handled by the trainer
    threading.Thread(target=_end_with_the_trainer, daemon=True).start()
    try:
        reward = bind(RewardSpec(**json.loads(spec)), Catalog(), in_worker=True)
    except UserError as error:
        pipe.send_bytes(json.dumps({"error": str(error)}).encode())
        return
    if reward.reward.memory_gb is not None:
        _limit_memory(reward.reward.memory_gb)
    pipe.send_bytes(b"{}")
    while True:
        try:
            columns, trl = pipe.recv()
        except EOFError:
            return
        pipe.send_bytes(json.dumps(_answer(reward, columns, trl)).encode())


def _answer(reward: BoundReward, columns: dict[str, list[Any]], trl: dict[str, Any]) -> dict[str, Any]:
    """`scores`, or the reason for none as `error` or `wrong`; `spent` if the worker should be restarted."""
    import asyncio

    size = len(trl["completions"])
    try:
        scores = reward.call(columns, trl)
        if asyncio.iscoroutine(scores):
            scores = asyncio.run(scores)
        return {"scores": [_plain(score) for score in as_list(scores, size)]}
    except WrongResult as error:
        return {"wrong": str(error)}
    except MemoryError as error:
        limit = reward.reward.memory_gb
        over = f": over the reward's limit of {limit:g} GB" if limit else ""
        return {"error": describe(error) + over, "spent": True}
    except (Exception, SystemExit) as error:  # a reward may raise anything
        return {"error": describe(error)}


def _plain(score: Any) -> Any:
    """None, a float or a text, which JSON can represent; the caller refuses texts."""
    if score is None or isinstance(score, str):
        return score
    try:
        return float(score)
    except Exception:  # a reward may return any object
        return f"<{type(score).__name__}>"


def _end_with_the_trainer() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        if os.name == "posix":
            os.killpg(0, signal.SIGKILL)


def _limit_memory(gigabytes: float) -> None:
    """Let the process allocate `gigabytes` more than now, then fail with a `MemoryError`."""
    if sys.platform != "linux":
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(gigabytes * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
