"""What `--set` does for the fields that TRL's `GRPOConfig` adds: those that act do so as in TRL
(tests/test_config_fields.py), the others are refused with what to write instead.
"""

from __future__ import annotations

import os

from rlhf_core import RunConfig, UserError
from rlhf_core.settings import COUNT, ROLLOUTS, SHARE, SIZE, USED, VLLM, Condition, given, refused, used_as, used_with
from rlhf_core.vllm import check_vllm

LOADED = "the model is loaded before TRL sees it: see --dtype, --attn-implementation and --load-in-4bit"
SAMPLES = "samples.jsonl in the run's folder has all answers with their scores"
CONTINUOUS = "write --rollouts continuous"

ADAPTIVE = given("use_adaptive_entropy")
ZERO3 = ("--distributed zero3", lambda config: config.distributed == "zero3")


def _loss(name: str) -> Condition:
    return f"--loss-type {name}", lambda config: config.options.loss_type == name


SETTINGS = {
    **ROLLOUTS,
    **VLLM,
    "train_sampling_strategy": refused("write --set shuffle_dataset=false for the rows in their order"),
    **dict.fromkeys(("disable_dropout", "cast_lm_head_to_fp32", "use_bias_correction_kl"), USED),
    **dict.fromkeys(("shuffle_dataset", "generation_kwargs", "cache_implementation"), USED),
    **dict.fromkeys(("sync_ref_model", "use_adaptive_entropy"), USED),
    "router_aux_loss_coef": used_with(within=SIZE),
    "pad_to_multiple_of": used_as("auto", within=(1, 65_536)),
    "generation_batch_size": used_with(within=COUNT),
    "entropy_coef": used_with(within=(-1e6, 1e6)),
    "off_policy_mask_threshold": used_with(within=SIZE),
    "ref_model_mixup_alpha": used_with(given("sync_ref_model"), within=SHARE),
    "ref_model_sync_steps": used_with(given("sync_ref_model"), within=COUNT),
    **dict.fromkeys(("entropy_coef_min", "entropy_coef_max"), used_with(ADAPTIVE, within=SIZE)),
    **dict.fromkeys(("entropy_coef_delta", "entropy_target"), used_with(ADAPTIVE, within=SIZE)),
    **dict.fromkeys(("sapo_temperature_neg", "sapo_temperature_pos"), used_with(_loss("sapo"), within=(1e-3, 1e3))),
    **dict.fromkeys(("vespo_k_pos", "vespo_lambda_pos"), used_with(_loss("vespo"), within=(0.0, 100.0))),
    **dict.fromkeys(("vespo_k_neg", "vespo_lambda_neg"), used_with(_loss("vespo"), within=(0.0, 100.0))),
    "ds3_gather_for_generation": used_with(ZERO3),
    # Without effect here, or with a misleading one
    "model_init_kwargs": refused(LOADED),
    "trust_remote_code": refused("write --trust-remote-code"),
    "num_generations_eval": refused("the held-out prompts are answered once each: see --num-eval-prompts"),
    "reward_weights": refused("write --reward NAME:weight=2"),
    **dict.fromkeys(("use_transformers_continuous_batching", "use_transformers_paged"), refused(CONTINUOUS)),
    "transformers_continuous_batching_config": refused(
        "--rollouts continuous makes its cache as large as the batch needs"
    ),
    "max_tool_calling_iterations": refused("rlhf run has no tools for the model"),
    **dict.fromkeys(("log_completions", "log_multimodal", "log_unique_prompts"), refused(SAMPLES)),
    **dict.fromkeys(("num_completions_to_print", "log_completions_hub_repo"), refused(SAMPLES)),
}


def check(config: RunConfig) -> None:
    """Raise `UserError` for options that can't be used, or contradict each other."""
    options = config.options
    scaled = options.scale_rewards if "scale_rewards" not in config.preset else "group"
    if options.multi_objective_aggregation == "normalize_then_sum" and scaled != "group":
        raise UserError(
            f"--scale-rewards {scaled} has no effect with --multi-objective-aggregation normalize_then_sum, which "
            "divides each reward by its standard deviation in the group"
        )
    check_vllm(config)
    batch, product = _answers(config)
    if batch % options.num_generations:
        raise UserError(
            f"a batch of answers has {product} = {batch} answers, which can't be split into groups of num_generations "
            f"= {options.num_generations}: make it a multiple"
        )


def check_prompts(config: RunConfig, prompts: int) -> None:
    """Raise `UserError` for fewer prompts than a batch of answers needs, of which TRL would make no batch."""
    (batch, product), each = _answers(config), config.options.num_generations
    if prompts * each < batch:
        raise UserError(
            f"a batch of answers has {product} = {batch} answers, {each} (num_generations) of each prompt: it needs "
            f"{batch // each} prompts, and the data has {prompts}. Give more data, or make the batch smaller, such as "
            "--gradient-accumulation-steps 1 --per-device-train-batch-size N"
        )


def _answers(config: RunConfig) -> tuple[int, str]:
    """(answers in a batch, in all processes; what they are the product of)."""
    if "generation_batch_size" in config.set:
        return config.set["generation_batch_size"], "generation_batch_size"
    options = config.options
    # another launcher's processes are not in the configuration
    processes = max(config.num_processes * config.num_machines, int(os.environ.get("WORLD_SIZE", 1)))
    source = "steps_per_generation" if options.steps_per_generation else "gradient_accumulation_steps"
    steps = options.steps_per_generation or options.gradient_accumulation_steps
    times = f" × {processes} processes" if processes > 1 else ""
    return options.per_device_train_batch_size * steps * processes, f"per_device_train_batch_size × {source}{times}"
