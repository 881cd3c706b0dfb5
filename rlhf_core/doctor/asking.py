"""A process that tries what may crash or hang. It is asked one question after the other, and replaced when it ends."""

from __future__ import annotations

import collections
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any, NamedTuple

from rlhf_core.environment import STARTED_BY, VALUES

SECONDS = 120  # an answer may take: the first import from a network's disk takes a minute
LOOK = 0.2  # seconds between looks at whether it still lives
LAST_LINES = 20  # of what the process said, to find out why it ended


class Answer(NamedTuple):
    """What a probe found, or why it found nothing."""

    found: dict[str, Any]
    error: str | None = None


class Asking:
    """Asks the functions of `probes.py`, in one process as long as that lives."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._said: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        self._known: dict[str, Answer] = {}

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self._end(seconds=2)

    def ask(self, probe: str, *arguments: str) -> Answer:
        """What a probe answers, asked once. An exception, an end of its process or no end of waiting is an error."""
        question = json.dumps([probe, *arguments])
        if question not in self._known:
            self._known[question] = self._ask(question)
        return self._known[question]

    def _ask(self, question: str) -> Answer:
        try:
            process = self._process or self._start()
        except OSError as error:  # too many processes or open files
            return Answer({}, f"no process can be started: {error.strerror}")
        try:
            assert process.stdin is not None
            process.stdin.write(question + "\n")
            process.stdin.flush()
            line = self._wait(process)
        except TimeoutError:
            self._end()
            return Answer({}, f"no answer after {self.seconds:g} s")
        except BrokenPipeError:
            line = None
        if line is None:
            return Answer({}, self._how_it_ended(process))
        return Answer(*json.loads(line))

    def _wait(self, process: subprocess.Popen[str]) -> str | None:
        """The answer, or None where the process ended. Raises `TimeoutError`."""
        latest = time.monotonic() + self.seconds
        while True:
            ended = process.poll() is not None  # what it has started may keep its output open
            try:
                return self._answers.get(timeout=LOOK)
            except queue.Empty:
                if ended:
                    return None
                if time.monotonic() > latest:
                    raise TimeoutError from None

    def _start(self) -> subprocess.Popen[str]:
        # With a value that accelerate can't read, every import would fail: system.environment tells it.
        kept = {name: value for name, value in os.environ.items() if name not in VALUES}
        environment = {**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environment[STARTED_BY] = str(os.getpid())
        self._process = process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rlhf_core.doctor.probes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            start_new_session=True,  # Ctrl-C ends the command, which ends it and what it has started
        )
        self._answers, self._said = queue.Queue(), collections.deque(maxlen=LAST_LINES)
        for read, into in ((_read_answers, self._answers), (_read_said, self._said)):
            threading.Thread(target=read, args=(process, into), daemon=True).start()
        return process

    def _how_it_ended(self, process: subprocess.Popen[str]) -> str:
        """Why there is no answer, with what the process said last."""
        with suppress(subprocess.TimeoutExpired):
            process.wait(2)
        code = process.poll()
        self._end()
        how = "closed its output" if code is None else f"ended with exit code {code}"
        if code is not None and -code in list(signal.Signals):
            how = f"was ended by {signal.Signals(-code).name}"
        last = [line.strip() for line in self._said if line.strip()][-1:]
        return ": ".join([f"its process {how}", *last])

    def _end(self, seconds: float = 0) -> None:
        """Kill the process and what it has started. One that waits for a broken driver can't be, and is left."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(BrokenPipeError):
            process.stdin.close()  # type: ignore[union-attr]  # with no more questions it ends by itself
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(2)


def _read_answers(process: subprocess.Popen[str], answers: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            answers.put(line)
    answers.put(None)


def _read_said(process: subprocess.Popen[str], said: collections.deque[str]) -> None:
    assert process.stderr is not None
    with process.stderr as lines:
        said.extend(lines)
