"""Supervised fine-tuning: cross-entropy on the assistant's turns, and on nothing else.

    rlhf run --method sft
    rlhf run --method sft --model MODEL --data conversations.jsonl

The trainer is TRL's. It is given token ids and labels, so that which tokens are learned does not depend on whether TRL
knows the model's chat template.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AliasChoices, Field

from rlhf_core import Method, TrainingOptions, hookimpl

Positive = Annotated[int, Field(gt=0)]


@hookimpl
def rlhf_methods():
    return [SFT]


class Options(TrainingOptions, defaults={"learning_rate": 2e-5, "lr_scheduler_type": "cosine", "warmup_steps": 0.03}):
    max_length: Positive = Field(
        2048,
        description="tokens a conversation may have",
        validation_alias=AliasChoices("max_length", "max_seq_length"),
    )


class SFT(Method):
    name, data, rewards, config = "sft", "conversations", "optional", "trl:SFTConfig"
    Options = Options
    builtin_preset = {  # noqa: RUF012 - a class constant
        "learning_rate": 1e-3,
        "max_steps": 60,
        "per_device_train_batch_size": 32,
        "max_length": 512,
    }

    def trainer(self, run):
        from trl import SFTConfig, SFTTrainer

        from rlhf_core import encode_conversations
        from rlhf_core.prefix import Group, shares

        limit = run.options.max_length
        rows = encode_conversations(run.train_dataset, run.tokenizer, limit)
        longest = max(rows["input_ids"], key=len)
        unpadded = shares(run.model, [Group(longest[:1], [longest[1:]])])
        return SFTTrainer(
            model=run.model,
            args=run.arguments(SFTConfig, max_length=limit),
            train_dataset=rows,
            eval_dataset=run.eval_dataset and encode_conversations(run.eval_dataset, run.tokenizer, limit),
            processing_class=run.tokenizer,
            peft_config=run.peft_config,
            data_collator=one_after_another if unpadded else None,
        )


def one_after_another(rows):
    """A batch of conversations as one row without padding; the first token of each is foretold by nothing."""
    import torch

    from rlhf_core.data.encoding import IGNORED
    from rlhf_core.prefix import pack_rows

    labels = [label for row in rows for label in (IGNORED, *row["labels"][1:])]
    return {**pack_rows([row["input_ids"] for row in rows]), "labels": torch.tensor([labels])}
