"""A run that is killed with SIGKILL at any moment resumes to exactly the weights of a run that was never killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from rlhf_core.catalog import Catalog
from rlhf_core.cli import main, rlhf
from rlhf_core.training.checkpoint import WRITING, list_checkpoints

pytestmark = pytest.mark.slow

# A process that has imported everything, and makes copies of itself.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["rlhf_core.training.run", "trl", "peft", "torch.utils.tensorboard"])
QUESTIONS = [f"What helps against symptom {i}?" for i in range(12)]
ROWS = {
    "prompts": [{"question": q, "answer": "Rest"} for q in QUESTIONS],
    "preferences": [{"question": q, "response_chosen": f"Rest. {q}", "response_rejected": "No."} for q in QUESTIONS],
    "conversations": [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": q}]} for q in QUESTIONS],
}  # fmt: skip
OPTIONS = {
    "max_steps": 8,
    "save_steps": 2,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",  # so that an additional step would change the weights
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "logging_steps": 1,
    "num_eval_prompts": 2,
}


@pytest.fixture(scope="module")
def flags(tmp_path_factory, tiny_model):
    """flags("grpo", "folder") -> the command line of a run of eight steps, in a folder that all runs are in."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("runs"))
    Path("rewards.py").write_text("def length(completions, **_): return [len(str(c)) / 100 for c in completions]")
    for name, rows in ROWS.items():
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def make(name: str, folder: str) -> list[str]:
        method = Catalog().load("methods", name)[0]
        values = {**OPTIONS, "data": f"{method.data}.jsonl", "model": tiny_model, "output_dir": folder}
        if method.rewards == "required":
            values |= {"reward": "./rewards.py:length", "max_completion_length": 8}
        if "num_generations" in method.Options.model_fields:
            values |= {"num_generations": 4}
        typed = [word for key, value in values.items() for word in ("--" + key.replace("_", "-"), str(value))]
        return ["run", "--method", name, "--no-gradient-checkpointing", *typed]

    yield make
    os.chdir(before)


@pytest.fixture(scope="module")
def unkilled(flags):
    """unkilled("grpo") -> the folder of the same run, never killed; it is made once."""

    def make(name: str) -> str:
        folder = f"{name}-unkilled"
        if not Path(folder).exists():
            go(flags(name, folder))
        return folder

    return make


def go(arguments: list[str]) -> None:
    done = CliRunner().invoke(rlhf, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output


def kill(arguments: list[str], at: str) -> None:
    """Carry out a command in a process that kills itself when it is about to do a thing to a file for the n-th time:
    `at` "open metrics.jsonl 5", to write.
    """
    process = PROCESSES.Process(target=carry_out, args=(os.getcwd(), arguments, at))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL, Path("output.txt").read_text()


def carry_out(folder: str, arguments: list[str], at: str) -> None:
    """In the process that is killed. Python calls an audit hook before each operation, so the run itself is the same."""
    os.chdir(folder)
    with open("output.txt", "w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    event, ending, times = at.split()
    left = int(times)

    def hook(name, given):
        nonlocal left
        if name == "open" and given[1] in ("r", "rb"):
            return
        if name == event and any(isinstance(one, str | os.PathLike) and str(one).endswith(ending) for one in given):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    sys.argv = ["rlhf", *arguments]
    main()


def assert_same(one: str, other: str) -> None:
    weights, others = (load_file(Path(folder, "model", "model.safetensors")) for folder in (one, other))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    for name in ("samples.jsonl", "reward_errors.jsonl"):
        assert Path(one, name).read_text() == Path(other, name).read_text()
    assert losses(one) == losses(other)


def losses(folder: str) -> list[tuple[int, float]]:
    lines = map(json.loads, Path(folder, "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def checkpoints(folder: str) -> list[str]:
    return [path.name for path in list_checkpoints(Path(folder, "checkpoints"))]


@pytest.mark.parametrize("method", [entry.name for entry in Catalog().entries("methods")])
def test_every_method_resumes_from_its_last_checkpoint(flags, unkilled, method):
    folder = f"{method}-killed"
    kill(flags(method, folder), "open metrics.jsonl 6")
    assert checkpoints(folder), "killed before there was a checkpoint: nothing is tested"
    go(["run", "--resume", folder])
    assert_same(unkilled(method), folder)


# what the process was about to do -> the checkpoints that are found then
MOMENTS = {
    "write the rest of the first checkpoint": ("open .writing/checkpoint-2/trainer_state.json 1", []),
    "write the rest of a checkpoint": ("open .writing/checkpoint-4/trainer_state.json 1", ["checkpoint-2"]),
    "rename a complete checkpoint": ("os.rename checkpoints/checkpoint-4 1", ["checkpoint-2"]),
    "move the oldest away": ("os.rename checkpoints/checkpoint-2 2", ["checkpoint-2", "checkpoint-4", "checkpoint-6"]),
    "delete the rest of the oldest": ("os.remove optimizer.pt 1", ["checkpoint-4", "checkpoint-6"]),
    "write the model": ("open model/config.json 1", ["checkpoint-6", "checkpoint-8"]),
    "write the evaluation": ("os.rename evaluation.json 2", ["checkpoint-6", "checkpoint-8"]),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_resumes_whatever_it_was_doing(flags, unkilled, moment):
    at, left = MOMENTS[moment]
    folder = moment.replace(" ", "-")
    kill(flags("sft", folder), at)
    assert checkpoints(folder) == left
    go(["run", "--resume", folder])
    assert_same(unkilled("sft"), folder)
    assert checkpoints(folder) == ["checkpoint-6", "checkpoint-8"]
    assert not list(Path(folder, "checkpoints", WRITING).glob("*checkpoint*"))


def test_a_run_that_is_killed_while_it_resumes_can_still_be_resumed(flags, unkilled):
    kill(flags("sft", "again"), "open metrics.jsonl 7")
    for at in (
        "os.rename config.yaml 1",
        "os.rename metrics.jsonl 1",
        "open .writing/checkpoint-6/trainer_state.json 1",
    ):
        kill(["run", "--resume", "again"], at)
        assert checkpoints("again") == ["checkpoint-2", "checkpoint-4"]
    go(["run", "--resume", "again"])
    assert_same(unkilled("sft"), "again")
