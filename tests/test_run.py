"""A run from start to end on a two-layer model: its folder, its stops, and resuming as if it had never stopped."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rlhf_core.catalog import Catalog
from rlhf_core.config import resolve
from rlhf_core.errors import RunStopped
from rlhf_core.training import run_folder
from rlhf_core.training.checkpoint import list_checkpoints
from rlhf_core.training.run import train

REWARDS = """
import os, signal
STEPS = []
def length(completions, **_): return [min(1.0, len(c[0]["content"]) / 50) for c in completions]
def vowels(completions, **_): return [sum(x in "aeiou" for x in c[0]["content"]) / 20 for c in completions]
def failing(completions, **_): raise RuntimeError("down")
def sometimes(completions, trainer_state, **_):
    if trainer_state.global_step == 1: raise RuntimeError("down")
    return length(completions)
def interrupts(completions, trainer_state, **_):
    if trainer_state.global_step == 2: os.kill(os.getpid(), signal.SIGINT)
    return length(completions)
"""


@pytest.fixture
def run(tmp_path, tiny_model, monkeypatch):
    """run("name", reward=[...], max_steps=3) -> (exit code, the run's folder); resume=True to resume."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text(REWARDS)
    rows = [{"question": f"What helps against symptom {i}?", "answer": str(i)} for i in range(12)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def go(name: str, resume: bool = False, **values):
        shared = {
            "method": "grpo",
            "reward": ["./rewards.py:length"],
            "model": str(tiny_model),
            "data": "data.jsonl",
            "output_dir": name,
            "max_steps": 6,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "num_generations": 4,
            "max_completion_length": 8,
            "logging_steps": 1,
            "save_steps": 2,
            "num_eval_prompts": 0,
            "gradient_checkpointing": False,
        }
        config, method = resolve({**shared, **values}, Catalog())
        return train(config, method, Catalog(), resume=resume), Path(name)

    return go


def read_lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_folder_of_a_run(run, tiny_model, capsys):
    code, folder = run("out", reward=["./rewards.py:length", "./rewards.py:vowels:weight=0.5"], num_eval_prompts=1)
    assert code == 0
    assert not same(weights(folder / "model"), weights(tiny_model))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["max_steps"], config["data"], config["reward"][1]) == (
        6,
        ["data.jsonl"],
        "./rewards.py:vowels:weight=0.5",
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {"torch", "transformers", "trl", "rlhf-core"} <= manifest["versions"].keys()
    assert manifest["plugins"][0] == "method grpo: rlhf-method-grpo 0.1.0"
    assert manifest["plugins"][1] == "formatter question_answer: rlhf-formatter-common 0.1.0"
    assert (manifest["data"]["rows"], manifest["seed"], len(manifest["data"]["sha256"])) == (11, 42, 64)
    metrics = [m for m in read_lines(folder / "metrics.jsonl") if "reward" in m]
    assert [m["step"] for m in metrics] == [1, 2, 3, 4, 5, 6]
    wanted = {
        "loss",
        "rewards/length/mean",
        "rewards/vowels/mean",
        "rewards/length/error_rate",
        "rewards/vowels/latency",
    }
    wanted |= {"time/sampling", "time/rewards", "time/learning", "memory/peak_gb", "memory/free_gb"}
    assert wanted <= metrics[0].keys()
    assert all(metrics[-1][f"time/{phase}"] > 0 for phase in ("sampling", "rewards", "learning"))
    samples = read_lines(folder / "samples.jsonl")
    assert len(samples) == 6 * 4
    known = {"step", "prompt", "completion", "rewards", "columns", "tokens", "finished", "advantage"}
    assert samples[0].keys() == known
    assert all(one["finished"] or one["tokens"] == 8 for one in samples)
    assert sum(one["advantage"] for one in samples[:4]) == pytest.approx(0, abs=1e-4)
    assert samples[-1]["step"] == 6
    assert read_lines(folder / "reward_errors.jsonl") == []
    assert list((folder / "tensorboard").glob("events*"))
    assert [c.name for c in list_checkpoints(folder / "checkpoints")] == ["checkpoint-4", "checkpoint-6"]
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["before"]["rewards"].keys() == evaluation["after"]["rewards"].keys() == {"length", "vowels"}
    files = {path.name for path in (folder / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"} <= files
    shown = capsys.readouterr().out
    for part in (
        "format question_answer",
        "step 6/6",
        "1 held-out prompts",
        "tensorboard --logdir",
        "--model out/model",
    ):
        assert part in shown


@pytest.mark.slow
def test_the_written_configuration_repeats_the_run(run, tmp_path):
    _, one = run("one")
    values = yaml.safe_load((one / "config.yaml").read_text())
    config, method = resolve({**values, "output_dir": "two"}, Catalog())
    assert train(config, method, Catalog()) == 0
    assert same(weights(one / "model"), weights(tmp_path / "two" / "model"))


@pytest.mark.slow
def test_the_written_configuration_holds_what_was_used(run, capsys):
    _, folder = run("out", learning_rate=None, max_steps=1)
    assert "chosen by the method: learning_rate 1e-06, beta 0.0" in capsys.readouterr().out
    full = yaml.safe_load((folder / "config.yaml").read_text())
    assert (full["learning_rate"], full["beta"], full["lora"]) == (1e-6, 0.0, False)
    _, folder = run("adapter", learning_rate=None, lora=True, max_steps=1)
    adapted = yaml.safe_load((folder / "config.yaml").read_text())
    assert (adapted["learning_rate"], adapted["beta"], adapted["lora"]) == (1e-5, 0.001, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "greedy", [{"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}], ids=lambda values: next(iter(values))
)
def test_the_evaluation_samples_with_the_options(run, greedy):
    """With one token to choose from, every seed gives the same answers; otherwise these two do not."""

    def answers(seed: int, **values) -> list[str]:
        name = f"{seed}{sorted(values)}"
        run(name, seed=seed, num_eval_prompts=1, eval_data="data.jsonl", max_steps=1, learning_rate=1e-9, **values)
        return json.loads((Path(name) / "evaluation.json").read_text())["before"]["answers"]

    assert answers(1) != answers(2)
    assert answers(1, **greedy) == answers(2, **greedy)


# what is different from the run above: two epochs of data, several passes a batch, accumulation, LoRA
RESUMED = {
    "plain": {},
    "in the second epoch": {"max_steps": 16, "stop": 14},
    "two iterations": {"num_iterations": 2, "save_steps": 3, "stop": 3},
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "lora with a reference": {"lora": True, "beta": 0.1},
    "full with a reference": {"beta": 0.1},
    "a reference that follows": {"beta": 0.1, "set": {"sync_ref_model": True, "ref_model_sync_steps": 1}},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", RESUMED)
def test_a_resumed_run_is_the_run_that_never_stopped(run, case):
    values = dict(RESUMED[case])
    stop = values.pop("stop", 2)
    code, full = run("full", **values)
    assert code == 0
    values["save_total_limit"] = 20
    _, cut = run("cut", **values)
    for checkpoint in list_checkpoints(cut / "checkpoints"):
        if int(checkpoint.name.rpartition("-")[2]) > stop + 1:
            shutil.rmtree(checkpoint)
    left = int(list_checkpoints(cut / "checkpoints")[-1].name.rpartition("-")[2])
    assert stop <= left <= stop + 1
    code, cut = run("cut", resume=True, **values)
    assert code == 0
    name = "adapter_model.safetensors" if values.get("lora") else "model.safetensors"
    assert same(load_file(cut / "model" / name), load_file(full / "model" / name))

    def logged(folder):
        return [(m["step"], m["reward"], m["loss"]) for m in read_lines(folder / "metrics.jsonl") if "reward" in m]

    assert logged(cut) == logged(full)
    assert read_lines(cut / "samples.jsonl") == read_lines(full / "samples.jsonl")


def test_how_rewards_are_summed_is_said_on_the_screen_and_in_the_log(run, capsys):
    rewards = ["./rewards.py:length", "./rewards.py:vowels"]
    code, folder = run("one", reward=rewards, scale_rewards="none", max_steps=1)
    assert code == 0
    shown, logged = capsys.readouterr().out, (folder / "run.log").read_text()
    assert shown.count("Warning: several rewards: they are summed, and the sum is not scaled") == 1
    assert "several rewards: they are summed" in logged


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint_and_says_how_to_resume(run, capsys):
    values = {"reward": ["./rewards.py:interrupts"], "save_steps": 100}
    code, folder = run("out", **values)
    assert code == 130
    assert [c.name for c in list_checkpoints(folder / "checkpoints")] == ["checkpoint-3"]
    assert "Stopped after step 3. Resume: rlhf run --resume out" in capsys.readouterr().out
    assert not (folder / "model").exists()
    code, folder = run("out", resume=True, **values)
    assert code == 0
    assert [m["step"] for m in read_lines(folder / "metrics.jsonl") if "reward" in m] == [1, 2, 3, 4, 5, 6]


def test_errors_of_a_reward_are_left_out_and_reported(run, capsys):
    code, folder = run("out", reward=["./rewards.py:length", "./rewards.py:sometimes"])
    assert code == 0
    assert len(read_lines(folder / "reward_errors.jsonl")) == 4
    assert "Reward 'sometimes' failed on 4 of 24 rows, most often: RuntimeError: down" in capsys.readouterr().out
    rates = [m["rewards/sometimes/error_rate"] for m in read_lines(folder / "metrics.jsonl") if "reward" in m]
    assert rates == [0, 1, 0, 0, 0, 0]


def test_a_short_run_with_a_dead_reward_finishes(run):
    code, folder = run("out", reward=["./rewards.py:failing"], max_steps=3)
    assert code == 0
    assert len(read_lines(folder / "reward_errors.jsonl")) == 12


@pytest.mark.slow
def test_a_long_run_with_a_dead_reward_is_stopped_by_the_failure_monitor(run, capsys):
    code, folder = run("out", reward=["./rewards.py:length", "./rewards.py:failing"], max_steps=40, save_steps=100)
    assert code == 1
    assert [c.name for c in list_checkpoints(folder / "checkpoints")] == ["checkpoint-20"]
    shown = capsys.readouterr().out
    assert "reward 'failing' failed on 100% of its rows in the last 20 steps" in shown
    assert "rlhf run --resume out" in shown


@pytest.mark.slow
def test_lora_trains_only_the_adapter_and_can_be_trained_on(run, tiny_model):
    _, first = run("first", lora=True)
    files = {path.name for path in (first / "model").iterdir()}
    assert "adapter_model.safetensors" in files
    assert "model.safetensors" not in files
    code, second = run("second", model="first/model", lora=None, beta=0.1)
    assert code == 0
    adapters = [load_file(folder / "model" / "adapter_model.safetensors") for folder in (first, second)]
    assert adapters[0].keys() == adapters[1].keys()
    assert not same(*adapters)


@pytest.mark.slow
def test_an_adapter_can_be_merged_into_full_fine_tuning(run):
    run("first", lora=True)
    code, second = run("second", model="first/model", lora=False)
    assert code == 0
    assert (second / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_quantized_weights(run, bits):
    pytest.importorskip("bitsandbytes")
    code, folder = run("out", **{bits: True}, max_steps=2)
    assert code == 0
    assert (folder / "model" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_two_processes_stop_together(run, tmp_path, tiny_model):
    """Only the second process's reward fails: without agreement the first would wait for it forever."""
    (tmp_path / "second.py").write_text(
        "import os\n"
        "def second(completions, **_):\n"
        "    if os.environ['RANK'] == '1': raise RuntimeError('down')\n"
        "    return [float(len(c[0]['content'])) for c in completions]\n"
    )
    options = ["--per-device-train-batch-size", "4", "--gradient-accumulation-steps", "1", "--num-generations", "4"]
    options += [
        "--max-completion-length",
        "4",
        "--max-steps",
        "24",
        "--num-eval-prompts",
        "1",
        "--no-gradient-checkpointing",
    ]
    start = ["--method", "grpo", "--reward", "./second.py:second", "--model", str(tiny_model), "--data", "data.jsonl"]

    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "rlhf_core", "run", *start, *options, "--output-dir", "out"]
    stopped = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert "Stopped after step 20: reward 'second' failed on 50% of its rows" in stopped.stdout
    assert "Resume" in stopped.stdout
    assert stopped.returncode == 1
    errors = read_lines(tmp_path / "out" / "reward_errors.jsonl")
    assert len(errors) == 20 * 4
    assert len(read_lines(tmp_path / "out" / "samples.jsonl")) == 20 * 8
    assert [path.name for path in list_checkpoints(tmp_path / "out" / "checkpoints")] == ["checkpoint-20"]


def test_a_run_that_had_to_stop_says_why_and_how_to_resume(run, capsys, monkeypatch):
    from rlhf_method_grpo import trainer

    def no_answers(*given):
        if first:
            return first.pop()(*given)
        raise RunStopped("the sampler has nothing to choose from")

    first = [trainer.rollout]
    monkeypatch.setattr(trainer, "rollout", no_answers)
    code, folder = run("out")
    shown = capsys.readouterr()
    assert code == 1
    assert "\nthe sampler has nothing to choose from\nResume: rlhf run --resume out" in shown.out
    assert "Traceback" not in shown.out + shown.err
    assert "RunStopped: the sampler" in (folder / "run.log").read_text()
    assert not run_folder.first_to_stop(folder)  # another process of the run says nothing
