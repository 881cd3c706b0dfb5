"""SFT: the loss is the cross-entropy of the assistant's tokens, whatever the batch is made of."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from rlhf_method_sft import SFT
from rlhf_method_sft.trainer import concatenate_rows
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Llama4TextConfig,
    ModernBertDecoderConfig,
    RecurrentGemmaConfig,
)

from rlhf_core.data.encoding import IGNORED
from tests.prefix_models import random_model

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


SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
HEADS = {  # what is between the last states and the logits, or after them, that TRL does not know
    "a layer more": ModernBertDecoderConfig(**SIZES, global_attn_every_n_layers=2),
    "a cap": RecurrentGemmaConfig(
        **SIZES | {"num_hidden_layers": 3}, num_key_value_heads=1, lru_width=32, logits_soft_cap=1.0
    ),
    "base model of another name": Llama4TextConfig(
        **SIZES, num_key_value_heads=1, head_dim=16, num_local_experts=2, intermediate_size_mlp=32
    ),
}


@pytest.mark.parametrize(("kind", "lora"), [*((kind, False) for kind in HEADS), ("a layer more", True)])
def test_the_loss_is_that_of_the_models_own_logits(made_run, tiny_model, tmp_path, said, kind, lora):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = copy.deepcopy(HEADS[kind])
    config.vocab_size = len(AutoTokenizer.from_pretrained(folder))
    config.pad_token_id = config.bos_token_id = config.eos_token_id = 0
    model = random_model(config, torch.float32, spread=0.1)
    model.save_pretrained(folder)
    trainer = SFT().trainer(made_run(model=str(folder), lora=lora, lora_target_modules="all-linear"))
    rows = [trainer.train_dataset[i] for i in range(4)]
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    torch.testing.assert_close(loss, cross_entropy(model.eval(), rows), **CLOSE)
    assert any("TRL does not know this model's head" in line for line in said())


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


def test_overlong_conversations_are_counted_on_the_screen(go, capsys):
    code, _ = go(max_length=40, overlong_completions="truncate", max_steps=1)
    assert code == 0
    assert "24 rows: the conversation has more than --max-length 40 tokens" in " ".join(capsys.readouterr().out.split())
