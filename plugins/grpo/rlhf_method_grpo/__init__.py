"""Group Relative Policy Optimization (Shao et al., 2024): https://arxiv.org/abs/2402.03300

    rlhf run --method grpo --reward medical_format

Each prompt is answered `num_generations` times; an answer's advantage is how much better than its group it scored, so
no value model is needed. The trainer is TRL's; prompts, rewards, checkpoints and the screen are the core's.
"""

from __future__ import annotations

import importlib.util
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlhf_core import Method, TrainingOptions, UserError, hookimpl

LORA_BETA = 0.001  # in full fine-tuning a KL penalty costs a second copy of the model


@hookimpl
def rlhf_methods():
    return [GRPO]


class Options(TrainingOptions):
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description="peak learning rate; unset: 1e-6, or 5e-7 with quantized weights"
    )
    beta: Annotated[float, Field(ge=0)] | None = Field(
        None, description=f"weight of the KL penalty; unset: {LORA_BETA} with LoRA, 0 in full fine-tuning"
    )
    num_generations: Annotated[int, Field(ge=2)] = Field(4, description="answers to each prompt")
    num_iterations: Annotated[int, Field(gt=0)] = Field(1, description="optimizer passes over each batch of answers")
    epsilon: Annotated[float, Field(gt=0)] = Field(0.2, description="clip range of the probability ratio")
    loss_type: Literal["grpo", "dapo", "dr_grpo", "bnpo"] = Field("dapo", description="how token losses are averaged")
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group",
        description="advantages are divided by the standard deviation of the group, of the batch, or not at all",
    )
    mask_truncated_completions: bool = Field(False, description="leave answers cut at the length limit out of the loss")
    rollouts: Literal["shared", "transformers", "continuous", "vllm"] = Field(
        "shared", description="what samples answers; shared computes each prompt once for its group"
    )

    @model_validator(mode="after")
    def _whole_groups(self) -> Options:
        batch = self.per_device_train_batch_size * self.gradient_accumulation_steps
        if batch % self.num_generations:
            raise ValueError(
                f"a step has per_device_train_batch_size × gradient_accumulation_steps = {batch} answers, which "
                f"can't be split into groups of num_generations = {self.num_generations}: make it a multiple"
            )
        return self


class GRPO(Method):
    name, data, rewards, config = "grpo", "prompts", "required", "trl:GRPOConfig"
    Options = Options
    builtin_preset = {  # noqa: RUF012 - a class constant
        # An adapter forgets less of the medicine than the whole model does while it learns the layout.
        "lora": True,
        "lora_target_modules": ["o_proj", "down_proj"],
        "learning_rate": 6e-3,
        "beta": 0.15,
        "max_steps": 36,
        "per_device_train_batch_size": 32,
        "num_generations": 8,
        # Divided by their spread, groups that all broke the layout would teach as much as the layout itself.
        "scale_rewards": "none",
    }

    def resolve_options(self, options, *, lora):
        quantized = options.load_in_4bit or options.load_in_8bit
        learning_rate = options.learning_rate or (5e-7 if quantized else 1e-6)
        beta = (LORA_BETA if lora else 0.0) if options.beta is None else options.beta
        return options.model_copy(update={"learning_rate": learning_rate, "beta": beta})

    def steps_per_rollout(self, trainer):
        return _steps_per_rollout(trainer.args)

    def trainer(self, run):
        from trl import GRPOConfig

        from rlhf_core.prefix import share
        from rlhf_method_grpo.trainer import SharedPrefixGRPOTrainer

        options = run.options
        if options.rollouts == "vllm" and importlib.util.find_spec("vllm") is None:
            raise UserError("--rollouts vllm needs vLLM: pip install 'rlhf-core[vllm]'")
        arguments = run.arguments(
            GRPOConfig,
            beta=options.beta,
            num_generations=options.num_generations,
            max_completion_length=options.max_completion_length,
            num_iterations=options.num_iterations,
            epsilon=options.epsilon,
            loss_type=options.loss_type,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            min_p=options.min_p or None,
            repetition_penalty=options.repetition_penalty,
            scale_rewards=options.scale_rewards,
            mask_truncated_completions=options.mask_truncated_completions,
            reward_weights=run.rewards.weights,
            # With several rewards an error is None in its own column, which only this aggregation leaves neutral.
            use_vllm=options.rollouts == "vllm",
            vllm_mode="colocate",
            multi_objective_aggregation="normalize_then_sum" if len(run.rewards.weights) > 1 else "sum_then_normalize",
        )
        trainer = SharedPrefixGRPOTrainer(
            model=run.model,
            args=arguments,
            reward_funcs=run.rewards.functions(
                blank_errors=arguments.multi_objective_aggregation == "sum_then_normalize"
            ),
            train_dataset=run.train_dataset,
            processing_class=run.tokenizer,
            peft_config=run.peft_config,
        )
        trainer.epochs_done = run.epochs_done
        trainer.rollouts = options.rollouts
        if trainer.ref_model is not None and run.info.adapter:
            # TRL loads the reference by the model's name, without the adapter that went into the weights.
            trainer.accelerator.unwrap_model(trainer.ref_model).load_state_dict(run.model.state_dict())
        if trainer.ref_model is not None and options.shares_prompts:
            share(trainer.accelerator.unwrap_model(trainer.ref_model))
        return trainer


def _steps_per_rollout(arguments) -> int:
    """Optimizer steps between two points at which a new batch of answers is begun."""
    import math

    forwards = arguments.steps_per_generation * arguments.num_iterations
    return forwards // math.gcd(forwards, arguments.gradient_accumulation_steps)
