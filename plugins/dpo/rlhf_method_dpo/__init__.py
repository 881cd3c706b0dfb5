"""Direct Preference Optimization (Rafailov et al., 2023): https://arxiv.org/abs/2305.18290

    rlhf run --method dpo
    rlhf run --method dpo --model MODEL --data pairs.jsonl --load-in-4bit

The loss of a pair is -log sigmoid(beta * (how much more the policy prefers the better answer than the reference does)).
The trainer is TRL's; it is given token ids, so that each answer's end token is learned once and nothing after it.
"""

from __future__ import annotations

import copy
from typing import Annotated, Literal

from pydantic import Field

from rlhf_core import Method, TrainingOptions, hookimpl


@hookimpl
def rlhf_methods():
    return [DPO]


class Options(TrainingOptions, defaults={"learning_rate": 5e-6, "num_train_epochs": 3.0, "max_prompt_length": 1024}):
    beta: Annotated[float, Field(gt=0)] = Field(0.1, description="how closely the policy is held to the reference")
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust"] = Field(
        "sigmoid", description="loss of a pair, by TRL's name"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="share of pairs taken as mislabelled"
    )


class DPO(Method):
    name, data, rewards, config = "dpo", "preferences", "optional", "trl:DPOConfig"
    Options = Options
    builtin_preset = {  # noqa: RUF012 - a class constant
        "learning_rate": 2e-4,
        "max_steps": 60,
        "per_device_train_batch_size": 16,
    }

    def trainer(self, run):
        from trl import DPOConfig

        from rlhf_core.data import encoding
        from rlhf_core.models import loading as models
        from rlhf_core.prefix import share
        from rlhf_method_dpo.trainer import SharedPrefixDPOTrainer

        options = run.options
        limit = options.max_completion_length
        # TRL would load the reference by the model's name, without the adapter that went into the weights.
        merged = run.info.adapter is not None and not models.uses_lora(options, run.info)
        trainer = SharedPrefixDPOTrainer(
            model=run.model,
            ref_model=copy.deepcopy(run.model) if merged else None,
            args=run.arguments(
                DPOConfig,
                beta=options.beta,
                loss_type=[options.loss_type],
                label_smoothing=options.label_smoothing,
                max_length=None,
            ),
            train_dataset=encoding.pairs(run.train_dataset, run.tokenizer, limit),
            eval_dataset=run.eval_dataset and encoding.pairs(run.eval_dataset, run.tokenizer, limit),
            processing_class=run.tokenizer,
            peft_config=run.peft_config,
        )
        if trainer.ref_model is not None and options.shares_prompts:
            share(trainer.accelerator.unwrap_model(trainer.ref_model))
        return trainer
