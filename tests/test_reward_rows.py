"""Rewards get the data's rows as they were read: in the smoke test, before, during and after training alike."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from rlhf_core.rewards.batch import RewardBatch, columns_left_out, columns_of
from rlhf_core.rewards.binding import ROW

# What a table of typed columns would change or refuse: nested keys, lists of different depth, types that differ, numbers
# beyond 64 bits, half a character, and names that mean something to TRL.
ODD = [
    {"checks": {"min_words": 2}, "id": "q0", "extra": [], "image": None, "completions": "theirs"},
    {"checks": {"contains": ["a", 1]}, "id": 1, "extra": ["x"], "image": "1.png", "trainer_state": 3},
    {"checks": None, "id": 2**70, "extra": [["x"]], "images": ["1.png"], "completion_ids": [1]},
    {"checks": math.nan, "id": "\ud83d", "extra": {"A": "x"}, "prompts": "theirs", "environments": 1, ROW: "r"},
]
ROWS = [{"question": f"What is {i}?", "answer": f"{i}", **ODD[i % 4]} for i in range(20)]
VALUES = {
    "reward": ["./recording.py:seen"],
    "max_steps": 2,
    "max_completion_length": 4,
    "num_eval_prompts": 2,
}
TAKEN = ("completions", "trainer_state", "completion_ids", "prompts", "environments", ROW)
RECORDING = """
CALLS = []
def seen(completions, **kwargs):
    CALLS.append({"completions": completions, **kwargs})
    return [float(len(c[0]["content"])) for c in completions]
"""


def as_read(row: dict) -> str:
    """A row's columns for rewards, as text that tells NaN from None and {} from {"key": None}."""
    return repr({name: value for name, value in sorted(row.items()) if name not in TAKEN})


@pytest.fixture
def recorded(go):
    """recorded(method, …) -> the calls of one run's reward."""

    def run(**values):
        Path("recording.py").write_text(RECORDING)
        code, folder = go(**values)
        assert code == 0
        modules = [module for name, module in sys.modules.items() if name.startswith("rlhf_file_")]
        return modules[-1].CALLS, folder

    return run


@pytest.mark.parametrize("values", [{"method": "grpo", "num_generations": 2}, {"method": "ppo"}])
def test_every_row_is_the_one_that_was_read(recorded, values):
    calls, folder = recorded(**values)
    names = dict.fromkeys(name for row in ROWS for name in row)
    # question_answer adds what it read the answer from
    known = {as_read({**dict.fromkeys(names), **row, "solution": row["answer"]}) for row in ROWS}
    assert len(calls) >= 4  # the smoke test, before training, in it, after it
    for call in calls:
        size = len(call["completions"])
        assert [prompt[-1]["content"] for prompt in call["prompts"]] == call["question"]
        columns = {name: call[name] for name in [*names, "solution"] if name not in TAKEN}
        for i in range(size):
            assert as_read({name: values[i] for name, values in columns.items()}) in known
        # TRL's names have the run's values
        assert all(turn["role"] == "assistant" for turns in call["completions"] for turn in turns)
        assert "environments" not in call
        assert "theirs" not in repr(call["prompts"]) + repr(call["completions"])
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert {str(sample["columns"]["id"]) for sample in samples} <= {str(row["id"]) for row in ROWS}


def test_what_rewards_do_not_get_is_said(made_run):
    warnings = made_run(method="grpo", reward=["medical_format"]).plan.data.warnings
    assert "rewards don't get the data's columns" in str(warnings), warnings
    assert columns_left_out(["answer", "image", "images"]) == []


def test_data_sets_have_what_the_method_needs_and_a_number(made_run):
    run = made_run(method="grpo", reward=["medical_format"])
    assert run.train_dataset.column_names == run.eval_dataset.column_names == ["prompt", ROW]
    numbers = [*run.train_dataset[ROW], *run.eval_dataset[ROW]]
    assert [run.rewards.rows[number] for number in numbers] == [*run.train_rows, *run.held_out]


def test_prompts_keep_the_keys_of_their_own_messages(made_run):
    """Arrow would add the keys of all other messages."""
    run = made_run(method="grpo", reward=["medical_format"])
    run.train_rows = [
        {"prompt": [{"role": "user", "content": "a", "name": "x"}]},
        {"prompt": [{"role": "assistant", "content": "", "tool_calls": [{"arguments": {"a": 1}}]}]},
        {"prompt": [{"role": "user", "content": "b", "tool_calls": [{"arguments": {"b": "1"}}]}]},
    ]
    assert [row["prompt"] for row in run.train_dataset] == [row["prompt"] for row in run.train_rows]


def test_a_method_of_ones_own_gets_rows_by_their_number(made_run):
    """Both ways: as TRL calls functions, and as a batch."""
    run = made_run(method="grpo", reward=["length"])
    rows, ids = run.train_dataset[:2], [[5], [6, 7]]
    theirs = [[{"role": "assistant", "content": "x"}]] * 2
    run.rewards.functions()[0](prompts=rows["prompt"], completions=theirs, completion_ids=ids, **{ROW: rows[ROW]})
    assert [sample["columns"] for sample in run.rewards.samples.last] == [
        {name: values[i] for name, values in columns_of(run.train_rows[:2]).items()} for i in range(2)
    ]
    batch = RewardBatch(rows["prompt"], theirs, ids, {ROW: rows[ROW]})
    run.rewards.evaluate(batch)
    assert batch.columns == columns_of(run.train_rows[:2])
    assert batch.texts == [run.tokenizer.decode(one, skip_special_tokens=True) for one in ids]
