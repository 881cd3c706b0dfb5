"""Rewards at run time: an error is never a zero, never ends the run, and never reaches another reward."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rlhf_core.catalog import Catalog
from rlhf_core.errors import UserError
from rlhf_core.grammar import RewardSpec
from rlhf_core.rewards.batch import RewardBatch, callbacks_of
from rlhf_core.rewards.binding import bind, bind_all
from rlhf_core.rewards.outcomes import Column, failures
from rlhf_core.rewards.runtime import RewardRuntime

SIZE = 4

CODE = """
import asyncio, os, sys, threading, time
from rlhf_core import Reward, RunStopped

def fine(completions, **_): return [float(len(c)) if isinstance(c, str) else 1.0 for c in completions]
def ints(completions, **_): return (1, 2, 3, None)[: len(completions)]
def skips(completions, **_): return [None] * len(completions)
def logs(completions, **kwargs): return [float("log_metric" in kwargs)] * len(completions)
def array(completions, **_):
    import numpy
    return numpy.arange(len(completions), dtype="float32")
def tensor(completions, **_):
    import torch
    return torch.arange(len(completions))
def one_row(completions, row, **_):
    if 2 in row: raise ValueError("row two")
    return [1.0] * len(completions)
def all_rows(completions, **_): raise RuntimeError("always")
def leaves(completions, **_): sys.exit("leaving")
def short(completions, **_): return [1.0]
def long(completions, **_): return [1.0] * 6
def lazy_short(completions, **_): yield from [1.0, 1.0]
def alone(prompts, completions, completion_ids, **_):
    if len(completions) > 1: raise ValueError("rows")
    return [float(len(prompts) == len(completion_ids) == 1)]
def none(completions, **_): return None
def number(completions, **_): return 1.0
def text(completions, **_): return "1111"
def mapping(completions, **_): return {i: 1.0 for i in range(len(completions))}
def nan(completions, **_): return [1.0, float("nan"), float("inf"), 1.0][: len(completions)]
def strings(completions, **_): return [1.0, "1.0", {}, 1.0][: len(completions)]
def mutates(prompts, completions, completion_ids, row, nested, **_):
    prompts.clear(); completion_ids[0].clear(); row[0] = "changed"; nested[0]["a"].append(1)
    if isinstance(completions[0], list): completions[0][0]["content"] = "changed"
    completions.clear()
    return [0.0] * len(row)
THREE = threading.Barrier(3)
async def meets(completions, **_):
    THREE.wait(10)
    return [1.0] * len(completions)
async def later(completions, **_):
    await asyncio.sleep(0.05)
    return [1.0] * len(completions)
async def async_row(completions, row, **_):
    if 2 in row: raise ValueError("row two")
    return [1.0] * len(completions)
async def never(completions, **_): await asyncio.sleep(60)
def exits(completions, row, **_):
    if 2 in row: os._exit(7)
    return [1.0] * len(completions)
def crashes(completions, **_):
    import ctypes
    ctypes.string_at(0)
def hangs(completions, **_): time.sleep(60)
def main_thread(completions, **_):
    return [float(threading.current_thread() is threading.main_thread() and os.getpid() != PARENT)] * len(completions)
async def async_lazy(completions, **_): return (1 / 0 for _ in completions)
def clears(completions, row, **_):
    completions.clear(); row.clear()
    raise ValueError("cleared")
def judge_is_late(completions, row, **_):
    if 2 in row: raise TimeoutError("judge")
    return [1.0] * len(completions)
def slow_row(completions, row, **_):
    if len(row) > 1: raise ValueError("rows")
    if 1 in row: time.sleep(0.8)
    return [1.0]
def some_errors(completions, **_): return [1.0, ValueError("unreadable"), TimeoutError("late"), 1.0]
p_errors = Reward(some_errors, isolation="process", name="p_errors")
def spent(completions, **_): return [1.0, *[RunStopped("max_cost=5 is spent")] * (len(completions) - 1)]
def spent_all(completions, **_):
    with open(__file__ + ".calls", "a") as calls: calls.write("x")
    raise RunStopped("all of it")
def spent_there(completions, **_): raise RunStopped("all of it")
p_spent = Reward(spent_there, isolation="process", name="p_spent")
PARENT = int(os.environ["TEST_PARENT"])

whole = Reward(one_row, name="whole", batchwise=True)
timed = Reward(never, timeout=0.2, name="timed")
p_fine = Reward(fine, isolation="process", name="p_fine")
p_row = Reward(one_row, isolation="process", name="p_row")
p_nan = Reward(nan, isolation="process", name="p_nan")
p_text = Reward(strings, isolation="process", name="p_text")
p_exits = Reward(exits, isolation="process", name="p_exits")
p_crashes = Reward(crashes, isolation="process", name="p_crashes")
p_hangs = Reward(hangs, isolation="process", timeout=0.5, name="p_hangs")
p_main = Reward(main_thread, isolation="process", name="p_main")
p_async = Reward(async_row, isolation="process", name="p_async")
class Closure:
    def __init__(self, bonus: float = 0.0):
        self.unpicklable = lambda x: x + bonus
    def __call__(self, completions, **_): return [self.unpicklable(1.0)] * len(completions)
p_rows = Reward(slow_row, isolation="process", timeout=4.0, name="p_rows")
p_length = Reward(short, isolation="process", name="p_length")
p_leaves = Reward(leaves, isolation="process", name="p_leaves")
p_number = Reward(number, isolation="process", name="p_number")
p_closure = Reward(Closure, isolation="process", name="p_closure")
class Broken:
    def __init__(self): raise OSError("no lexicon")
    def __call__(self, completions, **_): ...
p_broken = Reward(Broken, isolation="process", name="p_broken")
"""


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    """runtime("a", "b:x=1") makes the runtime of these rewards of CODE."""
    monkeypatch.setenv("TEST_PARENT", str(os.getpid()))
    (tmp_path / f"code_{tmp_path.name}.py").write_text(CODE)
    made = []

    def make(*names: str) -> RewardRuntime:
        specs = [RewardSpec.read(f"{tmp_path}/code_{tmp_path.name}.py:{name}") for name in names]
        made.append(RewardRuntime(bind_all(specs, Catalog()), lambda ids: "".join(map(chr, ids)), tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.close()


def batch(**trl) -> RewardBatch:
    prompts = [[{"role": "user", "content": f"q{i}"}] for i in range(SIZE)]
    completions = [[{"role": "assistant", "content": "abc"}] for _ in range(SIZE)]
    columns = {"row": list(range(SIZE)), "nested": [{"a": [i]} for i in range(SIZE)]}
    return RewardBatch(prompts, completions, [[97, 98, 99]] * SIZE, columns, trl)


ROW_TWO = "ValueError: row two"
# reward -> (scores, what each row's error contains; None: no error)
OUTCOMES = {
    "fine": ([1.0] * 4, [None] * 4),
    "ints": ([1.0, 2.0, 3.0, None], [None] * 4),
    "array": ([0.0, 1.0, 2.0, 3.0], [None] * 4),
    "tensor": ([0.0, 1.0, 2.0, 3.0], [None] * 4),
    "one_row": ([1.0, 1.0, None, 1.0], [None, None, ROW_TWO, None]),
    "whole": ([None] * 4, [ROW_TWO] * 4),
    "all_rows": ([None] * 4, ["RuntimeError: always"] * 4),
    "leaves": ([None] * 4, ["SystemExit: leaving"] * 4),
    "short": ([None] * 4, ["returned 1 scores for 4 completions"] * 4),
    "long": ([None] * 4, ["returned 6 scores for 4 completions"] * 4),
    "lazy_short": ([None] * 4, ["returned 2 scores for 4 completions"] * 4),
    "alone": ([1.0] * 4, [None] * 4),
    "none": ([None] * 4, ["returned NoneType"] * 4),
    "number": ([None] * 4, ["returned float"] * 4),
    "text": ([None] * 4, ["returned str"] * 4),
    "mapping": ([None] * 4, ["returned dict"] * 4),
    "nan": ([1.0, None, None, 1.0], [None, "nan is not a finite", "inf is not a finite", None]),
    "strings": ([1.0, None, None, 1.0], [None, "'1.0' is text", "{} is dict", None]),
    "later": ([1.0] * 4, [None] * 4),
    "async_row": ([1.0, 1.0, None, 1.0], [None, None, ROW_TWO, None]),
    "timed": ([None] * 4, ["timeout: no answer within 0.2 s"] * 4),
    "p_row": ([1.0, 1.0, None, 1.0], [None, None, ROW_TWO, None]),
    "p_nan": ([1.0, None, None, 1.0], [None, "nan is not a finite", "inf is not a finite", None]),
    "p_text": ([1.0, None, None, 1.0], [None, "'1.0' is text", "{} is dict", None]),
    "p_exits": ([None] * 4, ["ended with exit code 7"] * 4),
    "p_crashes": ([None] * 4, ["was killed by SIGSEGV"] * 4),
    "p_hangs": ([None] * 4, ["timeout: "] * 4),
    "p_main": ([1.0] * 4, [None] * 4),
    "p_async": ([1.0, 1.0, None, 1.0], [None, None, ROW_TWO, None]),
    "async_lazy": ([None] * 4, ["ZeroDivisionError"] * 4),
    "judge_is_late": ([1.0, 1.0, None, 1.0], [None, None, "TimeoutError: judge", None]),
    "clears": ([None] * 4, ["ValueError: cleared"] * 4),
    "p_rows": ([1.0] * 4, [None] * 4),  # the slow one is stopped after its first share of the time, and has more later
    "p_length": ([None] * 4, ["returned 1 scores for 4 completions"] * 4),
    "p_leaves": ([None] * 4, ["SystemExit: leaving"] * 4),
    "p_number": ([None] * 4, ["returned float, not a list"] * 4),
    "p_closure:bonus=2": ([3.0] * 4, [None] * 4),
}


TIMED_OUT = {"timed": 4, "p_hangs": 4, "judge_is_late": 1}


@pytest.mark.parametrize("name", OUTCOMES)
def test_outcome(runtime, name):
    scores, errors = OUTCOMES[name]
    column = next(iter(runtime(name).evaluate(batch()).values()))
    assert column.scores == scores
    for expected, found in zip(errors, column.errors, strict=True):
        assert (found is None) if expected is None else expected in found
    assert column.timed_out == TIMED_OUT.get(name, 0)
    assert "could not be stopped" not in str(column.errors)


def test_text_view_decodes_ids_and_messages_view_keeps_messages(runtime, tmp_path):
    (tmp_path / "views.py").write_text(
        "from rlhf_core import Reward\n"
        "def text(completions): return [float(c == 'abc') for c in completions]\n"
        "def chat(completions): return [float(c[0]['content'] == 'abc') for c in completions]\n"
        "as_text = Reward(text, name='as_text')"
    )
    rewards = [bind(RewardSpec.read(f"{tmp_path}/views.py:{name}"), Catalog()) for name in ("as_text", "chat")]
    columns = RewardRuntime(rewards, lambda ids: "".join(map(chr, ids))).evaluate(batch())
    assert [column.scores for column in columns.values()] == [[1.0] * 4] * 2


def test_a_reward_that_changes_its_inputs_changes_only_its_own(runtime):
    asked = batch()
    columns = runtime("mutates", "one_row").evaluate(asked)
    assert columns["mutates"].errors == [None] * 4
    assert columns["one_row"].scores == [1.0, 1.0, None, 1.0]
    assert asked == batch()


def test_async_rewards_run_together(runtime):
    rewards = runtime("meets", "meets:name=again", "meets:name=third")
    assert [column.scores for column in rewards.evaluate(batch()).values()] == [[1.0] * 4] * 3


def test_a_worker_that_died_is_started_again(runtime):
    rewards = runtime("p_exits")
    assert rewards.evaluate(batch())["p_exits"].failed == 4
    healthy = batch()
    healthy.columns["row"][2] = 0
    assert rewards.evaluate(healthy)["p_exits"].scores == [1.0] * 4


def test_a_reward_that_cannot_be_built_in_its_worker_is_a_user_error(runtime):
    rewards = runtime("p_broken")
    for _ in range(2):
        with pytest.raises(UserError, match="could not be set up: OSError: no lexicon"):
            rewards.start()


def test_isolated_rewards_get_no_callbacks_of_the_trainer(runtime):
    asked = batch()
    asked.trl = {"log_metric": lambda name, value: None}  # could not be pickled
    assert runtime("p_fine").evaluate(asked)["p_fine"].scores == [3.0] * 4


def test_stop_ends_the_process(runtime):
    rewards = runtime("p_fine")
    rewards.start()
    process = rewards._elsewhere["p_fine"].process
    rewards.close()
    assert not process.is_alive()


def test_nothing_is_scored_after_the_end(runtime):
    """And an event loop's thread ends."""
    runtime("later").close()  # before it began
    rewards = runtime("fine", "later")
    assert rewards.evaluate(batch())["later"].scores == [1.0] * 4
    (loop,) = [thread for thread in threading.enumerate() if thread.name == "rlhf-later"]
    rewards.close()
    assert rewards._call(rewards.rewards[0], ({}, {}), 2, 1.0).errors == ["the run ends"] * 2
    with pytest.raises(RuntimeError, match="after shutdown"):
        rewards._batches.submit(int)
    loop.join(10)
    assert not loop.is_alive()


def test_callbacks_reach_the_trainer_and_its_state_can_not_be_changed():
    state = SimpleNamespace(global_step=3, log_history=[1])
    logged = []
    trl = dict.fromkeys(("log_metric", "log_extra"), lambda *both: logged.append(both))
    found = callbacks_of({"trainer_state": state, **trl}, 2)
    found["log_metric"]("mine", 1)
    found["log_extra"]("words", ["a", "b"])
    found["trainer_state"].log_history.append(2)
    found["trainer_state"].global_step = 4
    assert logged == [("mine", 1.0), ("words", ["a", "b"])]
    assert (state.log_history, state.global_step) == ([1], 3)
    assert callbacks_of({"trainer_state": None}, 2) == {"trainer_state": None}


def test_the_rows_of_a_worker_share_the_time_and_the_slow_ones_what_is_left(runtime):
    rewards = runtime("p_fine")
    began, calls = [], []

    def start():
        began.append(len(calls))
        raise UserError("each row says so")

    def score_row(i: int, limit: float) -> Column:
        calls.append((i, limit))
        return Column([1.0], [None], stopped=i in (1, 3) and len(calls) <= SIZE)

    rewards._elsewhere["p_fine"] = SimpleNamespace(start=start, stop=lambda: None)
    columns = rewards._rows_alone(rewards.rewards[0], score_row, SIZE, 80.0)
    assert began == [0]
    assert calls[:SIZE] == [(i, 10.0) for i in range(SIZE)]
    assert calls[SIZE:] == [(1, pytest.approx(40.0, abs=5)), (3, pytest.approx(80.0, abs=10))]
    assert not any(column.stopped for column in columns)


def test_a_row_for_which_a_worker_has_no_time_left_is_not_begun(runtime):
    rewards = runtime("p_fine", "fine")
    inputs = {}, {"completions": ["abc"]}
    worker, ordinary = (rewards._call(reward, inputs, 1, 0.0) for reward in rewards.rewards)
    assert worker.errors == ["timeout: the rows before it used up the time"]
    assert rewards._elsewhere["p_fine"].process is None
    assert ordinary.scores == [3.0]  # nothing could stop it


def test_trl_sees_one_column_each_and_the_batch_is_scored_once(runtime, tmp_path):
    rewards = runtime("fine", "one_row")
    logged = {}
    asked = batch()
    state = type("State", (), {"global_step": 6})()
    arguments = {"trainer_state": state, "log_metric": logged.__setitem__, **asked.columns}
    functions = rewards.functions()
    assert [f.__name__ for f in functions] == ["fine", "one_row"]
    for function in functions:
        scores = function(
            prompts=asked.prompts, completions=asked.completions, completion_ids=asked.completion_ids, **arguments
        )
    assert scores == [1.0, 1.0, None, 1.0]
    assert logged["rewards/one_row/error_rate"] == 0.25
    assert logged["rewards/fine/error_rate"] == logged["rewards/one_row/timeout_rate"] == 0.0
    assert logged["rewards/fine/latency"] >= 0
    assert rewards.counts == {"fine": [0, 4], "one_row": [1, 4]}
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == SIZE
    assert samples[2]["rewards"] == {"fine": 1.0, "one_row": None}
    assert (samples[2]["step"], samples[2]["completion"], samples[2]["columns"]["row"]) == (7, "abc", 2)
    assert "errors" not in samples[1]
    assert samples[2]["errors"].keys() == {"one_row"}
    assert samples[2]["tokens"] == len(asked.completion_ids[2])
    errors = [json.loads(line) for line in (tmp_path / "reward_errors.jsonl").read_text().splitlines()]
    assert [(e["reward"], e["error"], e["step"]) for e in errors] == [("one_row", ROW_TWO, 7)]


def test_samples_wait_for_their_advantages_and_none_is_lost(runtime, tmp_path):
    def written():
        file = tmp_path / "samples.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    rewards = runtime("ints")  # which does not apply to the last row
    rewards.samples.wait_for_advantages = True
    rewards.score(batch())
    assert written() == []
    rewards.samples.advantages([-1.0, 0.0, 1.0, 0.0])
    assert [one["advantage"] for one in written()] == [-1.0, 0.0, 1.0, None]
    rewards.score(batch())
    rewards.score(batch())  # the trainer told nothing of the batch before
    assert len(written()) == 2 * SIZE
    rewards.close()
    assert len(written()) == 3 * SIZE
    assert "advantage" not in written()[-1]


def advantages(columns: list[list[float | None]], aggregation: str) -> torch.Tensor:
    """TRL 1.16's two aggregations for one group of four, written from its documentation, scaled by the group."""
    r = torch.tensor([[float("nan") if x is None else x for x in column] for column in columns]).T
    nothing = r.isnan().all(1)

    def normalize(x):
        known = x[~x.isnan()]
        return (x - known.mean()) / (known.std() + 1e-4)

    if aggregation == "sum_then_normalize":
        total = r.nansum(1)
        total[nothing] = float("nan")
        return normalize(total).nan_to_num(0.0)
    total = torch.stack([normalize(column) for column in r.T]).nansum(0)
    total[nothing] = float("nan")
    return normalize(total).nan_to_num(0.0)


def test_an_error_is_neutral_in_the_advantages(runtime):
    good = [0.0, 0.0, 1.0, 1.0]
    failed = [1.0, 0.0, None, 1.0]
    summed_first = advantages([good, failed], "sum_then_normalize")
    assert summed_first[2] < summed_first[3] - 0.5  # the trap: an error counts like a wrong answer
    neutral = advantages([good, failed], "normalize_then_sum")
    alone = advantages([good], "normalize_then_sum")
    assert neutral[2] > 0
    assert alone[2] > 0
    rewards = runtime("one_row", "fine")
    b = batch()
    summed = rewards.functions(blank_errors=True)  # as a run asks for them that sums first
    columns = [score(b.prompts, b.completions, b.completion_ids, **b.columns) for score in summed]
    assert [column[2] for column in columns] == [None, None]
    assert advantages(columns, "sum_then_normalize")[2] == 0


@pytest.mark.parametrize(
    ("prompts", "scores", "spread"),
    [
        ("aabb", [1, 1, 0, 0], [2, 0]),
        ("aabb", [1, 1, 0, 1], [2, 1]),
        ("aabb", [None, 1, None, None], [2, 0]),
        ("aabb", [1, None, 2, 3], [2, 1]),
        ("abcd", [1, 1, 1, 2], [1, 1]),  # one answer each, as in PPO
        ("abcd", [1, 1, 1, 1], [1, 0]),
        ("a", [1], [0, 0]),
    ],
)
def test_groups_whose_scores_differ_are_counted(tmp_path, prompts, scores, spread):
    (tmp_path / "given.py").write_text("def given(completions, score, **_): return score\n")
    rewards = RewardRuntime([bind(RewardSpec.read(f"{tmp_path}/given.py:given"), Catalog())], str)
    asked = [[{"role": "user", "content": letter}] for letter in prompts]
    answers = [[{"role": "assistant", "content": "x"}]] * len(scores)
    for _ in range(2):  # they add up
        rewards.score(RewardBatch(asked, answers, [[1]] * len(scores), {"score": scores}))
    assert rewards.spread == {"given": [2 * count for count in spread]}


def test_missing_columns_are_named(runtime):
    with pytest.raises(UserError, match="reward 'one_row' needs the column row, which data.jsonl does not have"):
        runtime("one_row").check_columns(["prompt", "answer"], "data.jsonl")
    with pytest.raises(UserError, match="Its columns: none.$"):
        runtime("one_row").check_columns(["prompt"], "data.jsonl")


def test_a_trainer_of_ones_own_gets_each_rows_weighted_sum(runtime):
    """What guide/plugins.md promises: a batch of plain lists, no callbacks, None where a reward failed."""
    rewards = runtime("fine:weight=2", "ints", "one_row")
    assert rewards.score(batch()) == [4.0, 5.0, None, 3.0]
    assert rewards.samples.last[2]["rewards"] == {"fine": 1.0, "ints": 3.0, "one_row": None}


def test_a_function_that_names_it_is_told_which_answers_ended(tmp_path):
    """Row by row too. A function with `**kwargs` alone is given no more than TRL's names and the data's columns."""
    code = (
        "def told(completions, finished, **_):\n"
        "    if len(finished) > 1: raise ValueError\n"
        "    return [float(end) for end in finished]\n"
        "def untold(completions, **kwargs): return [float('finished' in kwargs)] * len(completions)\n"
    )
    (tmp_path / "ends.py").write_text(code)
    rewards = bind_all([RewardSpec.read(f"{tmp_path / 'ends.py'}:{name}") for name in ("told", "untold")], Catalog())
    runtime = RewardRuntime(rewards, str, finished=lambda ids: ids[-1] == 2)
    batch = RewardBatch([[]] * 2, [[{"role": "assistant", "content": "a"}]] * 2, [[5, 2], [5, 6]], {})
    assert [column.scores for column in runtime.evaluate(batch).values()] == [[1.0, 0.0], [0.0, 0.0]]
    runtime.close()


def test_what_a_batch_gave_is_logged_and_counted(runtime):
    logged: dict[str, float] = {}
    rewards = runtime("ints", "judge_is_late", "skips")
    for _ in range(2):
        rewards.score(batch(log_metric=logged.__setitem__))
    assert rewards.counts == {"ints": [0, 8], "judge_is_late": [2, 8], "skips": [0, 8]}
    assert (logged["rewards/ints/mean"], logged["rewards/ints/error_rate"]) == (2.0, 0.0)
    assert (logged["rewards/judge_is_late/error_rate"], logged["rewards/judge_is_late/timeout_rate"]) == (0.25, 0.25)
    assert "rewards/skips/mean" not in logged  # which applies to no row


def test_a_batch_has_an_answer_to_each_row(runtime):
    rewards = runtime("fine")
    row = {"prompt": [{"role": "user", "content": "q"}]}
    made = rewards.batch([row, row], [[1], [2]])
    assert made.completions == [[{"role": "assistant", "content": text}] for text in made.texts]
    for answers in ([[1]], [[1], [2], [3]]):
        with pytest.raises(ValueError, match="zip"):
            rewards.batch([row, row], answers)
        uneven = RewardBatch([row["prompt"]] * 2, [[{"role": "assistant", "content": "a"}]] * 2, answers, {})
        with pytest.raises(ValueError, match="zip"):
            rewards.evaluate(uneven)


@pytest.mark.parametrize("enabled", [False, True])
def test_a_crash_will_say_where_it_was_unless_somebody_has_arranged_that(runtime, monkeypatch, enabled):
    calls = []
    monkeypatch.setattr("faulthandler.is_enabled", lambda: enabled)
    monkeypatch.setattr("faulthandler.enable", calls.append)
    runtime("fine").start()
    assert calls == ([] if enabled else [2])


def test_what_is_kept_of_each_answer(runtime, tmp_path):
    """In the order of the rows, as the reward left them; text as it is, but for half a character."""
    rewards = runtime("one_row")
    given = batch()
    given.columns["more"] = ["é", "\ud800", Path("a"), None]
    rewards.score(given)
    written = (tmp_path / "samples.jsonl").read_bytes()
    lines = [json.loads(line) for line in written.splitlines()]
    assert [line["rewards"]["one_row"] for line in lines] == [1.0, 1.0, None, 1.0]
    assert lines[1]["columns"] == {"row": 1, "nested": {"a": [1]}, "more": "\ud800"}
    assert (lines[2]["columns"]["more"], "é".encode() in written) == ("a", True)
    kept = {"step": 0, "prompt": [{"role": "user", "content": "q2"}], "completion": "abc"}
    assert {name: lines[2][name] for name in kept} == kept
    (failed,) = [json.loads(line) for line in (tmp_path / "reward_errors.jsonl").read_bytes().splitlines()]
    assert failed == {**kept, "reward": "one_row", "error": ROW_TWO}


def test_a_rewards_failures_are_told_by_the_most_frequent(tmp_path):
    errors, samples = tmp_path / "errors.jsonl", tmp_path / "samples.jsonl"
    errors.write_text("")
    samples.write_text("{}\n" * 1500)
    assert failures(errors, samples) == []
    rows = [("a", "often\nhere"), ("a", "seldom"), ("a", "often\nthere"), ("b", "once")]
    errors.write_text("".join(json.dumps({"reward": name, "error": error}) + "\n" for name, error in rows))
    assert failures(errors, samples) == [
        "Reward 'a' failed on 3 of 1,500 rows, most often: often",
        "Reward 'b' failed on 1 of 1,500 rows, most often: once",
    ]


def test_a_function_on_the_rows_of_others_threads_does_not_log(runtime):
    rewards = runtime("logs:name=whole", "logs:name=rows,concurrent=true")
    columns = rewards.evaluate(batch(log_metric=print))
    assert {name: column.scores for name, column in columns.items()} == {"whole": [1.0] * 4, "rows": [0.0] * 4}


def test_an_exception_in_a_rows_place_is_the_error_of_that_row_alone(runtime):
    found = runtime("some_errors", "p_errors").evaluate(batch())
    for name in ("some_errors", "p_errors"):
        assert found[name].scores == [1.0, None, None, 1.0]
        assert found[name].errors == [None, "ValueError: unreadable", "TimeoutError: late", None]
        assert (found[name].failed, found[name].timed_out, found[name].stop_run) == (2, 1, None)


def test_a_run_stopped_for_a_row_is_its_error_and_the_reason_to_stop(runtime, tmp_path):
    one = runtime("spent", "fine")
    found = one.evaluate(batch())["spent"]
    assert found.scores == [1.0, None, None, None]
    assert found.failed == 3
    assert one.stop_reason == "reward 'spent': max_cost=5 is spent"
    raised = runtime("spent_all", "p_spent")
    found = raised.evaluate(batch())
    assert found["spent_all"].failed == found["p_spent"].failed == SIZE
    assert next(tmp_path.glob("*.calls")).read_text() == "x"  # its rows were not tried again
    assert raised.stop_reason == "reward 'spent_all': all of it"
