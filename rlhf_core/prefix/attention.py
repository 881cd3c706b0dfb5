"""One attention implementation, registered with transformers as `shared_prefix`, and exact.

It stays set on the model for good: changing it around a call would change what gradient checkpointing computes a second
time. What a call does follows from the keyword `shared_prefix` that it passes through the model: without one it is
`sdpa`, which the model came with. With attention metadata each prompt attends to itself, and each completion to its
prompt and to itself (`layout.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from rlhf_core.prefix.kernels import Span
from rlhf_core.prefix.layout import Layout
from rlhf_core.prefix.recurrent import PackedRows, Run, States, carry_on, joined

NAME = "shared_prefix"
PLAIN = "sdpa"  # which it stands beside
# A mask of four dimensions is passed on as it is, so that the model builds none; nothing reads this one.
NO_MASK = torch.zeros(1, 1, 1, 1)
Cache = dict[int, tuple[Tensor, Tensor]]  # for each layer (keys, values), (rows, heads, tokens, size) each


# Which attention is given, and which do not change it.
PLAIN_TENSORS = {"position_ids", "cache_position", "logits_to_keep"}


class NotShared(RuntimeError):
    """A model's attention is not the one that prompts can be shared with."""


class GroupSpans(NamedTuple):
    """Where a prompt and its completions stand in the row."""

    prompt: Span
    completions: tuple[Span, ...]


class AttentionMetadata(Protocol):
    """What a call does instead of causal attention, on tensors (rows, heads, tokens, size), and instead of carrying a
    state through whole rows, on states (rows, tokens, size). `layer`: its number. With `window` the layer sees so many
    tokens, each itself among them.
    """

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None
    ) -> Tensor: ...

    def carry(self, layer: int, run: Run, states: Tensor) -> Tensor: ...


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    shared_prefix: AttentionMetadata | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """transformers' interface: heads before tokens in, tokens before heads out. Raises `NotShared`."""
    if shared_prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)
    if attention_mask is None or attention_mask.shape[:3] != NO_MASK.shape[:3]:
        raise NotShared("the model attends under a mask of its own")
    if query.shape[2] != key.shape[2]:
        raise NotShared("some layers are given only a part of the tokens")
    tensors = {name for name, value in rest.items() if isinstance(value, Tensor)} - PLAIN_TENSORS
    if tensors or softcap:  # sinks, biases, selected tokens, a cap
        names = ", ".join(sorted(tensors)) or "softcap"
        raise NotShared(f"the model's attention takes more than queries, keys and values ({names})")
    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # which knows sdpa, but not the kernels within it
        query, key, value = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (query, key, value))
    scaling, size = query.shape[-1] ** -0.5 if scaling is None else scaling, value.shape[-1]
    if query.shape[-1] > size:  # in latent attention (DeepSeek's); the kernels know one size, and zeros change nothing
        value = pad(value, (0, query.shape[-1] - size))
    output = shared_prefix.attend(module.layer_idx, query, key, value, scaling, sliding_window)[..., :size]
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS[PLAIN])


class PackedAttention:
    """Groups in one row, as `pack` puts them there. With `use_cache`, each layer's keys and values are kept, for
    `take_cache`.
    """

    def __init__(self, groups: Sequence[GroupSpans], *, use_cache: bool = False) -> None:
        self.layout = layout_of(groups)
        self.rows = PackedRows(groups, keep=use_cache)
        self.use_cache = use_cache
        self.cache: Cache = {}
        self.states: States = {}

    def send(self, device: torch.device, window: int | None, *, carries: bool) -> None:
        """Have what layers need on the device before the first one runs, instead of when it asks for it. `window`: of
        layers that have one; `carries`: whether there are recurrent ones.
        """
        self.layout.send(device, window)
        if carries:
            self.rows.send(device)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        if self.use_cache and layer not in self.cache:  # checkpointing comes a second time, with tensors of its own
            self.cache[layer] = (key, value)
        return self.layout.attend(query, key, value, scale, window)

    def carry(self, layer: int, run: Run, states: Tensor) -> Tensor:
        output, after = self.rows.carry(run, states)
        if self.use_cache and layer not in self.states:
            self.states[layer] = joined(after)
        return output

    def take_cache(self) -> tuple[Cache, States]:
        """The keys and values, and the recurrent layers' states, of which no more are kept: gradient checkpointing
        keeps this object in their graph, and together they would never be freed.
        """
        taken = self.cache, self.states
        self.cache, self.states, self.use_cache = {}, {}, False
        return taken


def layout_of(groups: Sequence[GroupSpans]) -> Layout:
    """Raises `ValueError` for spans that do not stand as `Layout` says."""
    bare = [group.prompt for group in groups if not group.completions]
    prompts = [group.prompt for group in groups if group.completions]
    spans = [*bare, *prompts, *(span for group in groups for span in group.completions)]
    if [start for start, _ in spans] != [0, *(end for _, end in spans[:-1])]:
        raise ValueError("prompts stand before completions, each behind the one before it")
    return Layout([(group.prompt[1] - group.prompt[0], [b - a for a, b in group.completions]) for group in groups])


class ContinuedAttention:
    """A completion of `tokens` tokens alone in the row, behind a prompt of `start` tokens, which left `cache` and
    `states`.
    """

    def __init__(self, cache: Cache, states: States, start: int, tokens: int) -> None:
        self.cache, self.states, self.start = cache, states, start
        self.layout = Layout([(start, [tokens])], in_row=False)

    def send(self, device: torch.device, window: int | None, *, carries: bool) -> None:
        self.layout.send(device, window)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        return self.layout.attend(query, key, value, scale, window, self.cache[layer])

    def carry(self, layer: int, run: Run, states: Tensor) -> Tensor:
        return carry_on(run, states, self.states[layer])


def implementation(model: Any) -> str:
    """The name of the attention implementation that is set on a transformers model."""
    return model.config.get_text_config()._attn_implementation


def set_implementation(model: Any, name: str) -> None:
    """Of what reads images in a model, the attention stays as it is."""
    config, text = model.config, model.config.get_text_config()
    parts = [part for part in config.sub_configs if getattr(config, part) is text]
    model.set_attn_implementation({parts[0]: name} if parts else name)


def installed(model: Any) -> bool:
    return implementation(model) == NAME


@contextmanager
def set_aside(model: Any) -> Iterator[None]:
    """For calls without gradient that are to be transformers' own."""
    before = implementation(model)
    set_implementation(model, PLAIN if before == NAME else before)
    try:
        yield
    finally:
        set_implementation(model, before)
