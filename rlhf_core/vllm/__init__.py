"""vLLM as the engine that samples, by TRL: what every method needs that offers it.

    class Options(RolloutOptions): …                             # --rollouts, --vllm-server
    settings = {**ROLLOUTS, **VLLM}                               # of rlhf_core.settings: what --set does
    check_vllm(config)                                            # in Method.check
    run.arguments(VLLMArguments, **vllm_arguments(run))           # in Method.trainer, before run.model
    vllm = VLLM(model, accelerator, tokenizer, args, sampling, rows)
    rollouts = vllm.rollout(prompts)                              # with the weights that the model has now
    weights = importance_weights(logps, sampled, mask, args)      # of the loss
    metrics = mismatch(logps, sampled, mask, weights, accelerator)

A trainer of TRL's that samples with vLLM itself needs the first four, and `guard`. On the run's own GPUs vLLM sleeps
while the model trains. A server has GPUs of its own, and gets the weights over NCCL before each batch of answers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

# ruff: noqa: F401 (these are the names of `_HOME`, for type checkers)
if TYPE_CHECKING:
    from rlhf_core.vllm.arguments import VLLMArguments
    from rlhf_core.vllm.checks import check_vllm, vllm_arguments
    from rlhf_core.vllm.correction import importance_weights, mismatch
    from rlhf_core.vllm.engine import VLLM, Frozen, guard
    from rlhf_core.vllm.options import RolloutOptions
    from rlhf_core.vllm.server import check_server

# Imported when first used: options and checks need no torch.
_HOME = {
    "VLLMArguments": "arguments",
    **dict.fromkeys(("check_vllm", "vllm_arguments"), "checks"),
    **dict.fromkeys(("importance_weights", "mismatch"), "correction"),
    **dict.fromkeys(("VLLM", "Frozen", "guard"), "engine"),
    "RolloutOptions": "options",
    "check_server": "server",
}

if not TYPE_CHECKING:  # they can't evaluate it
    __all__ = [*_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'rlhf_core.vllm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rlhf_core.vllm.{_HOME[name]}"), name)
