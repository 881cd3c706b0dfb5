"""Group Relative Policy Optimization (Shao et al., 2024): https://arxiv.org/abs/2402.03300

    rlhf run --method grpo --reward medical_format
    rlhf run --method grpo --reward medical_format --epsilon-high 0.28 --top-entropy-quantile 0.2
    rlhf run --method grpo --reward medical_format --loss-type grpo --importance-sampling-level sequence

Each prompt is answered `num_generations` times; an answer's advantage is how much higher it scored than its group, so
no value model is needed. The trainer is TRL's; prompts, rewards, checkpoints and the screen are the core's. The later
variants are options: DAPO (https://arxiv.org/abs/2503.14476), Dr. GRPO (https://arxiv.org/abs/2503.20783), GSPO
(https://arxiv.org/abs/2507.18071), CISPO (https://arxiv.org/abs/2506.13585), SAPO (https://arxiv.org/abs/2511.20347),
LUSPO (https://arxiv.org/abs/2602.05261) and VESPO (https://arxiv.org/abs/2602.10693).

Left out: images, tools and environments, which TRL's trainer supports and `rlhf run` does not pass on.
"""

from __future__ import annotations

import copy
import logging
import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from rlhf_core import Method, RunConfig, UserError, hookimpl, router_loss_coefficient
from rlhf_core.vllm import RolloutOptions, vllm_arguments
from rlhf_method_grpo.generation import check_generation
from rlhf_method_grpo.settings import SETTINGS, check, check_prompts

# Full: TRL. LoRA: ten times that, as TRL's docs take for 3B (LoRA Without Regret). Others: Unsloth 5e-6, TRL 5e-5.
FULL_RATE, LORA_RATE = 1e-6, 1e-5
LORA_BETA = 0.001  # in full fine-tuning a KL penalty costs a second copy of the model
REFERENCE = 4  # bytes of each of its weights in full fine-tuning
EPSILON = 0.2
CISPO_EPSILON_HIGH = 5.0  # ScaleRL, https://arxiv.org/abs/2510.13786; TRL would take epsilon, which is too small

log = logging.getLogger("rlhf")


def _scale(value: Any) -> Any:
    """TRL's booleans by name: true is group, false is none."""
    return {True: "group", False: "none"}[value] if isinstance(value, bool) else value


@hookimpl
def rlhf_methods():
    return [GRPO]


class Options(RolloutOptions):
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description="peak learning rate; unset: 1e-5 with LoRA, 1e-6 in full fine-tuning"
    )
    beta: Annotated[float, Field(ge=0)] | None = Field(
        None, description=f"weight of the KL penalty; unset: {LORA_BETA} with LoRA, 0 in full fine-tuning"
    )
    num_generations: Annotated[int, Field(ge=2)] = Field(4, description="completions per prompt")
    num_iterations: Annotated[int, Field(gt=0)] = Field(1, description="times that each batch of answers is trained on")
    steps_per_generation: Annotated[int, Field(gt=0)] | None = Field(
        None, description="forward passes that each batch of answers is split into; unset: gradient_accumulation_steps"
    )
    loss_type: Literal["grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"] = Field(
        "dapo", description="how token losses are averaged (grpo, dapo, dr_grpo, bnpo), or another loss (the others)"
    )
    importance_sampling_level: Literal["token", "sequence"] | None = Field(
        None,
        description="whether probability ratios are of tokens or of answers; sequence with --loss-type grpo is GSPO; "
        "unset: token (luspo: sequence)",
    )
    epsilon: Annotated[float, Field(gt=0)] = Field(EPSILON, description="clip range of the probability ratio")
    epsilon_high: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description=f"upper clip range (DAPO: 0.28); unset: epsilon. With cispo: the largest ratio; unset: "
        f"{CISPO_EPSILON_HIGH:g}",
    )
    delta: Annotated[float, Field(gt=0)] | None = Field(
        None, description="largest probability ratio, also where the advantage is negative; unset: none"
    )
    top_entropy_quantile: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0, description="share of tokens in the loss, those with the highest entropy (the paper: 0.2); 1: all"
    )
    scale_rewards: Annotated[Literal["group", "batch", "none"], BeforeValidator(_scale)] = Field(
        "group",
        description="advantages are divided by the standard deviation of the group, of the batch, or not at all",
    )
    multi_objective_aggregation: Literal["normalize_then_sum", "sum_then_normalize"] | None = Field(
        None,
        description="how several rewards become one: each is divided by its standard deviation in the group, then they "
        "are summed (GDPO); or they are summed first, then scaled by scale_rewards; unset: the former if that is group",
    )
    mask_truncated_completions: bool = Field(False, description="leave answers cut at the length limit out of the loss")

    @property
    def rollout_size(self) -> int:
        return self.per_device_train_batch_size * (self.steps_per_generation or self.gradient_accumulation_steps)

    @property
    def bytes_held(self) -> int:
        return super().bytes_held + (REFERENCE if self.beta and not self.lora else 0)

    @model_validator(mode="after")
    def _options_act(self) -> Options:
        if self.delta is not None and self.loss_type in ("cispo", "sapo", "vespo"):
            raise ValueError(f"loss_type {self.loss_type} does not clip by delta: leave it out")
        if self.epsilon_high is not None and self.loss_type in ("sapo", "vespo"):
            raise ValueError(f"loss_type {self.loss_type} does not clip by epsilon_high: leave it out")
        if self.epsilon != EPSILON and self.loss_type in ("cispo", "sapo", "vespo"):
            raise ValueError(f"loss_type {self.loss_type} does not clip by epsilon: leave it out")
        if self.importance_sampling_level == "sequence" and self.loss_type == "vespo":
            raise ValueError("loss_type vespo weighs answers itself: leave out importance_sampling_level sequence")
        return self


class GRPO(Method):
    name, data, rewards, config = "grpo", "prompts", "required", "trl:GRPOConfig"
    Options, settings, full_rate = Options, SETTINGS, FULL_RATE
    builtin_preset = {  # noqa: RUF012 - a class constant
        # An adapter forgets less of the medicine than the full model while it learns the format.
        "lora": True,
        "lora_target_modules": ["o_proj", "down_proj"],
        "learning_rate": 6e-3,
        "beta": 0.15,
        "max_steps": 36,
        "per_device_train_batch_size": 32,
        "num_generations": 8,
        # Scaled by their standard deviation, groups without any correct format would weigh as much as others.
        "scale_rewards": "none",
    }

    def check(self, config: RunConfig) -> None:
        check(config)

    def check_rows(self, config: RunConfig, rows: int) -> None:
        check_prompts(config, rows)

    def resolve_options(self, options: Options, *, lora: bool) -> Options:
        """The options with unset ones filled in. Calling it again changes nothing."""
        defaults = {
            "learning_rate": LORA_RATE if lora else FULL_RATE,
            "beta": LORA_BETA if lora else 0.0,
            "importance_sampling_level": "sequence" if options.loss_type == "luspo" else "token",
            "epsilon_high": CISPO_EPSILON_HIGH if options.loss_type == "cispo" else None,
        }
        unset = {name: value for name, value in defaults.items() if getattr(options, name) is None}
        if options.multi_objective_aggregation == "normalize_then_sum":
            unset["scale_rewards"] = "group"  # which it is, whatever the preset says
        return options.model_copy(update=unset)

    def scored_answers(self, options, prompts, processes):
        each, reuse = options.num_generations, options.num_iterations
        return super().scored_answers(options, prompts, processes, group=each, reuse=reuse)

    def steps_per_rollout(self, trainer) -> int:
        args = trainer.args
        forwards = args.steps_per_generation * args.num_iterations
        return forwards // math.gcd(forwards, args.gradient_accumulation_steps)

    def trainer(self, run):
        from rlhf_core import ReferenceModel
        from rlhf_core.prefix import share
        from rlhf_method_grpo.trainer import SharedPrefixGRPOTrainer, SyncedReference

        options = run.options
        arguments = self._arguments(run)
        if arguments.beta:
            ReferenceModel.check(run)
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
        trainer.template = run.template
        trainer.rewards = run.rewards
        trainer.rewards.samples.wait_for_advantages = True
        if arguments.beta and run.info.adapter:
            _copy_to_reference(trainer, run.model)
        if trainer.ref_model is not None and options.shares_prompts:
            share(trainer.accelerator.unwrap_model(trainer.ref_model))
        if arguments.sync_ref_model:
            synced = SyncedReference(trainer.accelerator.unwrap_model(trainer.ref_model))
            trainer.add_callback(synced)
            if run.resume_from is not None:
                synced.load(run.resume_from)
        return trainer

    def _arguments(self, run):
        """TRL's arguments, checked before the weights load."""
        from trl import GRPOConfig

        options, of_vllm = run.options, vllm_arguments(run)
        lora = run.peft_config is not None or (run.info.adapter is not None and options.lora is not False)
        aggregation = options.multi_objective_aggregation or "sum_then_normalize"
        if len(run.rewards.weights) > 1:
            aggregation = _aggregation(options)
        passed_on = (
            *("learning_rate", "beta", "num_generations", "max_completion_length", "num_iterations"),
            *("steps_per_generation", "loss_type", "importance_sampling_level", "epsilon", "epsilon_high", "delta"),
            *("top_entropy_quantile", "scale_rewards", "mask_truncated_completions"),
            *("temperature", "top_p", "top_k", "repetition_penalty"),
        )
        values = {name: getattr(options, name) for name in passed_on}
        arguments = run.arguments(
            GRPOConfig,
            **values,
            min_p=options.min_p or None,
            reward_weights=run.rewards.weights,
            **of_vllm,
            multi_objective_aggregation=aggregation,
        )
        check_generation(arguments, run.info.config)
        if arguments.sync_ref_model and (lora or not arguments.beta):
            raise UserError("--set sync_ref_model needs a separate reference model: --no-lora, and a --beta above 0")
        if arguments.sync_ref_model and run.config.distributed in ("fsdp", "zero3"):
            raise UserError(
                "--set sync_ref_model: its reference can't be saved in checkpoints with --distributed fsdp or zero3"
            )
        if arguments.beta and not lora:
            _check_architecture(run.info)
        if "use_bias_correction_kl" in run.config.set and not arguments.beta:
            raise UserError("--set use_bias_correction_kl has no effect without a --beta above 0")
        if arguments.steps_per_generation * arguments.num_iterations == arguments.gradient_accumulation_steps:
            _say_unused_clipping(options)
        arguments.router_aux_loss_coef = router_loss_coefficient(run.info.config, arguments.router_aux_loss_coef)
        return arguments


def _check_architecture(info: Any) -> None:
    """Raise `UserError` if TRL, which loads the reference by the class that config.json names, would find none, or one
    of other models.
    """
    import transformers

    names = info.config.architectures or []
    # Probed: it is what a file says.
    named = getattr(transformers, str(names[0]), None) if names else None
    if getattr(named, "config_class", None) is not type(info.config) and not info.reference.trust_remote_code:
        raise UserError(
            f"{info.called}: architectures in its config.json is {names}, by which the reference of the KL penalty is "
            f'loaded: it has to be ["{type(info.empty).__name__}"]. Without a reference: --beta 0'
        )


def _copy_to_reference(trainer: Any, model: Any) -> None:
    """Make the reference what the run starts from, with the adapter that it starts from.

    TRL copies an adapter's modules and not its other weights, such as those of LoRA on embeddings, of LoKr or C3A; and
    without LoRA it loads the reference by the model's name, without the adapter that went into the weights.
    """
    from rlhf_core import ReferenceModel

    if trainer.ref_model is None:
        ReferenceModel.copy_adapter(model)
        return
    reference = trainer.accelerator.unwrap_model(trainer.ref_model)
    # A weight of its own, as an adapter on tied embeddings gives the model one.
    reference.set_output_embeddings(copy.deepcopy(reference.get_output_embeddings()))
    reference.load_state_dict(model.state_dict())


def _say_unused_clipping(options: Options) -> None:
    """Say what only clips ratios that differ from 1, which those of a batch that is trained on in one step do not."""
    given = {"epsilon": options.epsilon != EPSILON, "delta": (options.delta or 0) >= 1}
    given["epsilon_high"] = options.epsilon_high is not None and options.loss_type != "cispo"
    if flags := ", ".join(f"--{name.replace('_', '-')}" for name, is_given in given.items() if is_given):
        log.warning(
            "%s: each batch of answers is trained on in one step, in which probability ratios are 1, so nothing is "
            "clipped. For more steps: --num-iterations 2, or a larger --steps-per-generation",
            flags,
        )


def _aggregation(options: Options) -> str:
    """How the run's several rewards become one, which is shown.

    Unset, it is the one in which an error, which is None in one column, is neutral; with another `scale_rewards` the
    one in which that acts.
    """
    unset = "normalize_then_sum" if options.scale_rewards == "group" else "sum_then_normalize"
    aggregation = options.multi_objective_aggregation or unset
    scales = {"group": "divided by its standard deviation in the group", "none": "not scaled"}
    scales["batch"] = "divided by its standard deviation in the batch"
    first = f"each is {scales['group']}, then they are summed"
    summed = f"they are summed, and the sum is {scales[options.scale_rewards]}"
    how = first if aggregation == "normalize_then_sum" else summed
    log.warning("several rewards: %s (--multi-objective-aggregation %s)", how, aggregation)
    return aggregation
