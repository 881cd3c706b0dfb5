"""Faults put into rewards of real runs: a short run finishes and says what failed, a long one stops with a checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rlhf_method_ppo import PPO
from safetensors.torch import load_file

from rlhf_core.catalog import Catalog
from rlhf_core.errors import UserError
from rlhf_core.grammar import RewardSpec
from rlhf_core.rewards import event_loop
from rlhf_core.rewards.binding import bind_all
from rlhf_core.rewards.runtime import RewardRuntime
from rlhf_core.training.checkpoint import list_checkpoints

ROWS = [{"question": f"What helps against symptom {i}?", "answer": str(i)} for i in range(8)]
VALUES = {"method": "grpo", "max_steps": 2, "max_completion_length": 4}
FAULTS = """
import asyncio, ctypes, os, re, subprocess, time
from pathlib import Path
from rlhf_core import Reward

CALLS = []
def place(completions, **_): return [0.0, 0.0, 1.0, 1.0][: len(completions)]
def raises_on_a_row(completions, **_):
    CALLS.append(len(completions))  # a batch of four, and then its rows one by one
    if len(CALLS) % 5 in (1, 4): raise ValueError("a row")
    return [1.0]
def third_fails(completions, **_):
    CALLS.append(len(completions))
    if len(CALLS) % 5 in (1, 4): raise ValueError("the third")
    return [[1.0, 0.0, None, 1.0][(len(CALLS) - 2) % 5]]
def raises(completions, **_): raise RuntimeError("always")
def short(completions, **_): return [1.0] * (len(completions) + 1)
def one(completions, **_): return [1.0]
def nan(completions, **_): return [1.0, float("nan"), 1.0, 0.0][: len(completions)]
def infinity(completions, **_): return [1.0, 2.0, float("-inf"), 0.0][: len(completions)]
def huge(completions, **_): return [1.0, 10**400, 1.0, 0.0]
def beyond(completions, **_): return [1.0, 1e39, 1.0, 0.0]
def text(completions, **_): return "1.0"
def texts(completions, **_): return ["1.0"] * len(completions)
def lazily(completions, **_):
    for _ in completions: yield 1.0
    raise RuntimeError("late")
def imports(completions, **_): import no_such_package
def mutates(prompts, completions, completion_ids, **_):
    for values in (prompts, completions, completion_ids): values.clear()
    raise ValueError("emptied")
def times_out(completions, **_): raise TimeoutError("the judge")
def exits_python(completions, **_): raise SystemExit(3)
async def async_raises(completions, **_): raise RuntimeError("awaited")
async def async_exits(completions, **_): raise SystemExit(3)
async def async_cancels(completions, **_): raise asyncio.CancelledError
async def async_lazily(completions, **_): return lazily(completions)
async def hangs(completions, **_): await asyncio.sleep(60)
async def blocks(completions, **_): time.sleep(3)
async_hang = Reward(hangs, timeout=0.2, name="async_hang")
async_block = Reward(blocks, timeout=0.2, name="async_block")

def sleeps(completions, **_):
    children = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    with open("children.txt", "a") as file: file.writelines(f"{child.pid} " for child in children)
    time.sleep(60)
def holds(completions, **_):
    child = subprocess.Popen(["sleep", "60"])
    with open("children.txt", "a") as file: file.write(f"{child.pid} ")
    re.match(r"(a+)+$", "a" * 60 + "b")  # with Python's lock, for longer than anybody waits
def exits(completions, **_): os._exit(7)
def leaves_a_child(completions, **_):
    if os.fork() == 0: time.sleep(60)
    os._exit(7)
def segfaults(completions, **_): ctypes.string_at(0)
KEPT = []
def grows(completions, **_):
    KEPT.append(bytearray(40_000_000 * len(completions)))
    return [1.0] * len(completions)
class Closure:
    def __init__(self): self.function = lambda text: float(len(text))
    def __call__(self, completions, **_): return [self.function(text) for text in completions]
class Slow(Closure):
    def __init__(self):
        super().__init__()
        time.sleep(1.0)
class Broken(Closure):
    def __init__(self): import no_such_package
held = Reward(holds, isolation="process", name="held")
hang = Reward(sleeps, isolation="process", timeout=0.5, name="hang")
end = Reward(exits, isolation="process", name="end")
orphan = Reward(leaves_a_child, isolation="process", timeout=30, name="orphan")
crash = Reward(segfaults, isolation="process", name="crash")
growth = Reward(grows, isolation="process", memory_gb=0.4, name="growth")
closure = Reward(Closure, isolation="process", name="closure")
slow_start = Reward(Slow, isolation="process", timeout=0.5, name="slow_start")
broken = Reward(Broken, isolation="process", name="broken")
inline_closure = Reward(lambda completions, **_: [1.0] * len(completions), isolation="process", name="inline_closure")
"""

# reward -> (rows that failed of 8, what the screen says of them)
SHORT = {
    "raises_on_a_row": (2, "ValueError: a row"),
    "raises": (8, "RuntimeError: always"),
    "short": (8, "returned 5 scores for 4 completions"),
    "one": (8, "returned 1 scores for 4 completions"),
    "nan": (2, "nan is not a finite number"),
    "infinity": (2, "-inf is not a finite number"),
    "huge": (2, "an integer too large"),
    "text": (8, "returned str, not a list of 4 scores"),
    "texts": (8, "'1.0' is text, not a number"),
    "lazily": (8, "RuntimeError: late"),
    "imports": (8, "ModuleNotFoundError: No module named 'no_such_package'"),
    "mutates": (8, "ValueError: emptied"),
    "times_out": (8, "TimeoutError: the judge"),
    "exits_python": (8, "SystemExit: 3"),
    "async_raises": (8, "RuntimeError: awaited"),
    "async_exits": (8, "SystemExit: 3"),
    "async_cancels": (8, "CancelledError"),
    "async_lazily": (8, "RuntimeError: late"),
    "async_hang": (8, "timeout: no answer within 0.2 s"),
    "async_block": (8, "timeout: no answer within 0.2 s, and it could not be stopped: it blocks its event loop"),
    "hang": (8, "timeout: "),
    "end": (8, "the worker ended with exit code 7"),
    "orphan": (8, "the worker ended with exit code 7"),
    "crash": (8, "the worker was killed by SIGSEGV"),
    "closure": (0, ""),
    "inline_closure": (0, ""),
    "slow_start": (0, ""),
}
TIMED_OUT = {"async_hang", "async_block", "hang", "times_out"}


@pytest.fixture
def faults(tmp_path):
    (tmp_path / "faults.py").write_text(FAULTS)
    return lambda *names: [f"./faults.py:{name}" for name in names]


def read_lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_a_short_run_finishes_and_says_what_failed(go, faults, capsys, monkeypatch, name):
    if name == "async_block":  # the others can be stopped, if not in so short a time on a busy machine
        monkeypatch.setattr(event_loop, "GRACE", 0.2)
    failed, error = SHORT[name]
    code, folder = go(reward=faults("place", name))
    assert code == 0
    assert (folder / "model" / "model.safetensors").exists()
    shown = capsys.readouterr().out
    assert (f"Reward {name!r} failed on {failed} of 8 rows, most often: {error}" in shown) is bool(failed)
    assert (f"The rows: {folder}/reward_errors.jsonl" in shown) is bool(failed)
    assert len(read_lines(folder / "reward_errors.jsonl")) == failed
    steps = [row for row in read_lines(folder / "metrics.jsonl") if "reward" in row]
    for row in steps:
        assert row[f"rewards/{name}/error_rate"] == failed / 8
        assert row[f"rewards/{name}/timeout_rate"] == (name in TIMED_OUT)
        assert row[f"rewards/{name}/latency"] > 0
        assert row["rewards/place/error_rate"] == 0
        assert row["rewards/place/mean"] == 0.5


@pytest.mark.slow
def test_ppo_logs_and_tells_the_same(go, faults, capsys):
    code, folder = go(method="ppo", reward=faults("place", "nan", "async_hang", "beyond"), num_ppo_epochs=1)
    assert code == 0
    assert all(weight.isfinite().all() for weight in load_file(folder / "model" / "model.safetensors").values())
    shown = capsys.readouterr().out
    assert "Reward 'beyond' failed on 2 of 8 rows, most often: 1e+39 is beyond ±1e+09" in shown
    assert "Reward 'nan' failed on 2 of 8 rows" in shown
    assert "Reward 'async_hang' failed on 8 of 8 rows" in shown
    steps = [row for row in read_lines(folder / "metrics.jsonl") if "rewards/nan/error_rate" in row]
    assert len(steps) == 2
    for row in steps:
        for name, rates in {"place": (0, 0), "nan": (0.25, 0), "async_hang": (1, 1)}.items():
            assert (row[f"rewards/{name}/error_rate"], row[f"rewards/{name}/timeout_rate"]) == rates
        assert row["rewards/async_hang/latency"] >= 0.2


# A group of four, of which `place` says 0 0 1 1 and `third_fails` 1 0 error 1. Standard deviations are unbiased.
SUMMED = {"set": {"multi_objective_aggregation": "sum_then_normalize"}}
ADVANTAGES = {
    "alone": (["third_fails"], {}, [1 / 3**0.5, -2 / 3**0.5, 0.0, 1 / 3**0.5]),  # of 1 0 1
    "summed": (["place", "third_fails"], SUMMED, [0.0, -1.0, 0.0, 1.0]),  # of 1 0 2
    # -√3/2 + √3/3, -√3/2 - 2√3/3, √3/2 + 0, √3/2 + √3/3, which are √3/6 times -1 -7 3 5; their deviation is √(7/3)
    "normalized": (["place", "third_fails"], {}, [x * 3**0.5 / 6 / (7 / 3) ** 0.5 for x in (-1, -7, 3, 5)]),
}


@pytest.mark.parametrize("case", ADVANTAGES)
def test_an_error_is_neutral_in_the_advantages_that_trl_computes(go, faults, case):
    names, values, expected = ADVANTAGES[case]
    assert go(reward=faults(*names), max_steps=1, **values)[0] == 0
    assert list(go.trainers[0]._logs["advantages"]) == pytest.approx(expected, abs=1e-3)


def test_ppo_learns_nothing_from_a_row_with_an_error(made_run, faults):
    run = made_run(method="ppo", reward=faults("place"))
    specs = [RewardSpec.read(text) for text in faults("place", "third_fails")]
    run.rewards = RewardRuntime(bind_all(specs, Catalog()), run.tokenizer.decode)
    trainer = PPO().trainer(run)
    experience = trainer._rollout([trainer.train_dataset[i] for i in range(4)])
    assert experience.mask.any(1).tolist() == [True, True, False, True]
    learned = experience.advantages[experience.mask.bool()]
    assert learned.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert learned.std().item() == pytest.approx(1.0, abs=1e-3)
    experience.tokens = experience.mask.sum()
    loss = trainer.compute_loss(trainer.model, experience)
    experience.advantages[2], experience.returns[2] = 100.0, 100.0
    assert trainer.compute_loss(trainer.model, experience).item() == loss.item()


@pytest.mark.slow
def test_what_a_reward_that_hangs_has_started_is_killed_with_it(go, faults):
    assert go(reward=faults("hang"), max_steps=1)[0] == 0
    children = [int(pid) for pid in Path("children.txt").read_text().split()]
    assert len(children) >= 2
    wait_until(lambda: not any(map(alive, children)))


def test_a_worker_that_holds_pythons_lock_ends_with_a_trainer_that_was_killed(faults, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    faults()
    script = (
        "from rlhf_core.catalog import Catalog\n"
        "from rlhf_core.grammar import RewardSpec\nfrom rlhf_core.rewards.binding import bind\n"
        "from rlhf_core.rewards.worker import Worker\n"
        "if __name__ == '__main__':\n"
        "    worker = Worker(bind(RewardSpec.read('./faults.py:held'), Catalog()))\n"
        "    print(worker.start().pid, flush=True)\n"
        "    worker.score(({}, {'completions': ['a']}), 1, 60)\n"
    )
    Path("trainer.py").write_text(script)
    trainer = subprocess.Popen([sys.executable, "trainer.py"], stdout=subprocess.PIPE, text=True)
    worker = int(trainer.stdout.readline())
    wait_until(Path("children.txt").exists)
    trainer.kill()
    trainer.wait()
    children = [int(pid) for pid in Path("children.txt").read_text().split()]
    wait_until(lambda: not any(map(alive, [worker, *children])))


def wait_until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs. One that has ended and that nobody waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_worker_that_takes_more_memory_than_its_reward_declared_is_started_anew(go, faults):
    code, folder = go(reward=faults("growth"), max_steps=3)
    assert code == 0
    scores = [row["rewards"]["growth"] for row in read_lines(folder / "samples.jsonl")]
    assert scores == [1.0] * 12  # the batch that did not fit was scored by the next worker


def test_a_reward_that_cannot_be_built_is_told_before_the_weights_load(go, faults):
    with pytest.raises(UserError, match="'broken' could not be set up: ModuleNotFoundError"):
        go(reward=faults("broken"))


def test_an_ordinary_reward_with_a_timeout_is_refused_with_what_to_do(go, tmp_path):
    (tmp_path / "timed.py").write_text(
        "from rlhf_core import Reward\ndef f(completions): ...\nfound = Reward(f, timeout=3)"
    )
    with pytest.raises(UserError, match="timeout needs isolation='process' or an async function"):
        go(reward=["./timed.py:found"])


@pytest.mark.slow
def test_a_long_run_whose_reward_keeps_failing_stops_with_a_checkpoint(go, faults, capsys):
    code, folder = go(reward=faults("place", "nan"), max_steps=30, save_steps=100, logging_steps=50)
    assert code == 1
    assert [path.name for path in list_checkpoints(folder / "checkpoints")] == ["checkpoint-20"]
    shown = capsys.readouterr().out
    assert "Stopped after step 20: reward 'nan' failed on 25% of its rows in the last 20 steps." in shown
    assert "Reward 'nan' failed on 20 of 80 rows, most often: nan is not a finite number" in shown
    assert "Resume when it is fixed: rlhf run --resume out" in shown
