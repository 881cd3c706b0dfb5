"""Proximal Policy Optimization (Schulman et al., 2017): https://arxiv.org/abs/1707.06347

    rlhf run --method ppo --reward medical_format
    rlhf run --method ppo --reward-model runs/reward_model/model --model MODEL --data prompts.jsonl
    rlhf run --method ppo --reward medical_format --vllm-server http://localhost:8000

Each prompt is answered once. At every token a value head predicts the reward that the answer will get; a token's
advantage is how much better the answer did than predicted. A KL penalty keeps the policy close to the model that the
run started from.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, model_validator

from rlhf_core import Method, UserError, hookimpl
from rlhf_core.settings import ROLLOUTS, VLLM, refused
from rlhf_core.vllm import RolloutOptions, check_vllm, vllm_arguments

# Examples of others: with LoRA 1.41e-5 (TRL); in full 5e-7 (OpenRLHF), 1e-6 (verl), 3e-6 (TRL).
LORA_RATE, FULL_RATE = 1e-5, 1e-6
REFERENCE = 4  # bytes of each of its weights in full fine-tuning
MOST_ANSWERS = 1_000_000  # that are sampled before the first step
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


LOADER = (
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
    *("dataloader_multiprocessing_context", "dataloader_in_order", "train_sampling_strategy"),
)
READ_AT_ONCE = "the prompts of a rollout are read at once, in an order that --seed decides"
SETTINGS = {**ROLLOUTS, **VLLM, **dict.fromkeys(LOADER, refused(READ_AT_ONCE))}


@hookimpl
def rlhf_methods():
    return [PPO]


class Options(
    RolloutOptions,
    defaults={
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 16,
        "max_prompt_length": 1024,
    },
):
    max_completion_length: Positive = Field(
        256,
        description="tokens an answer may have",
        validation_alias=AliasChoices("max_completion_length", "max_target_length", "response_length"),
    )
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description="peak learning rate; unset: 1e-5 with LoRA, 1e-6 in full fine-tuning"
    )
    total_episodes: Positive | None = Field(
        None, description="answers to sample in all, unless max_steps is given; unset: num_train_epochs for each prompt"
    )
    num_ppo_epochs: Positive = Field(4, description="epochs over each batch of answers")
    num_mini_batches: Positive = Field(1, description="optimizer steps in each such epoch")
    kl_coef: NotNegative = Field(0.05, description="weight of the KL penalty against the reference model")
    kl_estimator: Literal["k1", "k3"] = Field(
        "k1", description="estimator of a token's KL: k1, the log-ratio; k3, never negative"
    )
    target_kl: Annotated[float, Field(gt=0)] | None = Field(
        None, description="target of an answer's KL, to which kl_coef adapts; unset: kl_coef is fixed"
    )
    kl_horizon: Positive = Field(10_000, description="answers over which an adaptive kl_coef changes")
    gamma: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="discount of a reward, for each token that it is later"
    )
    lam: Annotated[float, Field(ge=0, le=1)] = Field(0.95, description="lambda of GAE")
    cliprange: Annotated[float, Field(gt=0)] = Field(0.2, description="clip range of the probability ratio")
    cliprange_value: Annotated[float, Field(gt=0)] = Field(
        0.2, description="clip range of the value around its old one"
    )
    vf_coef: NotNegative = Field(0.1, description="weight of the value loss")
    value_model: Literal["shared", "separate"] = Field(
        "shared", description="the value head reads the policy's hidden states; separate: those of a trained copy of it"
    )
    whiten_rewards: bool = Field(False, description="scale token rewards to unit variance")
    missing_eos_penalty: NotNegative = Field(1.0, description="subtracted from the score of an answer cut at the limit")
    mask_truncated_completions: bool = Field(False, description="leave answers cut at the limit out of the loss")

    @property
    def rollout_size(self) -> int:
        return super().rollout_size * self.num_mini_batches

    @property
    def bytes_held(self) -> int:
        models = 2 if self.value_model == "separate" else 1
        return super().bytes_held * models + (0 if self.lora else REFERENCE)

    @model_validator(mode="after")
    def _one_length(self) -> Options:
        if self.total_episodes is not None and self.num_train_epochs != 1:
            raise ValueError("total_episodes and num_train_epochs both say how long to train: leave one out")
        return self


class PPO(Method):
    name, data, rewards, config = "ppo", "prompts", "required", "rlhf_core.vllm:VLLMArguments"
    Options, settings, full_rate = Options, SETTINGS, FULL_RATE
    builtin_preset = {  # noqa: RUF012 - a class constant
        "lora": True,
        "lora_target_modules": ["o_proj", "down_proj"],
        "learning_rate": 8e-3,
        "max_steps": 72,
        "per_device_train_batch_size": 32,
        "num_ppo_epochs": 2,
        "logging_steps": 2,
    }

    def check(self, config):
        options, fields = config.options, Options.model_fields
        given = {name for name, field in fields.items() if getattr(options, name) != field.default}
        check_vllm(config)
        if options.rollout_size > MOST_ANSWERS:
            raise UserError(
                "per_device_train_batch_size × gradient_accumulation_steps × num_mini_batches: a batch of answers has "
                f"{options.rollout_size:,}, more than {MOST_ANSWERS:,}"
            )
        if "kl_horizon" in given and options.target_kl is None:
            raise UserError("--kl-horizon has no effect without --target-kl: kl_coef is fixed")
        if "missing_eos_penalty" in given and options.mask_truncated_completions:
            raise UserError("--missing-eos-penalty has no effect with --mask-truncated-completions")
        if "total_episodes" in given and options.max_steps > 0:
            preset = " by the preset: add --max-steps -1" if "max_steps" in config.preset else ""
            raise UserError(f"--total-episodes has no effect: --max-steps {options.max_steps} is given{preset}")

    def resolve_options(self, options: Options, *, lora: bool) -> Options:
        if options.learning_rate is not None:
            return options
        return options.model_copy(update={"learning_rate": LORA_RATE if lora else FULL_RATE})

    def trainer(self, run):
        from peft import get_peft_model

        from rlhf_core import ReferenceModel
        from rlhf_core.vllm import VLLMArguments
        from rlhf_method_ppo.policy import PolicyWithValue
        from rlhf_method_ppo.trainer import PPOTrainer

        options = run.options
        if options.lora_dropout and run.info.adapter is None:
            raise UserError(
                f"--lora-dropout {options.lora_dropout}: PPO compares probabilities before and after a step, in which "
                "dropout would be noise. Leave it out"
            )
        ReferenceModel.check(run)
        arguments = run.arguments(
            VLLMArguments,
            **vllm_arguments(run),
            max_steps=_steps(options, run.world_size, len(run.train_rows)),
            gradient_checkpointing=False,  # enabled below: the trainer sees the policy inside another module
            remove_unused_columns=False,
        )
        policy = run.model if run.peft_config is None else get_peft_model(run.model, run.peft_config)
        if options.gradient_checkpointing:
            policy.gradient_checkpointing_enable({"use_reentrant": False})
        reference = ReferenceModel(policy, fresh_adapter=run.peft_config is not None)
        return PPOTrainer(
            model=PolicyWithValue(policy, separate=options.value_model == "separate"),
            args=arguments,
            options=options,
            reference=reference,
            rewards=run.rewards,
            template=run.template,
            trust_remote_code=run.config.trust_remote_code,
            train_dataset=run.train_rows,
            processing_class=run.tokenizer,
        )

    def scored_answers(self, options, prompts, processes):
        if options.max_steps <= 0 and options.total_episodes:
            return options.total_episodes
        return super().scored_answers(options, prompts, processes, reuse=options.num_ppo_epochs)

    def steps_per_rollout(self, trainer):
        return trainer.steps_per_rollout

    def policy(self, trainer):
        return trainer.accelerator.unwrap_model(trainer.model).policy


def _steps(options: Options, processes: int, prompts: int) -> int:
    """Optimizer steps in total: `max_steps`, or what `total_episodes` answers need, or `num_train_epochs` for each of
    the `prompts`.
    """
    if options.max_steps > 0:
        return options.max_steps
    episodes = options.total_episodes or math.ceil(options.num_train_epochs * prompts)
    per_step = options.per_device_train_batch_size * options.gradient_accumulation_steps * processes
    rollouts = -(-episodes // (per_step * options.num_mini_batches))
    return rollouts * options.num_ppo_epochs * options.num_mini_batches
