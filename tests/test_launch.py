"""Several processes: a step of two is the step of one; less than was asked for is refused; out of memory starts again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from rlhf_core.config import resolve
from rlhf_core.errors import UserError
from rlhf_core.plugins import Catalog
from rlhf_core.prefix import decoding
from rlhf_core.training import launch
from rlhf_core.training.run import train

# Answer i of a group is sampled with the same numbers every time, so that all processes sample alike.
REWARD = """
import torch
from rlhf_core.prefix import decoding
def chances(rows, sampling):
    return ((torch.arange(rows) % 4 + 0.5) / 4).double()[:, None].expand(rows, sampling.max_new_tokens)
decoding.chances = chances
def place(completions, **_): return [float(i % 4) for i in range(len(completions))]
"""
FLAGS = {
    "max_steps": 2,
    "learning_rate": 1e-3,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 8,
    "logging_steps": 1,
    "eval_prompts": 2,
    "gradient_checkpointing": False,
    "output_dir": "one",
}
SAMPLED = {"reward": ["./rewards.py:place"], "data": "prompts.jsonl"}
PAIRS, CHATS = {"data": "pairs.jsonl", "max_completion_length": 512}, {"data": "chats.jsonl"}
METHODS = {
    "sft": {**CHATS, "optim": "sgd"},
    "reward_model": {**PAIRS, "optim": "sgd"},
    "dpo": {**PAIRS, "optim": "sgd"},
    "orpo": {**PAIRS, "optim": "sgd"},
    "grpo": {**SAMPLED, "num_generations": 4},
    "ppo": {**SAMPLED, "num_ppo_epochs": 2},
}


@pytest.fixture
def settings(tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(decoding, "chances", decoding.chances)  # put back after what the reward does to it
    Path("rewards.py").write_text(REWARD)
    rows = [(f"What helps against symptom {i}?", f"Rest {'and water ' * (i % 3)}.") for i in range(20)]
    prompts = [{"question": q, "answer": a} for q, a in rows]
    pairs = [{"question": q, "response_chosen": a, "response_rejected": "No."} for q, a in rows]
    chats = [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in rows]
    for name, values in (("prompts", prompts), ("pairs", pairs), ("chats", chats)):
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, values)))
    return {**FLAGS, "model": str(tiny_model)}


def command(values: dict, *more: str) -> subprocess.CompletedProcess:
    flags = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            flags += [text for item in (value if isinstance(value, list) else [value]) for text in (flag, str(item))]
    line = [sys.executable, "-m", "rlhf_core", "run", *flags, *more]
    return subprocess.run(line, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_two_processes_is_that_of_one(settings, method):
    values = {**settings, **METHODS[method], "method": method}
    config, made = resolve({**values, "per_device_train_batch_size": 8}, Catalog())
    assert train(config, made, Catalog()) == 0
    two = command({**values, "output_dir": "two", "per_device_train_batch_size": 4, "num_processes": 2})
    assert two.returncode == 0, two.stderr
    one, other = (load_file(f"{name}/model/model.safetensors") for name in ("one", "two"))
    start = load_file(f"{settings['model']}/model.safetensors")
    moved = max((one[key] - start[key]).abs().max().item() for key in start if key in one)
    apart = max((one[key] - other[key]).abs().max().item() for key in one)
    assert moved > 1e-5
    assert apart < 0.02 * moved


def test_a_mistake_is_told_once_before_processes_are_started(settings):
    Path("bad.jsonl").write_text('{"frage": "x"}')
    done = command({**settings, "method": "sft", "data": "bad.jsonl", "num_processes": 2})
    assert done.returncode == 2
    assert (done.stderr.count("no formatter fits"), done.stderr.count("Traceback")) == (1, 0)


def trainer(world: int, kind: str):
    return SimpleNamespace(
        args=SimpleNamespace(world_size=world), accelerator=SimpleNamespace(distributed_type=SimpleNamespace(name=kind))
    )


@pytest.mark.parametrize(
    ("asked", "got", "message"),
    [
        ({"num_processes": 2}, (1, "NO"), "asked for 2 processes and got 1"),
        ({"num_processes": 2, "num_machines": 2, "main_address": "a:1"}, (2, "MULTI_CPU"), "asked for 4 processes and got 2"),
        ({"num_processes": 2, "distributed": "fsdp"}, (2, "MULTI_CPU"), "asked for fsdp and got MULTI_CPU"),
        ({"num_processes": 2, "distributed": "zero3"}, (2, "MULTI_GPU"), "asked for zero3 and got MULTI_GPU"),
        ({"num_processes": 2}, (2, "MULTI_CPU"), None),
        ({"num_processes": 2, "distributed": "fsdp"}, (2, "FSDP"), None),
        ({}, (2, "MULTI_CPU"), None),
    ],
)  # fmt: skip
def test_less_than_was_asked_for_is_refused(asked, got, message):
    config, _ = resolve({"method": "sft", **asked}, Catalog())
    if message is None:
        launch.check(config, trainer(*got))
    else:
        with pytest.raises(UserError, match=message):
            launch.check(config, trainer(*got))


def test_several_machines_need_an_address():
    with pytest.raises(UserError, match="--main-address"):
        resolve({"method": "sft", "num_machines": 2}, Catalog())


@pytest.mark.parametrize(("size", "smaller"), [((8, 1), (4, 2)), ((2, 16), (1, 32)), ((3, 2), (1, 6)), ((1, 4), None)])
def test_the_micro_batch_shrinks_and_the_step_does_not(size, smaller):
    options = SimpleNamespace(per_device_train_batch_size=size[0], gradient_accumulation_steps=size[1])
    found = launch.smaller(options)
    assert (None if found is None else tuple(found.values())) == smaller


RUNS_OUT = """
import torch
from rlhf_core import hookimpl
from transformers import TrainerCallback

class RunsOut(TrainerCallback):
    def __init__(self, run): self.run = run
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2 and args.per_device_train_batch_size == 4:
            raise torch.OutOfMemoryError("tried to allocate too much")

@hookimpl
def rlhf_callbacks(run): return [RunsOut(run)]
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_out_of_memory_goes_on_with_a_smaller_micro_batch(settings, tmp_path, monkeypatch, processes):
    site = tmp_path / "site"
    (site / "runs_out-1.0.dist-info").mkdir(parents=True)
    (site / "runs_out_plugin.py").write_text(RUNS_OUT)
    (site / "runs_out-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: runs-out\nVersion: 1.0\n")
    (site / "runs_out-1.0.dist-info" / "entry_points.txt").write_text("[rlhf.callbacks]\nruns_out = runs_out_plugin\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    values = {
        **settings,
        **METHODS["grpo"],
        "method": "grpo",
        "max_steps": 3,
        "save_steps": 1,
        "callback": ["runs_out"],
    }
    done = command({**values, "per_device_train_batch_size": 4, "num_processes": processes})
    assert done.returncode == 0, done.stderr
    assert "Starting again from the last checkpoint with per_device_train_batch_size 2, gradient_acc" in done.stdout
    assert "Going on after checkpoint-2." in done.stdout
    state = sorted(Path("one/checkpoints").glob("checkpoint-*/trainer_state.json"))[-1]
    assert json.loads(state.read_text())["global_step"] == 3
    assert torch.load(state.parent / "training_args.bin", weights_only=False).per_device_train_batch_size == 2
