"""Simple Preference Optimization (Meng, Xia and Chen, 2024): https://arxiv.org/abs/2405.14734

    rlhf run --method simpo
    rlhf run --method simpo --model MODEL --data pairs.jsonl --gamma 0.5

An answer's reward is the mean log-probability of its tokens, which is what sampling goes by, so there is no reference
model; the better answer of a pair is to earn more than the worse one by a margin.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rlhf_core import Method, TrainingOptions, hookimpl


@hookimpl
def rlhf_methods():
    return [SimPO]


class Options(TrainingOptions, defaults={"learning_rate": 1e-6, "lr_scheduler_type": "cosine", "warmup_steps": 0.1}):
    beta: Annotated[float, Field(gt=0)] = Field(2.0, description="scale of the rewards")
    gamma: Annotated[float, Field(ge=0)] = Field(1.0, description="margin by which the better answer is to win")


class SimPO(Method):
    name, data, rewards = "simpo", "preferences", "optional"
    Options = Options
    builtin_preset = {  # noqa: RUF012 - a class constant
        "learning_rate": 3e-4,
        "max_steps": 30,
        "per_device_train_batch_size": 16,
    }

    def trainer(self, run):
        """Build the trainer. torch is imported here, so that listings stay quick."""
        from peft import get_peft_model
        from transformers import TrainingArguments

        from rlhf_core.data import encoding
        from rlhf_method_simpo.trainer import SimPOTrainer

        options = run.options
        limit = options.max_completion_length
        arguments = run.arguments(
            TrainingArguments,
            per_device_eval_batch_size=options.per_device_train_batch_size,
            remove_unused_columns=False,
        )
        return SimPOTrainer(
            model=run.model if run.peft_config is None else get_peft_model(run.model, run.peft_config),
            args=arguments,
            beta=options.beta,
            gamma=options.gamma,
            train_dataset=encoding.pairs(run.train_dataset, run.tokenizer, limit),
            eval_dataset=run.eval_dataset and encoding.pairs(run.eval_dataset, run.tokenizer, limit),
            processing_class=run.tokenizer,
        )
