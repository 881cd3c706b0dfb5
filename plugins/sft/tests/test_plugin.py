"""SFT: the loss is the cross-entropy of the assistant's tokens, whatever the batch is made of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from rlhf_method_sft import SFT
from rlhf_method_sft.trainer import concatenate_rows
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlhf_core.catalog import Catalog
from rlhf_core.data.encoding import IGNORED
from rlhf_core.training.run import train
from rlhf_core.training.run_folder import list_checkpoints

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"Symptom {i}?"},
            {"role": "assistant", "content": "Rest and drink. " * (i % 5 + 1)},
            *[{"role": "user", "content": "And then?"}, {"role": "assistant", "content": f"Wait {i} days."}][
                : 2 * (i % 2)
            ],
        ]
    }
    for i in range(24)
]
VALUES = {"method": "sft", "max_length": 128}


def cross_entropy(model, rows) -> torch.Tensor:
    """The mean over all tokens in the loss of -log p, given the tokens before."""
    losses = []
    for row in rows:
        log_probs_TV = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        losses += [-log_probs_TV[i - 1, label] for i, label in enumerate(row["labels"]) if label != IGNORED]
    return torch.stack(losses).mean()


def test_the_defaults():
    options = SFT.Options()
    assert (options.learning_rate, options.lr_scheduler_type, options.warmup_steps) == (2e-5, "cosine", 0.03)
    assert SFT.Options(max_seq_length=7).max_length == 7


@pytest.mark.parametrize("lora", [False, True])
def test_loss_and_gradients_equal_those_of_the_formula(made_run, tiny_model, lora):
    """In float64 but for TRL's output layer, which is joined with the loss and sums in float32."""
    trainer = SFT().trainer(made_run(lora=lora))
    model = trainer.model.double()
    rows = [trainer.train_dataset[i] for i in range(6)]
    assert trainer.concatenates
    loss = trainer.compute_loss(model, concatenate_rows(rows))
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    plain = model
    if not lora:
        plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    expected = cross_entropy(plain, rows)
    expected.backward()
    torch.testing.assert_close(loss.detach().double(), expected.detach(), **CLOSE)
    wanted = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    assert gradients.keys() == wanted.keys()
    assert any(gradient.abs().max() > 0.01 for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], **CLOSE)


def test_the_loss_has_the_assistants_tokens_and_nothing_else(made_run):
    trainer = SFT().trainer(made_run(num_eval_prompts=2, shared_prefix=False))  # a row each, padded
    tokenizer = trainer.processing_class
    end = tokenizer.eos_token_id
    assert trainer.train_dataset.column_names == trainer.eval_dataset.column_names == ["input_ids", "labels"]
    for batch in trainer.get_train_dataloader():
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            learned = labels[labels != IGNORED]
            assert torch.equal(learned, ids[labels != IGNORED])
            text = tokenizer.decode(learned)
            assert text.startswith("Rest and drink.")
            assert "Symptom" not in text
            assert "<|im_start|>" not in text
            assert (learned == end).sum() == text.count("days.") + 1


def weights(folder: Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / name)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("lora", [False, True])
def test_the_saved_model_computes_the_same_logits(resolved, monkeypatch, lora):
    trainers = []
    config, method = resolved(lora=lora, max_steps=3, num_eval_prompts=1, max_completion_length=4)
    build = method.trainer
    monkeypatch.setattr(method, "trainer", lambda run: trainers.append(build(run)) or trainers[0])
    assert train(config, method, Catalog()) == 0
    loaded = AutoModelForCausalLM.from_pretrained("out/model", dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, trainers[0].model(input_ids=ids).logits, **CLOSE)


def test_accumulated_steps_equal_one_large_step(go):
    """The answers differ in length, so that a mean of means over batches would not be the mean over tokens."""
    folders = []
    for size, steps in ((2, 2), (4, 1)):
        values = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_grad_norm": 0}
        code, folder = go(output_dir=f"of{size}", optim="sgd", learning_rate=0.1, max_steps=1, **values)
        assert code == 0
        folders.append(folder)
    for one, other in zip(*(weights(folder).values() for folder in folders), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lora", [False, True])
def test_a_resumed_run_equals_one_that_was_never_stopped(go, lora):
    code, full = go(output_dir="full", lora=lora)
    assert code == 0
    _, cut = go(output_dir="cut", lora=lora)
    shutil.rmtree(list_checkpoints(cut / "checkpoints")[-1])
    shutil.rmtree(cut / "model")
    code, cut = go(output_dir="cut", lora=lora, resume=True)
    assert code == 0
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    assert same(weights(cut, name), weights(full, name))


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_quantized_weights(go, bits):
    pytest.importorskip("bitsandbytes")
    code, folder = go(**{bits: True}, max_steps=1)
    assert code == 0
    assert all(torch.isfinite(tensor).all() for tensor in weights(folder, "adapter_model.safetensors").values())


def test_overlong_conversations_are_counted_on_the_screen(go, capsys):
    code, _ = go(max_length=40, overlong_completions="truncate", max_steps=1)
    assert code == 0
    assert "24 conversations have more than --max-length 40 tokens" in " ".join(capsys.readouterr().out.split())
