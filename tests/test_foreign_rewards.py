"""Rewards that were written for other trainers run unchanged, by path and as plugins."""

from __future__ import annotations

import os
import sys

import pytest

from rlhf_core.catalog import Catalog
from rlhf_core.grammar import RewardSpec
from rlhf_core.rewards.batch import RewardBatch
from rlhf_core.rewards.binding import bind
from rlhf_core.rewards.runtime import RewardRuntime

# As people write them for open-r1 and for TRL's documentation.
CODE = '''
import asyncio, functools, json, re


def accuracy_reward(completions, solution, **kwargs):
    """1.0 where the content names the solution."""
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if sol.strip("$") in content else 0.0 for content, sol in zip(contents, solution)]


def format_reward(completions, **kwargs):
    pattern = r"^<think>\\n.*?\\n</think>\\n<answer>\\n.*?\\n</answer>$"
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if re.match(pattern, c, re.DOTALL | re.MULTILINE) else 0.0 for c in contents]


def len_reward(completions: list[dict[str, str]], solution: list[str], **kwargs) -> float:
    """Shorter is better among the batch's answers."""
    lengths = [len(completion[0]["content"]) for completion in completions]
    low, high = min(lengths), max(lengths)
    return [0.5 - (n - low) / (high - low) for n in lengths]


def extra_columns(prompts, completions, difficulty, **kwargs):
    assert prompts[0][-1]["role"] == "user" and kwargs["solution"] and kwargs["completion_ids"]
    return [None if level > 1 else float(level) for level in difficulty]


def get_scaled_reward(scale: float = 1.0, *, offset: float = 0.0):
    def scaled_reward(completions, **kwargs):
        return [scale * len(c[0]["content"]) + offset for c in completions]

    return scaled_reward


async def async_judge(prompts, completions, **kwargs):
    async def ask(content):
        await asyncio.sleep(0)
        return float("4" in content)

    return await asyncio.gather(*(ask(c[0]["content"]) for c in completions))


class Running:
    """Keeps state: how many it has seen."""

    def __init__(self, start: int = 0):
        self.seen = start

    def __call__(self, completions, **kwargs):
        first, self.seen = self.seen, self.seen + len(completions)
        return [float(first + i) for i in range(len(completions))]


def at_least(threshold, completions, **kwargs):
    return [float(len(c[0]["content"]) >= threshold) for c in completions]


partial_reward = functools.partial(at_least, 30)
instance = Running(5)
'''
ANSWERS = ["<think>\n2 + 2\n</think>\n<answer>\n\\boxed{4}\n</answer>", "<think>x</think>\\boxed{5}"]
LENGTHS = [len(text) for text in ANSWERS]

# specification by path -> scores of ANSWERS
BY_PATH = {
    "./code.py:accuracy_reward": [1.0, 0.0],
    "./code.py:format_reward": [1.0, 0.0],
    "./code.py:len_reward": [-0.5, 0.5],
    "./code.py:extra_columns": [1.0, None],
    "./code.py:get_scaled_reward:scale=2,offset=-1": [2.0 * length - 1 for length in LENGTHS],
    "./code.py:async_judge": [1.0, 0.0],
    "./code.py:Running:start=3": [3.0, 4.0],
    "./code.py:instance": [5.0, 6.0],
    "./code.py:partial_reward": [1.0, 0.0],
    "trl.rewards:think_format_reward": [1.0, 1.0],
    "trl.rewards:accuracy_reward": [1.0, 0.0],
    "trl.rewards:reasoning_accuracy_reward": [1.0, 0.0],
    "trl.rewards:get_soft_overlong_punishment:max_completion_len=40,soft_punish_cache=20": [-1.0, -0.25],
}
# entry point -> (what stands in Reward(…), scores)
AS_PLUGIN = {
    "accuracy_reward": ("code.accuracy_reward, view='messages'", [1.0, 0.0]),
    "len_reward": ("code.len_reward, view='messages', batchwise=True", [-0.5, 0.5]),
    "extra_columns": ("code.extra_columns, view='messages'", [1.0, None]),
    "scaled_reward": ("code.get_scaled_reward(2), view='messages'", [2.0 * length for length in LENGTHS]),
    "async_judge": ("code.async_judge, view='messages', timeout=5", [1.0, 0.0]),
    "Running": ("code.Running", [0.0, 1.0]),
    "isolated": ("code.Running, isolation='process', name='isolated'", [0.0, 1.0]),
    "instance": ("code.instance, name='instance'", [5.0, 6.0]),
    "partial_reward": ("code.partial_reward, view='messages', name='partial_reward'", [1.0, 0.0]),
    "think_format_reward": ("trl.rewards.think_format_reward, view='messages'", [1.0, 1.0]),
    "accuracy": ("trl.rewards.accuracy_reward, view='messages', name='accuracy'", [1.0, 0.0]),
    "overlong": ("trl.rewards.get_soft_overlong_punishment(40, 20), name='overlong'", [-1.0, -0.25]),
}


def batch() -> RewardBatch:
    """As TRL calls a reward in training, with its callbacks."""
    prompts = [[{"role": "user", "content": "2 + 2?"}]] * 2
    completions = [[{"role": "assistant", "content": text}] for text in ANSWERS]
    trl = {"trainer_state": None, "log_extra": lambda name, values: None, "log_metric": lambda name, value: None}
    columns = {"solution": ["$4$"] * 2, "difficulty": [1, 2]}
    return RewardBatch(prompts, completions, [list(map(ord, text)) for text in ANSWERS], columns, trl)


def scores(specification: str) -> list[float | None]:
    if "accuracy" in specification and "code" not in specification:
        pytest.importorskip("math_verify")
    reward = bind(RewardSpec.read(specification), Catalog())
    runtime = RewardRuntime([reward], lambda ids: "".join(map(chr, ids)))
    try:
        runtime.check_columns(["solution", "difficulty"], "data.jsonl")
        runtime.start()
        column = runtime.evaluate(batch())[reward.name]
    finally:
        runtime.close()
    assert column.errors == [None, None]
    return column.scores


@pytest.mark.parametrize("specification", BY_PATH)
def test_by_path(tmp_path, monkeypatch, specification):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code.py").write_text(CODE)
    assert scores(specification) == BY_PATH[specification]


@pytest.mark.parametrize("name", AS_PLUGIN)
def test_as_a_plugin(distribution, tmp_path, monkeypatch, name):
    arguments, expected = AS_PLUGIN[name]
    hook = f"""
    import foreign_code as code, trl.rewards
    from rlhf_core import Reward, hookimpl

    @hookimpl
    def rlhf_rewards():
        return [Reward({arguments})]
    """
    distribution("foreign", {"foreign_code": CODE, "foreign": hook}, {"rlhf.rewards": {name: "foreign"}})
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for the worker
    assert scores(name) == expected


@pytest.mark.parametrize(
    "entry", ["length", "rlhf-reward-length/length", "trl.rewards:think_format_reward", "length:name=x"]
)
def test_a_label_is_the_name_under_which_a_reward_is_bound(entry):
    spec = RewardSpec.read(entry)
    assert spec.label == bind(spec, Catalog()).name
