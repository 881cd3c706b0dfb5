"""Rewards beside each other: rows are scored at once where that was asked for, and never twice."""

from __future__ import annotations

import functools
import os
import re
import threading
import time

import pytest

from rlhf_core.catalog import Catalog
from rlhf_core.errors import UserError
from rlhf_core.grammar import RewardSpec
from rlhf_core.rewards import event_loop
from rlhf_core.rewards.batch import RewardBatch
from rlhf_core.rewards.binding import bind_all
from rlhf_core.rewards.runtime import RewardRuntime

CODE = """
import asyncio, threading, time
from pathlib import Path
from rlhf_core import Reward

CALLS, UNDER_WAY = [], []
def waits(completions, row, **_):
    CALLS.append(len(completions))
    time.sleep(0.05 * len(completions))
    return [float(r) for r in row]
def quick(completions, row, **_): return [float(r) for r in row]
def logs(completions, row, log_extra=None, **_): return waits(completions, row)
def fails(completions, row, **_):
    waits(completions, row)
    if 2 in row: raise RuntimeError("row two")
    return [float(r) for r in row]
def where(completions, row, **_):
    return [float(threading.current_thread() is threading.main_thread())] * len(row)
async def one_row(completions, row, **_):
    if len(row) > 1: raise ValueError("one at a time")
    CALLS.append(1)
    UNDER_WAY.append(len(CALLS))
    await asyncio.sleep(0.05)
    CALLS.pop()
    return [float(r) for r in row]
THIRTY_TWO, OTHER_IS_DONE = threading.Barrier(32), threading.Event()
def meets(completions, row, **_):
    THIRTY_TWO.wait(10)
    return [1.0] * len(row)
def meets_a_process(completions, *, mine="", other=""):
    Path(mine).touch()
    for _ in range(200):
        if Path(other).exists(): return [1.0] * len(completions)
        time.sleep(0.05)
    return [0.0] * len(completions)
async def blocks(completions, row, **_): return [float(OTHER_IS_DONE.wait(10))] * len(row)
FREED, ENDED = threading.Event(), []
async def blocks_first(completions, row, **_):
    if 0 in row: FREED.wait(10)
    return [1.0] * len(row)
async def leaves_a_task(completions, **_):
    async def task():
        try: await asyncio.sleep(60)
        finally: ENDED.append(1)
    ENDED.append(asyncio.create_task(task()))
    await asyncio.sleep(0)
    return [1.0] * len(completions)
async def sets(completions, row, **_):
    OTHER_IS_DONE.set()
    return [1.0] * len(row)
async def late(completions, row, **_):
    await asyncio.sleep(0.3)
    return [1.0] * len(row)
async def endless(completions, **_): await asyncio.sleep(60)
async def endless_block(completions, **_): time.sleep(10)
def sleeps(completions, **_): time.sleep(60)

declared = Reward(waits, concurrent=True, name="declared")
whole = Reward(waits, batchwise=True, name="whole")
p_one = Reward(waits, isolation="process", name="p_one")
p_endless = Reward(sleeps, isolation="process", name="p_endless")
p_meets = Reward(meets_a_process, isolation="process", name="p_meets")
"""


@pytest.fixture
def made(tmp_path):
    """made("a", "b") -> (runtime of these rewards of CODE, its module's names)."""
    file = tmp_path / f"code_{tmp_path.name}.py"
    file.write_text(CODE)
    runtimes = []

    def make(*names: str):
        rewards = bind_all([RewardSpec.read(f"{file}:{name}") for name in names], Catalog())
        runtimes.append(RewardRuntime(rewards, lambda ids: "abc"))
        function = rewards[0].function or rewards[0].reward.function
        return runtimes[-1], function.__globals__

    yield make
    for runtime in runtimes:
        runtime.close()


def batch(size: int = 16) -> RewardBatch:
    messages = [[{"role": "assistant", "content": "abc"}] for _ in range(size)]
    return RewardBatch(
        [[{"role": "user", "content": "q"}]] * size, messages, [[1, 2]] * size, {"row": list(range(size))}
    )


# reward -> the sizes of its calls for a batch of eight
CALLS = {
    "waits": [8],
    "waits:concurrent=true": [1] * 8,
    "waits:concurrent=false": [8],
    "declared": [1] * 8,
    "declared:concurrent=false": [8],
    "whole": [8],
    "logs": [8],
    "fails": [8, *[1] * 8],  # a batch that raised is tried row by row
    "fails:concurrent=true": [1] * 8,  # and a row that raised is not tried again
}


@pytest.mark.parametrize("text", CALLS)
def test_rows_are_scored_at_once_where_that_was_asked_for_and_each_once(made, text):
    runtime, module = made(text)
    (column,) = runtime.evaluate(batch(8)).values()
    assert module["CALLS"] == CALLS[text]
    failed = {2: "RuntimeError: row two"} if "fails" in text else {}
    assert column.scores == [None if row in failed else row for row in range(8)]
    assert column.errors == [failed.get(row) for row in range(8)]


def test_rows_at_once_are_scored_on_other_threads_and_batches_on_the_main_one(made):
    runtime, _ = made("where", "where:concurrent=true,name=at_once")
    columns = runtime.evaluate(batch(2))
    assert (columns["where"].scores, columns["at_once"].scores) == ([1.0, 1.0], [0.0, 0.0])


# reward -> whether it is told that its rows could be scored at once
ADVICE = {
    "waits": True,
    "fails": True,
    "waits:concurrent=false": False,
    "declared": False,
    "whole": False,
    "logs": False,
    "quick": False,
    "late": False,
    "p_one": False,
}


@pytest.mark.parametrize("text", ADVICE)
def test_a_reward_that_waits_is_named_once_with_the_advice(made, caplog, text):
    runtime, _ = made(text)
    for _ in range(2):
        runtime.evaluate(batch(4))
    assert len(caplog.messages) == ADVICE[text]
    if ADVICE[text]:
        assert re.search(rf"reward '{text}' took [\d.]+ s for 4 rows.*:{text}:concurrent=true'", caplog.text)


def test_a_reward_that_computes_is_not_advised_to_wait(made, caplog, monkeypatch):
    monkeypatch.setattr(time, "process_time", time.perf_counter)  # as if it had the processor to itself
    runtime, _ = made("waits")
    runtime.evaluate(batch(4))
    assert not caplog.messages


REFUSED = {
    "whole:concurrent=true": "batchwise rewards score full batches",
    "late:concurrent=true": "already awaits its rows together",
    "p_one:concurrent=true": "needs isolation='inline'",
    "logs:concurrent=true": "takes log_extra, for full batches",
    "waits:concurrent=1": "concurrent must be true or false, not 1",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_can_not_be_scored_at_once_is_refused_with_the_reason(made, text):
    with pytest.raises(UserError, match=REFUSED[text]):
        made(text)


def test_concurrent_rewards_and_workers_run_beside_each_other(made, tmp_path):
    runtime, _ = made("meets:concurrent=true", "meets:concurrent=true,name=again")
    assert [column.scores for column in runtime.evaluate(batch()).values()] == [[1.0] * 16] * 2
    a, b = tmp_path / "a", tmp_path / "b"
    runtime, _ = made(f"p_meets:mine={a},other={b}", f"p_meets:name=again,mine={b},other={a}")
    assert [column.scores for column in runtime.evaluate(batch()).values()] == [[1.0] * 16] * 2


def test_an_async_reward_of_one_row_a_call_has_64_under_way(made):
    runtime, module = made("one_row")
    assert runtime.evaluate(batch(200))["one_row"].scores == list(range(200))
    assert max(module["UNDER_WAY"]) == 64


def test_an_async_reward_that_blocks_holds_up_no_other(made):
    runtime, _ = made("blocks", "sets")
    columns = runtime.evaluate(batch())
    assert columns["blocks"].scores == columns["sets"].scores == [1.0] * 16


def test_an_event_loop_that_is_blocked_is_left_for_a_new_one(made, monkeypatch):
    runtime, module = made("blocks_first")
    monkeypatch.setattr(event_loop, "GRACE", 0.05)
    loop = runtime._elsewhere["blocks_first"]
    score = functools.partial(loop.score, size=1)
    inputs = [({"row": [i]}, {"completions": ["a"]}) for i in (0, 1)]
    column = score(inputs[0], seconds=0.05)
    assert column.errors == ["timeout: no answer within 600 s, and it could not be stopped: it blocks its event loop"]
    assert (column.timed_out, column.stopped) == (1, False)
    assert score(inputs[1], seconds=5.0).scores == [1.0]
    module["FREED"].set()


def test_what_a_task_does_at_its_end_is_done_before_its_loop_is_closed(made):
    runtime, module = made("leaves_a_task")
    assert runtime.evaluate(batch(1))["leaves_a_task"].scores == [1.0]
    (thread,) = [one for one in threading.enumerate() if one.name == "rlhf-leaves_a_task"]
    loop = runtime._elsewhere["leaves_a_task"]._loop
    runtime.close()
    thread.join(10)
    assert not thread.is_alive()
    assert (module["ENDED"][1:], loop.is_closed()) == ([1], True)


def test_no_thread_or_process_is_left_when_a_run_is_closed(made):
    runtime, _ = made("p_one")
    runtime.start()
    pid = runtime._elsewhere["p_one"].process.pid
    runtime.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("name", ["endless", "endless_block", "p_endless"])
def test_closing_ends_the_calls_under_way(made, name):
    """As after Ctrl-C: Python waits for its threads before it exits."""
    runtime, _ = made(name)
    runtime.start()
    call = threading.Thread(target=runtime.evaluate, args=[batch(2)])
    call.start()
    time.sleep(0.3)
    runtime.close()
    call.join(5)
    assert not call.is_alive()
