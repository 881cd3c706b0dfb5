"""What is checked of vLLM before the weights load, and what the training arguments say of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from rlhf_core.errors import UserError
from rlhf_core.unused import SPLIT

if TYPE_CHECKING:
    from rlhf_core.config import RunConfig

log = logging.getLogger("rlhf")
CORRECTION = "vllm_importance_sampling"


def check_vllm(config: RunConfig) -> None:
    """Raise `UserError` where vLLM can't sample for this run, or is not there in a version that TRL works with."""
    options: Any = config.options  # RolloutOptions
    if options.rollouts != "vllm":
        return
    if options.quantized:
        raise _changed_by_merging("4-bit and 8-bit weights")
    _check_shards(config, lora=bool(options.lora))
    from rlhf_core.doctor import packages

    found = packages.vllm()
    if found.status == "missing":
        raise UserError("--rollouts vllm needs vLLM: pip install 'rlhf-core[vllm]'")
    if found.status != "ok":
        raise UserError(f"--rollouts vllm: vLLM {found.text}. {found.advice}")


def _check_shards(config: RunConfig, *, lora: bool) -> None:
    """Raise `UserError` for an adapter on sharded weights, which can't be merged for vLLM."""
    if lora and config.distributed in SPLIT:
        raise UserError(
            f"--rollouts vllm with LoRA needs whole weights in every process, and --distributed {config.distributed} "
            "shards them: use ddp, or zero2"
        )


def _changed_by_merging(quantized: str) -> UserError:
    """vLLM is sent weights with the adapter merged in, which rounds quantized ones again before each batch."""
    return UserError(
        f"--rollouts vllm can't sample from {quantized}: the adapter would be merged into them and taken out again "
        "for every batch of answers, which changes them each time. Use --rollouts shared, or weights in bfloat16"
    )


def vllm_arguments(run: Any) -> dict[str, Any]:
    """What TRL's arguments say of vLLM, before the user's `--set`, for a run whose options are `RolloutOptions`.

    Raises `UserError`, before weights load, for weights that vLLM can't be sent, and for a server that won't do.
    """
    from rlhf_core.estimate.hardware import device_of
    from rlhf_core.estimate.vllm import share
    from rlhf_core.models.adapters import uses_lora
    from rlhf_core.models.context import context_length
    from rlhf_core.vllm.server import check_server

    options, info = run.options, run.info
    if options.rollouts != "vllm":
        return {"use_vllm": False}
    if info.quantized:
        raise _changed_by_merging(f"weights quantized by {info.quantized}")
    _check_shards(run.config, lora=uses_lora(options, info))
    mode = _by_token(options, run.config.set)
    tokens = options.max_prompt_length + options.max_completion_length
    card = device_of(None, None)
    if options.vllm_server is not None:
        if not card.is_gpu:
            raise UserError("--vllm-server: weights go to it over NCCL, which needs a GPU here, and there is none")
        check_server(options.vllm_server, [info.reference.base, info.path, info.reference.path], tokens, run.config.set)
        return {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": options.vllm_server, **mode}
    utilization = {"vllm_gpu_memory_utilization": share(run.config, info, card.memory)} if card.is_gpu else {}
    return {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_enable_sleep_mode": True,
        "vllm_max_model_length": min(tokens, context_length(info.config) or tokens),
        **utilization,
        **mode,
    }


def _by_token(options: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Where tokens are left out of what is sampled from: vLLM tells the probabilities among those that are left, which
    are higher than the model's. The ratio of a whole answer would vanish with its length; that of a token does not.
    """
    sampling = {"top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1}
    given = [f"--{name.replace('_', '-')}" for name, off in sampling.items() if getattr(options, name) != off]
    mode, corrects = f"{CORRECTION}_mode", settings.get(f"{CORRECTION}_correction", True)
    if not given or mode in settings or not corrects:
        return {}
    log.warning(
        "%s: vLLM's probabilities are those of the tokens that are left, by which a long answer as a whole would count "
        "for nothing: each token is weighed by itself (--set %s=token_truncate)", ", ".join(given), mode,
    )  # fmt: skip
    return {mode: "token_truncate"}
