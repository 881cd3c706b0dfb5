"""What vLLM takes of a device that it shares with training: the estimate counts it, and the run asks vLLM for it.

Weights and cache are arithmetic. What vLLM takes beside them, `WORK`, is a guess. It measures that itself when it
starts, by a pass over as many tokens as a step may have (TRL says 4,096), and gives what is left of its share to the
cache. In two logs that people posted, activations and what is not torch's come to 1.3 to 2.9 GiB beside weights of
7.5 to 10.8 GiB (https://github.com/vllm-project/vllm/issues/11251,
https://github.com/vllm-project/vllm/issues/14452), in a third CUDA graphs to 0.4 GiB, which count as well from vLLM
0.21 on (https://github.com/gpustack/runner/pull/251). Where the guess is too low the cache gets less, and some
answers wait for others; where nothing is left vLLM does not start, and the user can give it more (`--set
vllm_gpu_memory_utilization`).
"""

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
WORK = 2_000_000_000  # bytes beside weights and cache: a guess, see above


def share(config: RunConfig, info: ModelInfo, memory: int) -> float:
    """The part of a device of so many bytes that holds vLLM's weights and the cache of all answers that are sampled
    together; of fewer ones, which then wait for each other, where the trained weights leave no room.
    """
    from rlhf_core.prefix.cache import cache_numbers

    options: Any = config.options  # RolloutOptions
    tokens = options.max_prompt_length + options.max_completion_length
    answer = HALF * cache_numbers(info.config, 1) * tokens  # as if all layers kept them
    weights = HALF * info.parameters // int(config.set.get("vllm_tensor_parallel_size", 1)) + WORK
    wanted = weights + answer * options.rollout_size
    room = max(HIGHEST * memory - info.parameters * options.bytes_held, weights + answer)
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
