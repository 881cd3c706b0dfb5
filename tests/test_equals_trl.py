"""DPO, the reward model and SFT with shared prompts and without padding end at TRL's losses, gradients and weights."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from rlhf_method_dpo.trainer import SharedPrefixDPOTrainer
from rlhf_method_reward_model.trainer import SharedPrefixRewardTrainer
from rlhf_method_sft.trainer import concatenate_rows
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from rlhf_core.prefix import share, shares, unwrap
from rlhf_core.prefix.groups import Group

MEASURED = ("loss", "grad_norm", "entropy", "rewards/margins", "logps/chosen", "logps/rejected", "margin", "num_tokens")


class PlainDPOTrainer(DPOTrainer):
    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset


def numbers(generator, count):
    return torch.randint(300, 2000, (count,), generator=generator).tolist()


def rows(method, end):
    """Two dozen rows of unequal lengths."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for i in range(24):
        prompt, better, worse = (numbers(generator, n) for n in (3 + i % 5, 1 + i % 7, 1 + (i * 3) % 8))
        made.append(
            {
                "dpo": {"prompt_ids": prompt, "chosen_ids": better, "rejected_ids": worse},
                "reward_model": {"chosen_ids": [*prompt, *better, end], "rejected_ids": [*prompt, *worse, end]},
                "sft": {"input_ids": prompt + better, "labels": ([-100] * len(prompt) if i % 3 else prompt) + better},
            }[method]
        )
    return Dataset.from_list(made)


def trained(method, ours, tiny_model, folder, lora, **settings):
    """(lines of metrics, weights that were trained) after four steps of TRL's trainer or of ours."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    kind = AutoModelForSequenceClassification if method == "reward_model" else AutoModelForCausalLM
    model = kind.from_pretrained(tiny_model, dtype=torch.float32, **({"num_labels": 1} if "reward" in method else {}))
    model.config.pad_token_id = tokenizer.pad_token_id
    if ours:
        share(model)
        assert shares(model, [Group([5, 6], [[7], [8, 9]])])
    config, plain, sharing = {
        "dpo": (DPOConfig, PlainDPOTrainer, SharedPrefixDPOTrainer),
        "reward_model": (RewardConfig, RewardTrainer, SharedPrefixRewardTrainer),
        "sft": (SFTConfig, SFTTrainer, SFTTrainer),
    }[method]
    task = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]} if "reward" in method else {"task_type": "CAUSAL_LM"}
    trainer = (sharing if ours else plain)(
        model=model,
        args=config(
            output_dir=str(folder),
            report_to=[],
            per_device_train_batch_size=4,
            max_steps=4,
            logging_steps=1,
            learning_rate=0.1,
            optim="sgd",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=rows(method, tokenizer.eos_token_id),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **task) if lora else None,
        **({"data_collator": concatenate_rows} if ours and method == "sft" else {}),
    )
    if ours and method == "dpo" and trainer.ref_model is not None:
        share(unwrap(trainer.ref_model))
    trainer.train()
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    return [line for line in trainer.state.log_history if "loss" in line], weights


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("dpo", {}),
        ("dpo", {"loss_type": ["ipo"], "gradient_accumulation_steps": 2}),
        ("reward_model", {"center_rewards_coefficient": 0.1}),
        ("sft", {"gradient_accumulation_steps": 2}),
    ],
)
def test_equals_trl(method, settings, lora, tiny_model, tmp_path):
    theirs, their_weights = trained(method, False, tiny_model, tmp_path, lora, **settings)
    lines, weights = trained(method, True, tiny_model, tmp_path, lora, **settings)
    assert theirs[-1]["grad_norm"] > 1e-4
    for one, other in zip(lines, theirs, strict=True):
        for name in MEASURED:
            if name in other:
                assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5), name
    for name, weight in weights.items():
        torch.testing.assert_close(weight, their_weights[name], atol=1e-6, rtol=1e-5)
