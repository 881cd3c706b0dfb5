"""Which way completions are computed: packed, in two phases, or padded where a model is outside what sharing supports.

`share(model)` asks for sharing, once, after a model is loaded. A small group made of the first prompt that comes is
computed both ways, and if the results differ the model goes on padded. What is not supported is said once, with the
reason, and computed padded with the same results.
"""

from __future__ import annotations

import itertools
import logging
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import psutil
import torch
from peft import PeftModel
from torch.distributed.tensor import DTensor
from torch.nn.functional import pad
from torch.nn.parallel import DistributedDataParallel

from rlhf_core.prefix import attention, padded, shared
from rlhf_core.prefix.checkpointing import layers_of
from rlhf_core.prefix.groups import CompletionHidden, CompletionLogps, Group
from rlhf_core.prefix.packing import size
from rlhf_core.prefix.sampled import SampledStates

log = logging.getLogger("rlhf")
PLAIN_LAYERS = {"full_attention", "sliding_attention"}
# Settings of a model's configuration under which its logits are not its head's output.
CHANGES_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier")
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}  # nats, in the mean
CHECKED_TOKENS = 64
TOKENS_AT_ONCE, TOKENS_AT_ONCE_ON_CPU = 8192, 2048  # of a packed row; a CPU's caches hold no more
_agreed: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def share(model: Any) -> str | None:
    """Let `model` compute each prompt once. Returns why it can't, or None; then everything goes on padded."""
    reason = unsupported(model)
    if reason is None:
        attention.install(shared.unwrap(model))
    else:
        log.warning("each completion is computed with a prompt of its own: %s", reason)
    return reason


def completion_logps(
    model: Any,
    groups: Sequence[Group],
    *,
    temperature: float = 1.0,
    hidden: bool = False,
    sampled: SampledStates | None = None,
) -> CompletionLogps:
    """Log-probability and entropy of every completion token. With `hidden`, the states of the same pass as well.

    `sampled`: what `rollout` computed of these groups, with the weights that `model` still has.
    """
    if not shares(model, groups):
        return padded.completion_logps(model, groups, temperature=temperature, hidden=hidden)
    if torch.is_grad_enabled() and not fits(model, groups):
        return shared.two_phase_logps(model, groups, temperature, hidden)
    sampled = None if hidden else sampled  # which has no state at a completion's last token
    return shared.completion_logps(model, groups, temperature, hidden, tokens_at_once(model), sampled)


def completion_hidden(model: Any, groups: Sequence[Group]) -> CompletionHidden:
    """The last hidden states at the prompt's last token and at every completion token."""
    if not shares(model, groups):
        return padded.completion_hidden(model, groups)
    return shared.completion_hidden(model, groups, tokens_at_once(model))


def shares(model: Any, groups: Sequence[Group]) -> bool:
    """Whether these groups are computed with shared prompts."""
    plain = shared.unwrap(model)
    if not attention.installed(plain) or _sharded(plain):
        return False
    longest = max(len(group.prompt) + max(map(len, group.completions)) for group in groups)
    window = _window(plain)
    if window is not None and longest > window:
        return False
    if plain not in _agreed:
        _agreed[plain] = _agrees(model, groups[0].prompt, min(CHECKED_TOKENS, window or CHECKED_TOKENS))
    return _agreed[plain]


def unsupported(model: Any) -> str | None:
    """Why prompts can't be shared in this model, or None."""
    plain = shared.unwrap(model)
    config = plain.config.get_text_config()
    settings = config.to_dict()
    if isinstance(model, PeftModel) and any(one.is_prompt_learning for one in model.peft_config.values()):
        return "prompt tuning puts tokens of its own before every row"
    if plain.config.is_encoder_decoder:
        return "the model is an encoder with a decoder"
    if config is not plain.config:
        return "the model takes more than text"
    if other := sorted(set(settings.get("layer_types") or []) - PLAIN_LAYERS):
        return f"the model has layers that are not attention over all tokens ({', '.join(other)})"
    if changes := [name for name in CHANGES_LOGITS if settings.get(name) not in (None, 1.0)]:
        return f"the model changes its logits after its head ({', '.join(changes)})"
    if settings.get("attn_logit_softcapping"):
        return "the model caps the scores of its attention (attn_logit_softcapping)"
    if settings.get("output_router_logits"):
        return "the model's loss has a part for its router"
    if settings.get("attention_dropout"):
        return "the model drops attention at random"
    return None


def tokens_at_once(model: Any) -> int:
    """How many tokens a packed row may have. With gradient a GPU gets all in one row, and so does a model that gathers
    its gradients after a single forward pass.
    """
    on_cpu = shared.unwrap(model).device.type == "cpu"
    if torch.is_grad_enabled() and (not on_cpu or isinstance(model, DistributedDataParallel)):
        return sys.maxsize
    return TOKENS_AT_ONCE_ON_CPU if on_cpu else TOKENS_AT_ONCE


def fits(model: Any, groups: Sequence[Group]) -> bool:
    """Whether what a packed pass keeps for its backward pass fits into the memory that is free, by estimate."""
    plain, sizes = shared.unwrap(model), [size(group) for group in groups]
    in_a_row = min(sum(sizes), max(tokens_at_once(model), *sizes))
    return activation_bytes(plain, sum(sizes), in_a_row) < 0.8 * _free_bytes(plain.device)


def activation_bytes(model: Any, tokens: int, in_a_row: int) -> int:
    """What a pass over `tokens` keeps for its backward pass, by estimate: with gradient checkpointing the states
    between layers and the inner tensors of one layer for one row, without it all inner tensors of all layers.
    """
    config = model.config.get_text_config()
    width, heads = config.hidden_size, config.num_attention_heads + 2 * config.num_key_value_heads
    size = config.to_dict().get("head_dim") or width // config.num_attention_heads
    between = width * model.dtype.itemsize
    within = (8 * width + 3 * config.intermediate_size + 3 * heads * size) * model.dtype.itemsize
    layers = config.num_hidden_layers
    checkpointing = any(layer.gradient_checkpointing for layer in layers_of(model))
    return tokens * between * layers + in_a_row * 2 * within if checkpointing else tokens * within * layers


def _free_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return psutil.virtual_memory().available
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserved


def _window(model: Any) -> int | None:
    """How far the layers see that do not see all tokens before them, where there are such."""
    settings = model.config.get_text_config().to_dict()
    layers = settings.get("layer_types") or ["sliding_attention"]
    applies = settings.get("use_sliding_window", True) and "sliding_attention" in layers
    return settings.get("sliding_window") if applies else None


def _sharded(model: Any) -> bool:
    first = next(model.parameters())
    return isinstance(first, DTensor) or hasattr(first, "ds_id")  # DeepSpeed's mark on a parameter it holds in parts


@torch.no_grad()
def _agrees(model: Any, prompt: Sequence[int], tokens: int) -> bool:
    """Whether a group of two unequal completions, `tokens` of the prompt's in all, gives the same both ways."""
    model = model.module if isinstance(model, DistributedDataParallel) else model
    ids = list(itertools.islice(itertools.cycle(prompt), tokens))
    few = [Group(ids[: tokens // 2], [ids[tokens // 2 :], ids[-2:]])]
    training = model.training
    model.eval()
    try:
        if model.get_output_embeddings() is None:
            results = [shared.completion_hidden(model, few, tokens), padded.completion_hidden(model, few)]
            there = pad(results[0].mask, (1, 0), value=1)[..., None]  # what stands after a completion's end is open
            ours, theirs = (result.states * there for result in results)
        else:
            ours = shared.completion_logps(model, few, 1.0, False, tokens).logps
            theirs = padded.completion_logps(model, few).logps
        apart = (ours - theirs).float().abs().mean().item()
        problem = None if apart < TOLERANCE.get(model.dtype, 0.2) else f"results differ by {apart:.2g} in the mean"
    except (RuntimeError, TypeError, KeyError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
    finally:
        model.train(training)
    if problem:
        log.warning("prompts are not shared in this model, each completion is computed with its own: %s", problem)
    return problem is None
