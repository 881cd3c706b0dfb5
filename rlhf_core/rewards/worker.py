"""A reward in its own process: `isolation="process"`.

The worker builds the reward from its specification (only plain data is pickled for it, and nothing it sends is
unpickled), runs it on its main thread and is killed, with the processes it started, when a batch takes longer than the
reward's timeout. A worker that died is restarted for the next batch. It ends with the run, even by kill -9 and while it
holds Python's lock: on Linux the kernel kills it, and everywhere a second process watches both.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import faulthandler
import json
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from pathlib import Path
from socket import socket, socketpair
from typing import Any

from rlhf_core import environment
from rlhf_core.catalog import Catalog
from rlhf_core.errors import UserError
from rlhf_core.rewards.binding import BoundReward, bind
from rlhf_core.rewards.guard import guarded
from rlhf_core.rewards.outcomes import Column, Inputs, check, exception, failure, out_of_time
from rlhf_core.ui.text import protect_output

START_SECONDS = 120.0  # the time limit for building the reward, which may import a lot
WATCH_SECONDS = 0.5  # between two looks at whether a process is alive
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
# A message is a key, its content's length, and its content. An answer has the random key of its question, so that what
# a reward writes to the descriptors of its process is no answer.
KEY, LENGTH = 16, 8  # bytes


class Worker:
    """One reward's process. `score` is called for one batch at a time."""

    def __init__(self, reward: BoundReward) -> None:
        self.reward = reward
        self.process: multiprocessing.process.BaseProcess | None = None
        self.pipe: socket

    def start(self) -> multiprocessing.process.BaseProcess:
        """Spawn the process and wait until the reward is built. Raises `UserError` if it can't be."""
        if self.process is not None:
            return self.process
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = socketpair()
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
            column, out_of_memory = self._ask(self.start(), inputs, seconds)
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
        """The process's answer. Raises `TimeoutError` if it takes longer, `ChildProcessError` if there is none."""
        deadline, key = time.monotonic() + seconds, os.urandom(KEY)
        try:
            self.pipe.settimeout(seconds)
            _send(self.pipe, key, pickle.dumps(question))
            header = self._read(process, KEY + LENGTH, deadline)
            if header[:KEY] != key:
                raise ChildProcessError("the reward wrote to the descriptor through which its worker answers")
            return json.loads(self._read(process, int.from_bytes(header[KEY:], "big"), deadline))
        except TimeoutError:
            raise TimeoutError(f"no answer within {seconds:.3g} s") from None
        except (EOFError, ConnectionError):
            process.join(5)
        raise ChildProcessError(_ending(process.exitcode))

    def _read(self, process: multiprocessing.process.BaseProcess, size: int, deadline: float) -> bytes:
        def wait_longer() -> float:
            # A child of a process that has ended may keep its end of the pipe open.
            if process.exitcode is not None:
                raise EOFError
            if time.monotonic() >= deadline:
                raise TimeoutError
            return min(WATCH_SECONDS, max(0.001, deadline - time.monotonic()))

        return _read(self.pipe, size, wait_longer)


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"the worker ended with exit code {code}"
    name = next((one.name for one in signal.Signals if one == -code), f"signal {-code}")
    return f"the worker was killed by {name}"


def _send(pipe: socket, key: bytes, content: bytes) -> None:
    pipe.sendall(key + len(content).to_bytes(LENGTH, "big") + content)


def _read(pipe: socket, size: int, wait_longer: Callable[[], float | None]) -> bytes:
    """`size` bytes. `wait_longer` says before each wait for how many seconds, or raises an error."""
    content = bytearray()
    while len(content) < size:
        pipe.settimeout(wait_longer())
        try:
            part = pipe.recv(min(size - len(content), 1 << 20))
        except TimeoutError:
            continue
        if not part:
            raise EOFError
        content += part
    return bytes(content)


def _work(pipe: socket) -> None:
    """The worker's main thread: build the reward, then answer batches until the pipe closes."""
    environment.see_one_gpu()
    environment.be_alone()
    if os.name == "posix":
        os.setsid()  # its own group, which is killed as one; Ctrl-C is handled by the trainer
        _end_with_the_trainer(pipe)
        # The process that removes what processes share at their end is not for a reward to write to.
        if (tracker := resource_tracker.getfd()) is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), tracker)
    protect_output()
    faulthandler.enable(2)
    try:
        key, spec = _question(pipe)
        try:
            reward = bind(spec, Catalog(), in_worker=True)
        except UserError as error:
            _send(pipe, key, json.dumps(str(error)).encode())
            return
        if reward.reward.memory_gb is not None:
            _limit_memory(reward.reward.memory_gb)
        _send(pipe, key, b"null")
        while True:
            key, inputs = _question(pipe)
            _send(pipe, key, json.dumps(_answer(reward, inputs)).encode())
    except (EOFError, OSError):  # the trainer has ended, or the reward has closed the pipe
        return


def _question(pipe: socket) -> tuple[bytes, Any]:
    header = _read(pipe, KEY + LENGTH, lambda: None)
    return header[:KEY], pickle.loads(_read(pipe, int.from_bytes(header[KEY:], "big"), lambda: None))


def _answer(reward: BoundReward, inputs: Inputs) -> tuple[dict[str, Any], bool]:
    """(the outcome, whether memory ran out, so that the worker should be restarted)."""
    size = len(inputs[1]["completions"])
    try:
        with guarded(reward.name):
            result = reward.call(*inputs)
            return asdict(check(asyncio.run(result) if asyncio.iscoroutine(result) else result, size)), False
    except BaseException as error:  # a reward may raise anything
        out_of_memory = isinstance(error, MemoryError)
        limit = reward.reward.memory_gb
        column = exception(error, size)
        if out_of_memory and limit:
            column.errors = [f"{column.errors[0]}: over the reward's limit of {limit:g} GB"] * size
        return asdict(column), out_of_memory


def _end_with_the_trainer(pipe: socket) -> None:
    """Have this process killed, and all that it starts, when the trainer ends.

    A thread would not do: a regular expression may hold Python's lock for hours.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    worker, trainer = os.getpid(), multiprocessing.parent_process()
    if trainer is None or os.fork():
        return
    pipe.close()
    while os.getppid() == worker and not wait([trainer.sentinel], WATCH_SECONDS):
        pass
    os.killpg(0, signal.SIGKILL)


def _limit_memory(gigabytes: float) -> None:
    """Let the process write to `gigabytes` of memory more than now, then fail with a `MemoryError`.

    Addresses that are only reserved don't count: CUDA takes tens of gigabytes of them when it starts.
    """
    if sys.platform != "linux":
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[5])  # of data and stack
    limit = pages * resource.getpagesize() + int(gigabytes * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
