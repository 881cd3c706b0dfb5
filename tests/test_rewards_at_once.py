"""Rewards beside each other: what waits is scored side by side, with the scores of one after the other."""

from __future__ import annotations

import os
import time

import pytest

from rlhf_core.catalog import Catalog
from rlhf_core.rewards.runtime import Batch, RewardRuntime
from rlhf_core.rewards.spec import RewardSpec, bind_all

CODE = """
import asyncio, sqlite3, threading, time
from rlhf_core import Reward

CALLS, ON_THREADS = [], []
def here(): return threading.current_thread() is threading.main_thread()
def waits(completions, row, **_):
    CALLS.append(len(completions))
    time.sleep(0.05 * len(completions))
    return [float(r) for r in row]
def waits_long(completions, row, **_):
    time.sleep(0.05 * len(completions))
    return [float(r) for r in row]
def equal(completions, row, **_):
    waits(completions, row)
    return [1.0] * len(completions)
def place_in_batch(completions, row, **_):
    waits(completions, row)
    return [float(r - min(row)) for r in row]
def quick(completions, row, **_):
    CALLS.append(len(completions))
    return [float(r) for r in row]
DATABASE = sqlite3.connect(":memory:")
def database(completions, row, **_):
    waits(completions, row)
    return [float(DATABASE.execute("select ?", (r,)).fetchone()[0]) for r in row]
def logs(completions, row, log_extra=None, **_): return waits(completions, row)
def later(completions, row, **_):
    waits(completions, row)
    if not here() and ON_THREADS: raise RuntimeError("not on a thread")
    return [float(r) for r in row]
def fails(completions, row, **_):
    waits(completions, row)
    if ON_THREADS and 2 in row: raise RuntimeError("row two")
    return [float(r) for r in row]
async def one_row(completions, row, **_):
    if len(row) > 1: raise ValueError("one at a time")
    CALLS.append(1)
    ON_THREADS.append(len(CALLS))
    await asyncio.sleep(0.05)
    CALLS.pop()
    return [float(r) for r in row]
async def blocks(completions, row, **_):
    time.sleep(0.5)
    return [1.0] * len(row)
async def late(completions, row, **_):
    await asyncio.sleep(0.3)
    return [1.0] * len(row)

declared_equal = Reward(equal, name="declared_equal")
whole = Reward(waits, batchwise=True, name="whole")
one = Reward(late, timeout=0.45, name="one")
p_one = Reward(waits_long, isolation="process", name="p_one")
p_two = Reward(waits_long, isolation="process", name="p_two")
"""


@pytest.fixture
def made(tmp_path):
    """made("a", "b") -> (runtime of these rewards of CODE, its module's names)."""
    file = tmp_path / f"code_{tmp_path.name}.py"
    file.write_text(CODE)
    runtimes = []

    def make(*names: str):
        rewards = bind_all([RewardSpec.parse(f"{file}:{name}") for name in names], Catalog())
        runtimes.append(RewardRuntime(rewards, lambda ids: "abc"))
        function = rewards[0].function or rewards[0].reward.function
        return runtimes[-1], function.__globals__

    yield make
    for runtime in runtimes:
        runtime.close()


def batch(size: int = 16) -> Batch:
    messages = [[{"role": "assistant", "content": "abc"}] for _ in range(size)]
    return Batch([[{"role": "user", "content": "q"}]] * size, messages, [[1, 2]] * size, {"row": list(range(size))})


def timed(runtime: RewardRuntime, size: int = 16):
    started = time.perf_counter()
    columns = runtime.evaluate(batch(size))
    return columns, time.perf_counter() - started


def test_a_reward_that_sleeps_costs_under_a_tenth_of_one_row_after_the_other(made):
    runtime, _ = made("waits_long")
    first, serial = timed(runtime, 64)
    second, at_once = timed(runtime, 64)
    assert serial > 64 * 0.05
    assert at_once < 64 * 0.05 / 10
    assert first["waits_long"].scores == second["waits_long"].scores == list(range(64))


# reward -> the sizes of its calls in two batches of eight
ONE_BY_ONE = [1] * 8
CALLS = {
    "waits": [8, *ONE_BY_ONE, *ONE_BY_ONE],  # proved in the first, used in the second
    "declared_equal": [8, *ONE_BY_ONE, *ONE_BY_ONE],
    "equal": [8, 8],  # may be a reward of the whole batch
    "place_in_batch": [8, *ONE_BY_ONE, 8],  # is one
    "whole": [8, 8],  # says so
    "quick": [8, 8],
    "database": [8, *ONE_BY_ONE, 8],  # sqlite refuses other threads
    "logs": [8, 8],
}


@pytest.mark.parametrize("name", CALLS)
def test_rows_go_to_threads_only_after_proof(made, name):
    runtime, module = made(name)
    results = [runtime.evaluate(batch(8))[name] for _ in range(2)]
    assert module["CALLS"] == CALLS[name]
    expected = [1.0] * 8 if "equal" in name else list(range(8))
    assert [column.scores for column in results] == [expected] * 2
    assert [column.failed for column in results] == [0, 0]


def test_a_reward_that_keeps_the_processor_busy_stays_on_the_main_thread(made, monkeypatch):
    monkeypatch.setattr(time, "thread_time", time.perf_counter)
    runtime, module = made("waits")
    for _ in range(2):
        runtime.evaluate(batch(8))
    assert module["CALLS"] == [8, 8]


def test_a_row_that_fails_on_a_thread_only_is_scored_on_the_main_thread_and_so_is_what_follows(made):
    runtime, module = made("later")
    runtime.evaluate(batch(8))
    module["ON_THREADS"].append(True)
    module["CALLS"].clear()
    results = [runtime.evaluate(batch(8))["later"] for _ in range(2)]
    assert [column.scores for column in results] == [list(range(8))] * 2
    assert [column.failed for column in results] == [0, 0]
    assert module["CALLS"] == [*ONE_BY_ONE, *ONE_BY_ONE, 8]


def test_a_row_that_fails_anywhere_is_an_error_and_the_threads_stay(made):
    runtime, module = made("fails")
    runtime.evaluate(batch(8))
    module["ON_THREADS"].append(True)
    module["CALLS"].clear()
    for _ in range(2):
        column = runtime.evaluate(batch(8))["fails"]
        assert column.scores == [0, 1, None, 3, 4, 5, 6, 7]
        assert column.errors == [None, None, "RuntimeError: row two", *[None] * 5]
    assert module["CALLS"] == [*ONE_BY_ONE, 1] * 2


def test_proved_rewards_and_workers_run_beside_each_other(made):
    runtime, _ = made("waits_long", "waits_long:name=again")
    timed(runtime)
    assert timed(runtime)[1] < 16 * 0.05 / 2
    runtime, _ = made("p_one", "p_two")
    runtime.start()
    assert timed(runtime)[1] < 1.6 * 16 * 0.05


def test_an_async_reward_of_one_row_a_call_has_64_under_way(made):
    runtime, module = made("one_row")
    columns, seconds = timed(runtime, 200)
    assert columns["one_row"].scores == list(range(200))
    assert max(module["ON_THREADS"]) == 64
    assert seconds < 200 * 0.05 / 10


def test_an_async_reward_that_blocks_holds_up_no_other(made):
    runtime, _ = made("one", "blocks")
    columns, _ = timed(runtime)
    assert columns["one"].scores == columns["blocks"].scores == [1.0] * 16


def test_no_thread_or_process_is_left_when_a_run_is_closed(made):
    runtime, _ = made("p_one")
    runtime.start()
    pid = runtime._workers["p_one"].running.process.pid
    runtime.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
