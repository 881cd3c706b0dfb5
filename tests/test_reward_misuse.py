"""What a reward may do to the run, whether it means to or not: an error of its own is the worst that comes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from rlhf_core.catalog import Catalog
from rlhf_core.grammar import RewardSpec
from rlhf_core.rewards.batch import RewardBatch
from rlhf_core.rewards.binding import bind_all
from rlhf_core.rewards.guard import guarded
from rlhf_core.rewards.runtime import RewardRuntime
from rlhf_core.rewards.smoke_test import PLACEHOLDERS

SIZE = 4
CODE = """
import asyncio, os, signal, time
from rlhf_core import Reward

class Panic(BaseException):
    pass
class Untold(Exception):
    def __str__(self): raise RuntimeError("no text")
class Unshown:
    def __repr__(self): raise RuntimeError("no text")
def panics(completions, **_): raise Panic("as of Rust")
def cancels(completions, **_): raise asyncio.CancelledError
def ends_generator(completions, **_): raise GeneratorExit
def untold(completions, **_): raise Untold
def unshown(completions, **_): return [Unshown(), 1.0, 1.0, 1.0]
def long_text(completions, **_): raise ValueError("x" * 10_000_000)
def surrogate(completions, **_): raise ValueError(f"a {chr(0xD800)} b")
def beyond(completions, **_): return [1e39, -2e9, 1e9, 0.0]
def endless(completions, **_):
    while True: yield 1.0
def rings(completions, **_):
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    time.sleep(10)
def forks(completions, **_):
    os.fork()
    return [1.0] * len(completions)
async def async_panics(completions, **_): raise Panic("as of Rust")
async def async_ends_generator(completions, **_): raise GeneratorExit
async def async_cancels(completions, **_): raise asyncio.CancelledError
async def async_stops(completions, **_):
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.01)
    return [1.0] * len(completions)
def logs_text(completions, log_metric, **_): log_metric("mine", "text")
def logs_step(completions, log_metric, **_): log_metric("step", 1.0)
def logs_key(completions, log_metric, **_): log_metric(("a", 1), 1.0)
def logs_half(completions, log_metric, **_): log_metric(f"a{chr(0xD800)}", 1.0)
def logs_short(completions, log_extra, **_): log_extra("mine", [1, 2])
def logs_well(completions, log_metric, log_extra, trainer_state, **_):
    trainer_state.max_steps = 1
    log_metric("mine", float("nan"))
    log_extra("mine", completions)
    return [1.0] * len(completions)
def garbage(completions, **_):
    for number in range(3, 200):
        try: os.write(number, b"garbage" * 10)
        except OSError: pass
    return [1.0] * len(completions)
def closes(completions, **_):
    os.closerange(3, 200)
    return [1.0] * len(completions)

p_garbage = Reward(garbage, isolation="process", timeout=10.0, name="p_garbage")
p_closes = Reward(closes, isolation="process", timeout=10.0, name="p_closes")
p_forks = Reward(forks, isolation="process", timeout=10.0, name="p_forks")
"""

# reward -> (scores, what each row's error contains; None: no error)
OUTCOMES = {
    "p_garbage": ([None] * 4, ["wrote to the descriptor"] * 4),
    "p_closes": ([None] * 4, ["the worker ended with exit code"] * 4),
    "p_forks": ([1.0] * 4, [None] * 4),  # and its child ends, instead of answering too
    "panics": ([None] * 4, ["Panic: as of Rust"] * 4),
    "cancels": ([None] * 4, ["CancelledError"] * 4),
    "ends_generator": ([None] * 4, ["GeneratorExit"] * 4),
    "untold": ([None] * 4, ["Untold"] * 4),
    "unshown": ([None, 1.0, 1.0, 1.0], ["is Unshown, not a number", None, None, None]),
    "long_text": ([None] * 4, ["ValueError: xxx"] * 4),
    "surrogate": ([None] * 4, [r"a \ud800 b"] * 4),
    "beyond": ([None, None, 1e9, 0.0], ["1e+39 is beyond ±1e+09", "-2e+09 is beyond", None, None]),
    "endless": ([None] * 4, ["returned more than 4 scores for 4 completions"] * 4),
    "rings": ([None] * 4, ["TimeoutError: an alarm that the reward set"] * 4),
    "forks": ([1.0] * 4, [None] * 4),  # and its child ends, instead of going on as a second trainer
    "async_panics": ([None] * 4, ["Panic: as of Rust"] * 4),
    "async_ends_generator": ([None] * 4, ["GeneratorExit"] * 4),
    "async_cancels": ([None] * 4, ["CancelledError, by the reward itself"] * 4),
    "async_stops": ([1.0] * 4, [None] * 4),
    "logs_text": ([None] * 4, ["could not convert string to float"] * 4),
    "logs_step": ([None] * 4, ["'step' is no name of its own"] * 4),
    "logs_key": ([None] * 4, ["('a', 1) is no name of its own"] * 4),
    "logs_half": ([None] * 4, ["is no name of its own"] * 4),  # a half of a character can't be written
    "logs_short": ([None] * 4, ["log_extra takes a name and a list of"] * 4),
    "logs_well": ([1.0] * 4, [None] * 4),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_misuse_is_an_error_of_the_reward(tmp_path, name):
    (tmp_path / "code.py").write_text(CODE)
    runtime = RewardRuntime(bind_all([RewardSpec.read(f"{tmp_path}/code.py:{name}")], Catalog()), lambda ids: "abc")
    completions = [[{"role": "assistant", "content": "abc"}] for _ in range(SIZE)]
    prompts = [[{"role": "user", "content": f"q{i}"}] for i in range(SIZE)]
    try:
        (column,) = runtime.evaluate(RewardBatch(prompts, completions, [[1]] * SIZE, {}, PLACEHOLDERS)).values()
    finally:
        runtime.close()
    scores, errors = OUTCOMES[name]
    assert column.scores == scores
    for expected, found in zip(errors, column.errors, strict=True):
        assert (found is None) if expected is None else (expected in found and len(found) < 3000)
    assert PLACEHOLDERS["trainer_state"].max_steps == 1


LEAVES_CHANGED = """
import logging, os, signal, sys, warnings
from rlhf_core.rewards.guard import guarded
def state():
    errors = [one for one in warnings.filters if one[0] == "error"]
    stop = signal.getsignal(signal.SIGINT)
    stop = stop, signal.getsignal(signal.SIGTERM)
    return os.getcwd(), logging.root.manager.disable, errors, signal.getitimer(0)[0], stop, os.fstat(1).st_ino
before = state()
for _ in range(2):
    with guarded("it"):
        os.chdir("/"); os.close(1); sys.stdout.close(); logging.disable(); warnings.simplefilter("error")
        signal.alarm(60); signal.signal(signal.SIGINT, signal.SIG_DFL); signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert state() == before
print("printed")
"""


def test_what_a_reward_leaves_changed_is_put_back_and_said_once():
    ended = subprocess.run([sys.executable, "-c", LEAVES_CHANGED], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "printed\n"), ended.stderr
    settings = "the working directory", "what is logged", "what Ctrl-C does", "what SIGTERM does"
    for what in (*settings, "which warnings are errors", "an alarm", "stdout"):
        assert ended.stderr.count(f"reward 'it' left {what} changed") == 1


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN])
def test_an_alarm_rings_whoever_ignored_it_before(before):
    def rings():
        with guarded("rings"):
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            time.sleep(10)

    old = signal.signal(signal.SIGALRM, before)
    try:
        with pytest.raises(TimeoutError):
            rings()
        assert signal.getsignal(signal.SIGALRM) == before
    finally:
        signal.signal(signal.SIGALRM, old)


def test_an_alarm_that_somebody_else_set_goes_on():
    signal.setitimer(signal.ITIMER_REAL, 0.9)
    with guarded("ordinary"):
        pass
    assert 0 < signal.setitimer(signal.ITIMER_REAL, 0)[0] < 0.9


def test_an_alarm_soon_after_the_call_is_put_off_and_said(caplog):
    with guarded("rings later"):
        signal.setitimer(signal.ITIMER_REAL, 0.9)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert "reward 'rings later' left an alarm changed" in caplog.text


def test_gradients_and_types_of_torch_are_put_back(caplog):
    with guarded("grads"):
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert len(caplog.messages) == 2


def test_an_ordinary_call_changes_and_says_nothing(caplog):
    here, streams, opened = os.getcwd(), (sys.stdout, sys.stderr), len(os.listdir("/dev/fd"))
    for _ in range(3):
        with guarded("ordinary"):
            torch.rand(2)
            print("a reward may print")
    assert (os.getcwd(), caplog.messages) == (here, [])
    assert (sys.stdout, sys.stderr) == streams
    assert len(os.listdir("/dev/fd")) == opened
