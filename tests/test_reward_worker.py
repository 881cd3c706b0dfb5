"""What a worker's answers become, with a process that is played by the test."""

from __future__ import annotations

import atexit
import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
from socket import socketpair
from types import SimpleNamespace

import pytest

from rlhf_core.catalog import Catalog
from rlhf_core.grammar import RewardSpec
from rlhf_core.rewards.binding import bind
from rlhf_core.rewards.outcomes import Column
from rlhf_core.rewards.worker import KEY, LENGTH, Worker, _ending, _read, _send


class Process:
    pid, exitcode, killed = None, None, False

    def kill(self):
        self.killed = True

    def join(self, seconds):
        self.exitcode = -9 if self.killed else 7


@pytest.fixture
def worker():
    """worker(answer) -> a worker whose process answers a question by answer(its end of the pipe, the question's key)."""
    threads = []

    def make(answer) -> Worker:
        made = Worker(None)
        made.process = Process()
        made.pipe, theirs = socketpair()

        def work():
            header = _read(theirs, KEY + LENGTH, lambda: None)
            _read(theirs, int.from_bytes(header[KEY:], "big"), lambda: None)
            answer(theirs, header[:KEY])

        threads.append((threading.Thread(target=work), theirs))
        threads[-1][0].start()
        return made

    yield make
    for thread, pipe in threads:
        thread.join()
        pipe.close()


def answers(memory_ran_out: bool):
    content = {"scores": [1.0, None], "errors": [None, "x" * 3_000_000]}  # more than a pipe holds
    return lambda pipe, key: _send(pipe, key, json.dumps([content, memory_ran_out]).encode())


# what the process does -> (what the error of each row contains, rows that timed out)
ENDINGS = {
    "nothing": (lambda pipe, key: None, "timeout: no answer within 0.05 s", 2),
    "a part": (lambda pipe, key: pipe.sendall(key), "timeout: no answer within 0.05 s", 2),
    "closes": (lambda pipe, key: pipe.close(), "the worker ended with exit code 7", 0),
    "another key": (lambda pipe, key: _send(pipe, b"k" * KEY, b"null"), "wrote to the descriptor", 0),
}


@pytest.mark.parametrize("case", ENDINGS)
def test_what_is_no_answer_is_an_error_and_the_process_is_killed(worker, case):
    answer, error, timed_out = ENDINGS[case]
    worker = worker(answer)
    process = worker.process
    column = worker.score(({}, {}), 2, 0.05 if timed_out else 60.0)
    assert column.scores == [None, None]
    assert all(error in found for found in column.errors)
    assert (column.timed_out, column.stopped) == (timed_out, bool(timed_out))
    assert (process.killed, worker.process, worker.pipe.fileno()) == (True, None, -1)


class Ending(Process):
    """Ends after it was looked at twice."""

    exitcode = property(lambda self: None if next(self.looks) < 2 else -15, lambda self, code: None)

    def __init__(self):
        self.looks = itertools.count()


def test_a_process_that_ends_is_not_waited_for_although_its_child_keeps_the_pipe(worker, monkeypatch):
    monkeypatch.setattr("rlhf_core.rewards.worker.WATCH_SECONDS", 0.01)
    worker = worker(lambda pipe, key: None)
    worker.process = Ending()
    assert worker.score(({}, {}), 2, 60.0).errors == ["the worker was killed by SIGTERM"] * 2


def test_a_process_that_does_not_read_its_question_is_out_of_time():
    worker = Worker(None)
    worker.process = Process()
    worker.pipe, theirs = socketpair()
    assert worker.score(({"a": ["x" * 3_000_000]}, {}), 2, 0.05).errors == ["timeout: no answer within 0.05 s"] * 2
    theirs.close()


@pytest.mark.parametrize("memory_ran_out", [False, True])
def test_a_worker_whose_memory_ran_out_answers_and_is_killed(worker, memory_ran_out):
    worker = worker(answers(memory_ran_out))
    process = worker.process
    assert worker.score(({}, {}), 2, 60.0) == Column([1.0, None], [None, "x" * 3_000_000])
    assert process.killed is memory_ran_out


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (None, "the worker ended with exit code None"),
        (0, "the worker ended with exit code 0"),
        (3, "the worker ended with exit code 3"),
        (-1, "the worker was killed by SIGHUP"),
        (-11, "the worker was killed by SIGSEGV"),
        (-999, "the worker was killed by signal 999"),
    ],
)
def test_how_a_worker_ended(code, text):
    assert _ending(code) == text


class Started(Process):
    """Says that the reward is built, and ends at the next question."""

    def __init__(self, target, args):
        self.pipe = args[0].dup()

    def start(self):
        def work():
            for answer in (b"null", None):
                header = _read(self.pipe, KEY + LENGTH, lambda: None)
                _read(self.pipe, int.from_bytes(header[KEY:], "big"), lambda: None)
                if answer:
                    _send(self.pipe, header[:KEY], answer)
            self.pipe.close()

        threading.Thread(target=work).start()


def test_a_worker_is_stopped_when_python_ends_and_only_then_if_it_still_runs(monkeypatch):
    registered = []
    monkeypatch.setattr(atexit, "register", registered.append)
    monkeypatch.setattr(atexit, "unregister", lambda stop: registered.clear())
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: SimpleNamespace(Process=Started))
    worker = Worker(SimpleNamespace(spec="spec"))
    assert worker.start() is worker.start()
    assert registered == [worker.stop]
    assert worker.score(({}, {}), 1, 10.0).errors == ["the worker ended with exit code 7"]
    assert registered == []


def test_what_the_process_started_is_killed_with_it(worker, monkeypatch):
    killed = []
    monkeypatch.setattr(os, "killpg", lambda *arguments: killed.append(arguments))
    worker = worker(answers(True))
    worker.process.pid = 1 << 30  # of no process
    worker.score(({}, {}), 2, 60.0)
    assert killed == [(1 << 30, signal.SIGKILL)]


REWARD = """
import json, mmap, os
from rlhf_core import Reward
def told(completions, *, log_extra=None, **_):
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "GROUP_RANK", "ACCELERATE_USE_FSDP", "CUDA_VISIBLE_DEVICES")
    raise ValueError(json.dumps({name: os.environ[name] for name in names if name in os.environ}))
def reserves(completions, **_):
    with mmap.mmap(-1, 64 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0):
        return [1.0] * len(completions)
def fills(completions, **_):
    return [float(len([bytes(1 << 20) for _ in range(300)]))] * len(completions)
told = Reward(told, isolation="process", name="told")
reserves = Reward(reserves, isolation="process", memory_gb=0.2, name="reserves")
fills = Reward(fills, isolation="process", memory_gb=0.2, name="fills")
enough = Reward(fills.function, isolation="process", memory_gb=0.5, name="enough")
"""


@pytest.fixture
def forked(tmp_path, monkeypatch):
    """forked(name) -> the outcome of one answer, of a reward of the file above, in a worker that is a copy of this
    process: a new one would import all libraries.
    """
    (tmp_path / "of_worker.py").write_text(REWARD)
    monkeypatch.setattr("rlhf_core.rewards.worker.WATCH_SECONDS", 0.01)
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: context)

    def make(name: str) -> Column:
        worker = Worker(bind(RewardSpec.read(f"{tmp_path}/of_worker.py:{name}"), Catalog()))
        try:
            return worker.score(({}, {"completions": ["a"]}), 1, 60.0)
        finally:
            worker.stop()

    return make


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux")
def test_memory_counts_that_is_written_to_not_addresses_that_are_reserved(forked):
    """CUDA reserves tens of gigabytes of addresses when it starts."""
    assert forked("reserves").errors == [None]
    assert forked("enough").errors == [None]
    assert forked("fills").errors == ["MemoryError: over the reward's limit of 0.2 GB"]


@pytest.mark.parametrize(
    ("rank", "visible", "seen"),
    [(None, "4,6", "4,6"), ("1", None, "1"), ("1", "4,6", "6"), ("1", "4", "4"), ("0", "", "")],
)
def test_a_worker_is_none_of_several_processes_and_sees_the_gpu_of_its_own(forked, monkeypatch, rank, visible, seen):
    launcher = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "GROUP_RANK": "0", "ACCELERATE_USE_FSDP": "true"}
    for name, value in {**launcher, "LOCAL_RANK": rank, "CUDA_VISIBLE_DEVICES": visible}.items():
        monkeypatch.setenv(name, value or "")
        if value is None:
            monkeypatch.delenv(name)
    error = forked("told").errors[0]
    assert json.loads(error.removeprefix("ValueError: ")) == {"CUDA_VISIBLE_DEVICES": seen}
