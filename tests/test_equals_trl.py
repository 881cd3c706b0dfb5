"""Our pair trainer, and SFT without padding, have the losses, gradients, metrics and weights of TRL on the same rows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from rlhf_method_dpo import dpo_loss
from rlhf_method_orpo import orpo_loss
from rlhf_method_reward_model import reward_loss
from rlhf_method_sft.trainer import concatenate_rows
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainingArguments,
    set_seed,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from rlhf_core import PairLogps, PairTrainer, ReferenceModel
from rlhf_core.prefix import Group, share, shares

MEASURED = {"loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"}
MEASURED |= {"logps/chosen", "logps/rejected", "accuracy", "margin", "min_reward", "mean_reward", "max_reward"}
# TRL averages fine-tuning's loss over the tokens of a forward pass: it is the mean over pairs where a pass has one.
# Its aot, which sorts the pairs of a pass, is conservative DPO there.
ONE_PAIR = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}


class PlainDPOTrainer(DPOTrainer):
    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset


def numbers(generator, count):
    return torch.randint(300, 2000, (count,), generator=generator).tolist()


def pairs(end):
    """Two dozen pairs of unequal lengths."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for i in range(24):
        prompt, chosen, rejected = (numbers(generator, n) for n in (3 + i % 5, 1 + i % 7, 1 + (i * 3) % 8))
        made.append({"prompt_ids": prompt, "chosen_ids": [*chosen, end], "rejected_ids": [*rejected, end]})
    return made


def loaded(kind, folder):
    model = kind.from_pretrained(
        folder, dtype=torch.float32, **({} if kind is AutoModelForCausalLM else {"num_labels": 1})
    )
    return model, AutoTokenizer.from_pretrained(folder)


def arguments(cls, folder, **settings):
    fixed = {"report_to": [], "max_steps": 4, "logging_steps": 1, "learning_rate": 0.1, "optim": "sgd"}
    fixed |= {"save_strategy": "no", "use_cpu": True, "bf16": False, "disable_tqdm": True}
    return cls(output_dir=str(folder), **{**fixed, "per_device_train_batch_size": 4, **settings})


def adapter(lora, scores=False):
    task = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]} if scores else {"task_type": "CAUSAL_LM"}
    return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **task) if lora else None


def trained(trainer):
    """(lines of metrics, weights that were trained)."""
    trainer.train()
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    return [line for line in trainer.state.log_history if "loss" in line], weights


def ours(model, tokenizer, loss, folder, peft_config, *, shared, **settings):
    """Our trainer's result on the pairs; with `shared`, both answers of a pair are computed behind one prompt."""
    scores = not model.can_generate()
    if shared:
        share(model)
        assert shares(model, [Group([5, 6], [[7], [8, 9]])])
    set_seed(42)
    model = get_peft_model(model, peft_config) if peft_config else model
    reference = None if scores else ReferenceModel(model, fresh_adapter=True)
    args = arguments(TrainingArguments, folder, remove_unused_columns=False, **settings)
    data = Dataset.from_list(pairs(tokenizer.eos_token_id))
    return trained(
        PairTrainer(model=model, args=args, loss=loss, reference=reference, scores=scores, train_dataset=data)
    )


def same(one, other):
    (lines, weights), (their_lines, their_weights) = one, other
    assert their_lines[-1]["grad_norm"] > 1e-4
    for line, theirs in zip(lines, their_lines, strict=True):
        for name in MEASURED & theirs.keys():
            assert line[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-4), name
    assert weights.keys() == their_weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, their_weights[name], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(
    ("options", "theirs", "settings"),
    [
        ({}, {}, {}),
        ({"loss_type": "ipo"}, {"loss_type": ["ipo"]}, {"gradient_accumulation_steps": 2}),
        ({"loss_type": "hinge"}, {"loss_type": ["hinge"]}, {}),
        ({"loss_type": "robust", "label_smoothing": 0.2}, {"loss_type": ["robust"], "label_smoothing": 0.2}, {}),
        ({"label_smoothing": 0.2}, {"loss_type": ["aot"], "label_smoothing": 0.2}, ONE_PAIR),
        ({"sft_weight": 0.3}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]}, ONE_PAIR),
    ],
    ids=["sigmoid", "ipo", "hinge", "robust", "label smoothing", "sft"],
)
def test_dpo(options, theirs, settings, lora, tiny_model, tmp_path):
    model, tokenizer = loaded(AutoModelForCausalLM, tiny_model)
    trl = PlainDPOTrainer(
        model=model,
        args=arguments(DPOConfig, tmp_path, beta=0.2, max_length=None, **theirs, **settings),
        train_dataset=Dataset.from_list(pairs(tokenizer.eos_token_id)),
        processing_class=tokenizer,
        peft_config=adapter(lora),
    )
    model, _ = loaded(AutoModelForCausalLM, tiny_model)
    loss = lambda of: dpo_loss(of, 0.2, **options)  # noqa: E731
    same(ours(model, tokenizer, loss, tmp_path, adapter(lora), shared=True, **settings), trained(trl))


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("padding", ["pad", "end"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "padded"])
def test_reward_model(shared, padding, lora, tiny_model, tmp_path):
    """Also where the end token pads, and the score is read before it."""

    def start():
        set_seed(1)  # for the score head, which the model's folder has not
        model, tokenizer = loaded(AutoModelForSequenceClassification, tiny_model)
        if padding == "end":
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        return model, tokenizer

    model, tokenizer = start()
    rows = pairs(tokenizer.eos_token_id)
    full = [{key: row["prompt_ids"] + row[key] for key in ("chosen_ids", "rejected_ids")} for row in rows]
    settings = {"gradient_accumulation_steps": 2}
    trl = RewardTrainer(
        model=model,
        args=arguments(RewardConfig, tmp_path, center_rewards_coefficient=0.1, max_length=None, **settings),
        train_dataset=Dataset.from_list(full),
        processing_class=tokenizer,
        peft_config=adapter(lora, scores=True),
    )
    their_result = trained(trl)
    loss = lambda of: reward_loss(of, 0.1)  # noqa: E731
    same(ours(*start(), loss, tmp_path, adapter(lora, scores=True), shared=shared, **settings), their_result)


def test_odds_ratio_of_orpo():
    """TRL's full loss is a different one: it also fine-tunes on the prompt."""
    from trl.experimental.orpo import ORPOTrainer

    means = -torch.rand(2, 16, dtype=torch.float32) * 5 - 1e-3
    trainer = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    losses, chosen, rejected, *_ = ORPOTrainer.odds_ratio_loss(trainer, *means)
    tokens = torch.arange(1.0, 17)
    mine, metrics = orpo_loss(PairLogps(means[0] * tokens, means[1] * tokens, tokens, tokens), 0.3)
    torch.testing.assert_close(mine, metrics["nll_loss"] - losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(metrics["rewards/margins"], chosen - rejected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_sft(lora, tiny_model, tmp_path):
    def start(**collator):
        model, tokenizer = loaded(AutoModelForCausalLM, tiny_model)
        if collator:
            share(model)
        rows = [
            (row["prompt_ids"], row["chosen_ids"], [-100] * len(row["prompt_ids"]) if i % 3 else row["prompt_ids"])
            for i, row in enumerate(pairs(tokenizer.eos_token_id))
        ]
        return SFTTrainer(
            model=model,
            args=arguments(SFTConfig, tmp_path, gradient_accumulation_steps=2),
            train_dataset=Dataset.from_list([{"input_ids": a + b, "labels": labels + b} for a, b, labels in rows]),
            processing_class=tokenizer,
            peft_config=adapter(lora),
            **collator,
        )

    same(trained(start(data_collator=concatenate_rows)), trained(start()))
