"""Which way completions are computed: packed, in two phases, padded where a model is outside what sharing supports, or
each row alone where even padding changes what it computes.

`share(model)` asks for sharing, once, after a model is loaded. What is not supported is said once, with the reason, and
computed padded with the same results; so is a model that `self_check.py` finds to compute something else.
"""

from __future__ import annotations

import functools
import logging
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch
from peft import PeftModel
from torch import nn

from rlhf_core.prefix import attention, packed, padded, recurrent, two_phase
from rlhf_core.prefix.groups import CompletionHidden, CompletionLogps, Group
from rlhf_core.prefix.packed import is_sharded, size, sliding_window, unwrap
from rlhf_core.prefix.self_check import (
    BY_TOKEN,
    compute_dtype,
    logps_disagree,
    padding_disagrees,
    sharing_disagrees,
    windows_disagree,
)

log = logging.getLogger("rlhf")
PLAIN_LAYERS = {"full_attention", "sliding_attention"}
# In which a row is the same beside longer ones; layers that select or compress tokens go by the length of all rows.
CAUSAL_LAYERS = PLAIN_LAYERS | {
    *("attention", "chunked_attention", "window_attention", "linear_attention", "conv", "mamba"),
    *("hybrid", "hybrid_sliding", "dense", "moe"),
}
# Layers by which a token takes from its neighbours outside of attention: of state-space and other recurrent models.
MIXING_LAYERS = (nn.Conv1d, nn.RNNBase)
# Rotary frequencies that follow from a position alone; others (dynamic, longrope) change with the longest row.
ROPE_BY_POSITION = {"default", "linear", "llama3", "proportional", "yarn"}
BEYOND = "prompts are not shared in rows longer than this model's window, where each completion has its own"
NOT_BESIDE = "what stands behind a token changes it in this model, so each completion is computed alone, slowly"
# By transformers' names, to which a configuration maps its own; some have none of the last three.
SIZES = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
TOKEN_BUDGET = 8192  # of a packed row without gradient
# What a model's checks have found, for each device and precision: a problem, or None.
Found = dict[tuple[str, torch.device, torch.dtype], str | None]
_found: weakref.WeakKeyDictionary[Any, Found] = weakref.WeakKeyDictionary()


def share(model: Any) -> str | None:
    """Let `model` compute each prompt once. Returns why it can't, or None; then everything goes on padded."""
    plain = unwrap(model)
    reason = unsupported(model)
    if reason is None:
        attention.set_implementation(plain, attention.NAME)
        recurrent.share(plain)
        if not attention.installed(plain):
            reason = "its layers have attention of their own, in the place of which no other can be set"
    if reason:
        log.warning("each completion is computed with a prompt of its own: %s", reason)
    return reason


def completion_logps(
    model: Any, groups: Sequence[Group], *, temperature: float = 1.0, hidden: bool = False
) -> CompletionLogps:
    """Log-probability and entropy of every completion token. With `hidden`, the states of the same pass as well."""
    if not shares(model, groups):
        alone = not pads(model, _longest(groups))
        return padded.completion_logps(model, groups, temperature=temperature, hidden=hidden, alone=alone)
    if torch.is_grad_enabled() and not fits(model, groups) and not _reentrant(model):
        return two_phase.completion_logps(model, groups, temperature=temperature, hidden=hidden)
    return packed.completion_logps(model, groups, temperature=temperature, hidden=hidden, token_budget=token_budget())


def completion_hidden(model: Any, groups: Sequence[Group]) -> CompletionHidden:
    """The last hidden states at the prompt's last token and at every completion token."""
    if not shares(model, groups):
        return padded.completion_hidden(model, groups, alone=not pads(model, _longest(groups)))
    return packed.completion_hidden(model, groups, token_budget=token_budget())


def shares(model: Any, groups: Sequence[Group]) -> bool:
    """Whether these groups are computed with shared prompts."""
    plain = unwrap(model)
    if not attention.installed(plain):
        return False
    if is_sharded(plain):
        _say_split()
        return False
    longest, window, rope = _longest(groups), sliding_window(plain), _rope_limit(plain)
    if rope is not None and longest > rope:
        return False
    limit = min([limit for limit in (window, rope) if limit is not None], default=None)
    if checked(model, sharing_disagrees, limit, "prompts are not shared in this model, each completion has its own"):
        attention.set_implementation(plain, attention.PLAIN)
        return False
    return window is None or longest <= window or not checked(model, windows_disagree, rope, BEYOND)


def pads(model: Any, longest: int) -> bool:
    """Whether rows of up to `longest` tokens may stand beside longer ones. In a causal model they may, unless it takes
    something from the longest one's length.
    """
    plain = unwrap(model)
    if is_sharded(plain):
        return True
    layers = set(plain.config.get_text_config().to_dict().get("layer_types") or [])
    if exceeds_rope(model, longest) or layers - CAUSAL_LAYERS:
        return False
    return not checked(model, padding_disagrees, _rope_limit(plain), NOT_BESIDE)


def gives_logps(model: Any, row_logps: Callable[..., Any], consequence: str) -> bool:
    """Whether `row_logps(model, row)` gives the log-probabilities of a row's tokens but the first, as the model does.
    A difference is said, with its consequence.
    """
    return is_sharded(model) or not checked(model, logps_disagree, None, consequence, row_logps)


def checked(
    model: Any, check: Callable[..., str | None], limit: int | None, consequence: str, *more: Any
) -> str | None:
    """What `check` finds in this model, on its device and in its precision, or None. It is checked once, and a problem
    is said once, with its consequence.
    """
    plain = unwrap(model)
    found, key = _found.setdefault(plain, {}), (check.__name__, plain.device, compute_dtype(plain))
    if key not in found:
        found[key] = check(model, limit, *more)
        if found[key]:
            log.warning("%s: %s", consequence, found[key])
    return found[key]


@functools.cache  # once, whatever copies of the model there are
def _say_split() -> None:
    log.warning("each completion is computed with a prompt of its own: each process has a part of the parameters alone")


def unsupported(model: Any) -> str | None:
    """Why prompts can't be shared in this model, or None."""
    plain = unwrap(model)
    config = plain.config.get_text_config()
    settings = config.to_dict()
    if isinstance(model, PeftModel) and any(one.is_prompt_learning for one in model.peft_config.values()):
        return "prompt tuning puts tokens of its own before every row"
    if plain.config.is_encoder_decoder:
        return "the model is an encoder with a decoder"
    if other := sorted(set(recurrent.layer_kinds(config)) - PLAIN_LAYERS - BY_TOKEN - _carried(plain)):
        return f"the model has layers that are not attention over all tokens ({', '.join(other)})"
    if settings.get("attn_logit_softcapping"):
        return "the model caps the scores of its attention (attn_logit_softcapping)"
    if settings.get("output_router_logits"):
        return "the model's loss has a part for its router"
    if any(settings[name] for name in settings if "drop" in name and ("attn" in name or "attention" in name)):
        return "the model drops attention at random"
    if (name := attention.implementation(plain)) not in (attention.PLAIN, attention.NAME):
        return f"the model's attention is {name}, and prompts are shared beside {attention.PLAIN} alone"
    known = {part for layer in recurrent.layers(plain) for part in layer.modules()}
    text = plain.base_model if config is plain.config else plain.get_decoder()  # beside it is what reads images
    others = [module for module in text.modules() if isinstance(module, MIXING_LAYERS) and module not in known]
    if mixing := sorted({type(module).__name__ for module in others}):
        return f"tokens take from their neighbours outside of attention ({', '.join(mixing)})"
    return None


def _carried(model: Any) -> set[str]:
    """Kinds of layers that carry a state in a way that is known."""
    kinds = recurrent.layer_kinds(model.config.get_text_config())
    known = {layer.layer_idx for layer in recurrent.layers(model)}
    return {kind for kind in kinds if all(number in known for number, other in enumerate(kinds) if other == kind)}


def exceeds_window(model: Any, longest: int) -> bool:
    """Whether some layers of the model do not see all of rows of so many tokens."""
    window = sliding_window(unwrap(model))
    return window is not None and longest > window


def token_budget() -> int:
    """How many tokens a packed row may have. With gradient there is one row: several would keep as much, and a model
    that gathers its gradients does so after a single forward pass.
    """
    return sys.maxsize if torch.is_grad_enabled() else TOKEN_BUDGET


def fits(model: Any, groups: Sequence[Group]) -> bool:
    """Whether what a packed pass keeps for its backward pass fits into free memory, by estimate, or is less than what
    two phases would take: those of one completion, and the gradients of all weights that are trained beside those that
    the weights have.
    """
    plain = unwrap(model)
    packed_bytes = sum(map(size, groups)) * _bytes_for_backward(plain)
    if packed_bytes < 0.8 * free_bytes(plain.device):
        return True
    trained = [weight for weight in plain.parameters() if weight.requires_grad]
    gradients = sum(weight.nbytes for weight in trained)
    if any(weight.grad is not None for weight in trained):
        gradients *= 2
    return packed_bytes <= _longest(groups) * _bytes_for_backward(plain) + gradients


def _bytes_for_backward(plain: Any) -> int:
    """Of a token: with gradient checkpointing the states between layers, and one layer's activations and gradients;
    else all activations.
    """
    config = plain.config.get_text_config()
    settings, names, layers = config.to_dict(), config.attribute_map, config.num_hidden_layers
    width, queries, key_values, head_dim, inner = (settings.get(names.get(name, name)) for name in SIZES)
    inner = max(inner) if isinstance(inner, list) else inner  # of each layer in Gemma 3n
    heads = queries + 2 * (key_values or queries)
    mixing = max(3 * heads * (head_dim or width // queries), recurrent.numbers_for_backward(plain))
    within = 8 * width + 3 * (inner or 4 * width) + mixing
    # The model's property has another name in other supported versions of transformers.
    checkpointing = any(getattr(module, "gradient_checkpointing", False) for module in plain.modules())
    numbers = layers * width + 2 * within if checkpointing else layers * within
    return int(numbers * plain.dtype.itemsize)


def free_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return psutil.virtual_memory().available
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserved


def exceeds_rope(model: Any, longest: int) -> bool:
    """Whether rows of so many tokens have rotary positions that depend on the longest row."""
    limit = _rope_limit(unwrap(model))
    return limit is not None and longest > limit


def _rope_limit(model: Any) -> int | None:
    """Tokens up to which rotary positions do not depend on the longest row, where they do beyond."""
    settings = model.config.get_text_config().to_dict()
    rope = settings.get("rope_parameters") or {}
    kinds = [rope, *(one for one in rope.values() if isinstance(one, dict))]  # of each kind of layers in some models
    lengths = [
        one.get("original_max_position_embeddings")
        or settings.get("original_max_position_embeddings")
        or settings["max_position_embeddings"]
        for one in kinds
        if one.get("rope_type", "default") not in ROPE_BY_POSITION
    ]
    return min(lengths, default=None)


def _longest(groups: Sequence[Group]) -> int:
    """Tokens of the longest prompt with a completion."""
    return max(len(group.prompt) + max(map(len, group.completions), default=0) for group in groups)


def _reentrant(model: Any) -> bool:
    """Whether gradient checkpointing is reentrant, which works in a plain backward pass alone."""
    functions = (getattr(module, "_gradient_checkpointing_func", None) for module in unwrap(model).modules())
    return any(function.keywords.get("use_reentrant", True) for function in functions if function is not None)
