"""Odds Ratio Preference Optimization (Hong, Lee and Thorne, 2024): https://arxiv.org/abs/2403.07691

    rlhf run --method orpo
    rlhf run --method orpo --model MODEL --data pairs.jsonl --load-in-4bit

The loss of a pair is that of supervised fine-tuning on the better answer, plus a penalty where its odds do not exceed
those of the worse one. There is no reference model, so one pass of one model is all a step needs.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rlhf_core import Method, TrainingOptions, hookimpl


@hookimpl
def rlhf_methods():
    return [ORPO]


class Options(TrainingOptions, defaults={"num_train_epochs": 3.0, "max_prompt_length": 1024}):
    lambda_orpo: Annotated[float, Field(ge=0)] = Field(0.1, description="weight of the odds ratio against fine-tuning")


class ORPO(Method):
    name, data, rewards = "orpo", "preferences", "optional"
    Options = Options
    builtin_preset = {  # noqa: RUF012 - a class constant
        "learning_rate": 3e-4,
        "max_steps": 60,
        "per_device_train_batch_size": 16,
    }

    def trainer(self, run):
        from peft import get_peft_model
        from transformers import TrainingArguments

        from rlhf_core.data import encoding
        from rlhf_method_orpo.trainer import ORPOTrainer

        options = run.options
        limit = options.max_completion_length
        arguments = run.arguments(
            TrainingArguments,
            per_device_eval_batch_size=options.per_device_train_batch_size,
            remove_unused_columns=False,
        )
        return ORPOTrainer(
            model=run.model if run.peft_config is None else get_peft_model(run.model, run.peft_config),
            args=arguments,
            lambda_orpo=options.lambda_orpo,
            train_dataset=encoding.pairs(run.train_dataset, run.tokenizer, limit),
            eval_dataset=run.eval_dataset and encoding.pairs(run.eval_dataset, run.tokenizer, limit),
            processing_class=run.tokenizer,
        )
