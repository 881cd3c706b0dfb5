"""What every method that trains on rows does the same: the saved model, accumulation, resuming, quantized weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlhf_core.training.checkpoint import list_checkpoints

pytestmark = pytest.mark.slow

METHODS = ["sft", "dpo", "orpo", "reward_model"]
ROWS = [
    {"prompt": f"Symptom {i}?", "chosen": "Rest and drink. " * (i % 5 + 1), "rejected": f"Run {i} miles."}
    for i in range(24)
]
VALUES = {"max_completion_length": 64}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "model").glob("*.safetensors")
    return load_file(file)


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("method", ["sft", "dpo", "orpo"])
def test_the_saved_model_computes_the_same_logits(go, method, lora):
    """Loaded by transformers, without anything of ours. That of a reward model: its own tests."""
    code, folder = go(method=method, lora=lora, max_steps=3)
    assert code == 0
    loaded = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        ours = go.trainers[-1].model(input_ids=ids).logits
        torch.testing.assert_close(loaded(input_ids=ids).logits, ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_accumulated_steps_equal_one_large_step(go, method):
    """The answers differ in length, so that a mean of means over batches would not be the mean over tokens."""
    folders = []
    for size, steps in ((2, 2), (4, 1)):
        values = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_grad_norm": 0}
        code, folder = go(
            method=method, output_dir=f"of{size}", optim="sgd", learning_rate=0.1, max_steps=1, lora=False, **values
        )
        assert code == 0
        folders.append(folder)
    for one, other in zip(*(weights(folder).values() for folder in folders), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "start"),
    [*((method, start) for method in METHODS for start in ("full", "lora")), ("dpo", "adapter"), ("grpo", "adapter")],
)
def test_a_resumed_run_equals_one_that_was_never_stopped(go, method, start):
    values = {"method": method, "lora": start != "full", "num_eval_prompts": 2}
    if method == "grpo":
        Path("spread.py").write_text(
            "def spread(completions, **_): return [len(str(one)) % 7 / 7 for one in completions]"
        )
        values |= {"reward": ["spread.py:spread"], "beta": 0.1, "num_generations": 4, "max_completion_length": 8}
    if start == "adapter":
        code, first = go(**values, output_dir="first", max_steps=2)
        assert code == 0
        values["model"] = str(first / "model")
    full, cut = (go(**values, output_dir=name)[1] for name in ("uninterrupted", "cut"))
    shutil.rmtree(list_checkpoints(cut / "checkpoints")[-1])
    shutil.rmtree(cut / "model")
    code, _ = go(**values, output_dir="cut", resume=True)
    assert code == 0
    assert not list(cut.glob("**/ref"))
    ours, theirs = weights(cut), weights(full)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert losses(cut) == losses(full)


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
@pytest.mark.parametrize("method", METHODS)
def test_quantized_weights(go, method, bits):
    pytest.importorskip("bitsandbytes")
    code, folder = go(method=method, **{bits: True}, max_steps=1)
    assert code == 0
    trained = weights(folder)
    assert all(torch.isfinite(tensor).all() for tensor in trained.values())
    assert any("score" in name for name in trained) == (method == "reward_model")
