"""A run that can't go on stops at the step where it is seen."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerState

from rlhf_core.diagnoses import folder as diagnoses
from rlhf_core.errors import RunStopped, UserError
from rlhf_core.models import precision
from rlhf_core.training import watch

ROWS = [{"prompt": f"Symptom {i}?", "chosen": "Rest and drink. " * (i % 3 + 1), "rejected": "Run."} for i in range(8)]
VALUES = {"max_completion_length": 32, "max_steps": 2}


@pytest.mark.parametrize("method", ["sft", "dpo", "reward_model"])
def test_a_loss_that_is_no_number_stops_the_run_at_its_step(go, tiny_model, tmp_path, capsys, method):
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][:] = 3e38  # a number, with which none is computed
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    code, folder = go(method=method, model=str(broken), lora=True)
    shown = capsys.readouterr()
    assert code == 1
    assert shown.out.count("The loss of step 1 is nan: from here on nothing can be learned.") == 1
    assert "Resume: rlhf run --resume out" in shown.out
    assert "Traceback" not in shown.out + shown.err
    assert [one["name"] for one in diagnoses.diagnose("out")[1]] == ["nan"]
    assert not (folder / "checkpoints" / "checkpoint-2").exists()
    assert not (folder / "model").exists()


@pytest.mark.parametrize("event", ["on_save", "on_train_end"])
def test_weights_that_a_step_made_nan_are_neither_a_checkpoint_nor_a_model(event):
    """By a step whose loss was a number: its gradient was none."""
    trainer = SimpleNamespace(model=torch.nn.Linear(2, 2), training_step=None)
    one = watch.Watch(trainer, SimpleNamespace(config=SimpleNamespace(distributed="ddp")))
    state = TrainerState(global_step=3)
    getattr(one, event)(None, state, None)
    torch.nn.init.constant_(trainer.model.bias, float("nan"))
    with pytest.raises(RunStopped, match="After step 3 bias has values that are NaN or infinite .of 2 .* 1 have"):
        getattr(one, event)(None, state, None)


def test_a_loss_is_logged_as_it_is(go):
    _, folder = go(method="sft", logging_steps=1)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line["loss"] > 0 for line in lines if "loss" in line)


def test_a_run_without_a_step_saves_no_model(go, capsys):
    code, folder = go(method="sft", per_device_train_batch_size=16, set={"dataloader_drop_last": True})
    assert code == 1
    assert "Not one step was trained: the trainer made no batch of 8 rows" in capsys.readouterr().out
    assert not (folder / "model").exists()


@pytest.mark.slow
def test_steps_too_small_for_the_weights_are_said(go, capsys):
    go(method="sft", dtype="bfloat16", lora=False, learning_rate=1e-6, max_steps=1)
    shown = capsys.readouterr().out
    assert "Warning: --learning-rate 1e-06: a step of it is under half a unit in the last place of" in shown
    assert "Use a larger rate, or --dtype float32 or --lora" in " ".join(shown.split())
    go(method="sft", lora=False, learning_rate=1e-6, max_steps=1, output_dir="float32")
    assert "--learning-rate" not in capsys.readouterr().out
    go(method="dpo", lora=False, learning_rate=1e-20, max_steps=1, output_dir="tiny_rate")
    shown = " ".join(capsys.readouterr().out.split())
    assert "Warning: --learning-rate 1e-20" in shown
    assert "--dtype" not in shown[shown.index("Use a larger rate") :]


@pytest.mark.slow
def test_a_run_that_is_all_warm_up_says_so(go, said):
    go(method="sft", max_steps=1)  # whose default is a share
    go(method="dpo", max_steps=2, warmup_steps=4, learning_rate=1e-3, output_dir="two")
    go(method="sft", max_steps=2, output_dir="three")
    assert said() == [
        "--warmup-steps 0.03: all 1 steps are warm-up, in which the learning rate rises from 0 to 0 at most, so nothing "
        "is learned. Use --warmup-steps 0, or more steps",
        "--warmup-steps 4: all 2 steps are warm-up, in which the learning rate rises from 0 to 0.00025 at most. Use "
        "--warmup-steps 0, or more steps",
    ]


def test_an_older_gpu_trains_an_adapter_in_float16_and_a_run_knows_it(made_run, monkeypatch):
    monkeypatch.setattr(precision, "frozen_dtype", lambda: torch.float16)
    assert made_run(method="sft", lora=True).options.dtype == "float16"


def test_all_weights_in_float16_are_refused(made_run):
    with pytest.raises(UserError, match="--dtype float16: all weights are trained.*--lora"):
        made_run(method="sft", dtype="float16", lora=False)
    made_run(method="sft", dtype="float16", lora=True)
