"""Which fields of TRL's `GRPOConfig` `--set` may set. Those that would have no effect here, or a misleading one, are
refused with what to write instead; all others act as in TRL (tests/test_config_fields.py names every one).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from rlhf_core import RunConfig, UserError

LOADED = "the model is loaded before TRL sees it: see --dtype, --attn-implementation and --load-in-4bit"
SAMPLES = "samples.jsonl in the run's folder has all answers with their scores"
CONTINUOUS = "write --rollouts continuous"

REFUSED = {
    "model_init_kwargs": LOADED,
    "trust_remote_code": "code from a model's repository is never run",
    "num_generations_eval": "the held-out prompts are answered once each: see --num-eval-prompts",
    "remove_unused_columns": "the rewards need the data's other columns",
    "reward_weights": "write --reward NAME:weight=2",
    "use_vllm": "write --rollouts vllm",
    "use_transformers_continuous_batching": CONTINUOUS,
    "use_transformers_paged": CONTINUOUS,
    "transformers_continuous_batching_config": "--rollouts continuous makes its cache as large as the batch needs",
    "max_tool_calling_iterations": "rlhf run has no tools for the model",
    "log_completions": SAMPLES,
    "log_multimodal": SAMPLES,
    "log_unique_prompts": SAMPLES,
    "num_completions_to_print": SAMPLES,
    "log_completions_hub_repo": SAMPLES,
}

VLLM_SERVER = ("base_url", "host", "port", "timeout")
VLLM_COLOCATED = ("enable_sleep_mode", "gpu_memory_utilization", "max_model_length", "tensor_parallel_size")


def check(config: RunConfig) -> None:
    """Raise `UserError` for settings and options that have no effect, or contradict each other."""
    options = config.options
    for name in config.set:
        if name in REFUSED:
            raise UserError(f"--set {name}: {REFUSED[name]}")
        for needed, holds in _needs(name):
            if not holds(config):
                raise UserError(f"--set {name} has no effect without {needed}")
    if options.rollouts == "vllm" and importlib.util.find_spec("vllm") is None:
        raise UserError("--rollouts vllm needs vLLM: pip install 'rlhf-core[vllm]'")
    per_device, processes = options.per_device_train_batch_size, config.num_processes * config.num_machines
    steps = options.steps_per_generation or options.gradient_accumulation_steps
    batch = per_device * steps * processes
    if "generation_batch_size" not in config.set and batch % options.num_generations:
        source = "steps_per_generation" if options.steps_per_generation else "gradient_accumulation_steps"
        times = f" × {processes} processes" if processes > 1 else ""
        raise UserError(
            f"a batch of answers has per_device_train_batch_size × {source}{times} = {batch} answers, which can't be "
            f"split into groups of num_generations = {options.num_generations}: make it a multiple"
        )


def _needs(name: str) -> list[tuple[str, Callable[[Any], bool]]]:
    """What a field needs in order to have an effect: (how the user writes it, whether a configuration has it)."""
    needs: list[tuple[str, Callable[[Any], bool]]] = []
    if name.startswith("vllm_"):
        needs.append(("--rollouts vllm", lambda config: config.options.rollouts == "vllm"))
    mode = "server" if name in [f"vllm_server_{end}" for end in VLLM_SERVER] or name == "vllm_group_port" else None
    mode = "colocate" if name in [f"vllm_{end}" for end in VLLM_COLOCATED] else mode
    if mode:
        needs.append((f"vllm_mode={mode}", lambda config: config.set.get("vllm_mode", "colocate") == mode))
    if name == "ds3_gather_for_generation":
        needs.append(("--distributed zero3", lambda config: config.distributed == "zero3"))
    if name.startswith("ref_model_"):
        needs.append(("--set sync_ref_model=true", lambda config: config.set.get("sync_ref_model") is True))
    if name.startswith("entropy_coef_") or name == "entropy_target":
        needs.append(("--set use_adaptive_entropy=true", lambda config: config.set.get("use_adaptive_entropy") is True))
    if name.startswith(("sapo_", "vespo_")):
        loss = name.partition("_")[0]
        needs.append((f"--loss-type {loss}", lambda config: config.options.loss_type == loss))
    return needs
