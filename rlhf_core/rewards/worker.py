"""A reward in its own process: `isolation="process"`.

The worker builds the reward from its specification (only plain data is pickled for it, and nothing it sends is
unpickled), runs it on its main thread and is killed, with the processes it started, when a batch takes longer than the
reward's timeout. A worker that died is restarted for the next batch. It ends with the run, even by kill -9.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rlhf_core.catalog import Catalog
from rlhf_core.errors import UserError
from rlhf_core.rewards.binding import BoundReward, bind
from rlhf_core.rewards.outcomes import Column, Inputs, check, exception, failure, out_of_time
from rlhf_core.ui.text import protect_output

START_SECONDS = 120.0  # the time limit for building the reward, which may import a lot


class Worker:
    """One reward's process. `score` is called for one batch at a time."""

    def __init__(self, reward: BoundReward) -> None:
        self.reward = reward
        self.process: multiprocessing.process.BaseProcess | None = None
        self.pipe: Connection

    def start(self) -> multiprocessing.process.BaseProcess:
        """Spawn the process and wait until the reward is built. Raises `UserError` if it can't be."""
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        process = self.process = context.Process(target=_work, args=(theirs,))
        process.start()
        theirs.close()
        atexit.register(self.stop)  # it is not a daemon, which could start no processes, so Python would wait for it
        try:
            problem = self._ask(process, self.reward.spec, START_SECONDS)
        except (ChildProcessError, TimeoutError) as error:
            problem = f"reward {self.reward.name!r}: its worker process did not start: {error}"
        if problem is not None:
            self.stop()
            raise UserError(problem)
        return process

    def score(self, inputs: Inputs, size: int, seconds: float) -> Column:
        """The outcome of one call. The process is killed if it takes longer than `seconds`."""
        try:
            column, out_of_memory = self._ask(self.process or self.start(), inputs, seconds)
        except TimeoutError as error:
            self.stop()
            return out_of_time(str(error), size)
        except (ChildProcessError, UserError) as error:
            self.stop()
            return failure(str(error), size)
        if out_of_memory:
            self.stop()
        return Column(**column)

    def stop(self) -> None:
        """Kill the process, if there is one, and all that it started. The next batch starts a new one."""
        atexit.unregister(self.stop)
        process, self.process = self.process, None
        if process is None:
            return
        if os.name == "posix" and process.pid is not None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # it has ended, or had not yet made its process group
                pass
        process.kill()
        process.join(5)
        self.pipe.close()

    def _ask(self, process: multiprocessing.process.BaseProcess, question: Any, seconds: float) -> Any:
        """The process's answer. Raises `TimeoutError` if it takes longer, `ChildProcessError` if it has ended."""
        deadline = time.monotonic() + seconds
        try:
            self.pipe.send(question)
            while not self.pipe.poll(max(0.0, min(1.0, deadline - time.monotonic()))):
                # A child of a process that has ended may keep its end of the pipe open.
                if process.exitcode is not None and not self.pipe.poll():
                    break
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"no answer within {seconds:.3g} s")
            else:
                return json.loads(self.pipe.recv_bytes())
        except (EOFError, ConnectionError):
            process.join(5)
        raise ChildProcessError(f"the worker ended with exit code {process.exitcode}")


def _work(pipe: Connection) -> None:
    """The worker's main thread: build the reward, then answer batches until the pipe closes."""
    if os.name == "posix":
        os.setsid()  # its own group, which is killed as one; Ctrl-C is handled by the trainer
    protect_output()
    threading.Thread(target=_end_with_the_trainer, daemon=True).start()
    try:
        reward = bind(pipe.recv(), Catalog(), in_worker=True)
    except UserError as error:
        pipe.send_bytes(json.dumps(str(error)).encode())
        return
    if reward.reward.memory_gb is not None:
        _limit_memory(reward.reward.memory_gb)
    pipe.send_bytes(b"null")
    while True:
        try:
            inputs: Inputs = pipe.recv()
        except EOFError:
            return
        pipe.send_bytes(json.dumps(_answer(reward, inputs)).encode())


def _answer(reward: BoundReward, inputs: Inputs) -> tuple[dict[str, Any], bool]:
    """(the outcome, whether memory ran out, so that the worker should be restarted)."""
    size = len(inputs[1]["completions"])
    try:
        result = reward.call(*inputs)
        return asdict(check(asyncio.run(result) if asyncio.iscoroutine(result) else result, size)), False
    except (Exception, SystemExit) as error:  # a reward may raise anything
        out_of_memory = isinstance(error, MemoryError)
        limit = reward.reward.memory_gb
        column = exception(error, size)
        if out_of_memory and limit:
            column.errors = [f"{column.errors[0]}: over the reward's limit of {limit:g} GB"] * size
        return asdict(column), out_of_memory


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
