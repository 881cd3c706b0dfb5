"""What vLLM takes of a device that it shares with training: the estimate counts it, and the run asks vLLM for it."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_core.config import RunConfig
    from rlhf_core.estimate.meter import Phase
    from rlhf_core.models.loading import ModelInfo

HIGHEST = 0.9  # vLLM's own
HALF = 2  # bytes of a number: vLLM samples in half precision
WORK = 2_000_000_000  # bytes beside weights and cache, such as activations of 4,096 tokens: a guess, not measured


def share(config: RunConfig, info: ModelInfo, memory: int) -> float:
    """The part of a device of so many bytes that holds vLLM's weights and the cache of all answers that are sampled
    together; of fewer ones, which then wait for each other, where the trained weights leave no room.
    """
    from rlhf_core.prefix.cache import cache_numbers

    options: Any = config.options
    steps = options.steps_per_generation or options.gradient_accumulation_steps
    tokens = options.max_prompt_length + options.max_completion_length
    answer = HALF * cache_numbers(info.config, 1) * tokens  # as if all layers kept them
    weights = HALF * info.parameters // int(config.set.get("vllm_tensor_parallel_size", 1)) + WORK
    wanted = weights + answer * options.per_device_train_batch_size * steps
    # In full fine-tuning: weights, gradients and two optimizer states in float32.
    trained = info.parameters * (HALF if options.lora else 16)
    room = max(HIGHEST * memory - trained, weights + answer)
    return min(HIGHEST, math.ceil(100 * min(wanted, room) / memory) / 100)


def without(config: RunConfig) -> tuple[RunConfig, bool]:
    """The run with the engine's own sampling instead of vLLM's, which can't run without values; whether vLLM would
    sample on the same device.
    """
    options: Any = config.options
    if "rollouts" not in type(options).model_fields or options.rollouts != "vllm":
        return config, False
    settings = {name: value for name, value in config.set.items() if not name.startswith("vllm_")}
    alone = options.model_copy(update={"rollouts": "shared", "vllm_server": None})
    return config.model_copy(update={"options": alone, "set": settings}), options.vllm_server is None


def beside(phases: dict[str, Phase], config: RunConfig, info: ModelInfo, memory: int) -> dict[str, Phase]:
    """The phases with what vLLM takes in them: only while it samples, unless it may not sleep."""
    from rlhf_core.estimate.meter import ANSWERS

    asked = config.set.get("vllm_gpu_memory_utilization")
    size = round(memory * (share(config, info, memory) if asked is None else float(asked)))
    sleeps = config.set.get("vllm_enable_sleep_mode", True)
    return {name: _beside(phase, 0 if sleeps and name != ANSWERS else size) for name, phase in phases.items()}


def _beside(phase: Phase, size: int) -> Phase:
    from rlhf_core.estimate.meter import Phase

    parts = Counter(phase.parts)
    del parts["KV cache"]
    if size:
        parts["vLLM"] = size
    return Phase(sum(parts.values()), parts, phase.operations, phase.flops, phase.seconds)
