"""One attention implementation, registered with transformers as `shared_prefix`, and exact.

It stays set on the model for good: changing it around a call would change what gradient checkpointing computes a second
time. What a call does follows from the keyword `shared_prefix` that it passes through the model: without one it is
`sdpa`. With a layout each prompt attends to itself, and each completion to its prompt and to itself, as two ordinary
attentions merged by their log-sum-exp (as in Ring Attention, Liu et al., 2023: https://arxiv.org/abs/2310.01889); the
backward of each is given the merged result, which makes the sum of both exact.

The only place that touches torch's attention kernels below their public surface.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from rlhf_core.prefix.packing import Shared, Span

NAME = "shared_prefix"
# A mask of four dimensions is passed on as it is, so that the model builds none; nothing reads this one.
NO_MASK = torch.zeros(1, 1, 1, 1)


class Path(Protocol):
    """What a call does instead of causal attention. `layer`: its number; tensors are (rows, heads, tokens, size)."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor: ...


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    shared_prefix: Path | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """transformers' interface: heads before tokens in, tokens before heads out."""
    if shared_prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)
    return shared_prefix.attend(module.layer_idx, query, key, value, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


class PackedPath:
    """Groups in one row. With `keep`, the keys and values of each layer are kept in `kept` for those who come after."""

    def __init__(self, layout: Sequence[Shared], *, keep: bool = False) -> None:
        self.layout, self.keep = layout, keep
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        if self.keep and layer not in self.kept:  # checkpointing comes a second time, with tensors of its own
            self.kept[layer] = (key, value)
        own = [span for shared in self.layout for span in (shared.prompt, *shared.completions)]
        pairs = [(whole(shared.completions), shared.prompt) for shared in self.layout if shared.completions]
        return _TwoParts.apply(query, key, value, None, None, own, pairs, scale)


class ContinuedPath:
    """Completions in one row, behind a prompt whose keys and values are given for each layer, (1, heads, P, size)."""

    def __init__(self, prompt: dict[int, tuple[Tensor, Tensor]], completions: Sequence[Span]) -> None:
        self.prompt, self.completions = prompt, completions

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        before_key, before_value = self.prompt[layer]
        pairs = [((0, query.shape[2]), (0, before_key.shape[2]))]
        return _TwoParts.apply(query, key, value, before_key, before_value, self.completions, pairs, scale)


def whole(spans: Sequence[Span]) -> Span:
    """From the first of neighbouring spans to the last."""
    return spans[0][0], spans[-1][1]


class _TwoParts(torch.autograd.Function):
    """Causal attention within each of the spans `own`, and unmasked attention of the first to the second of `pairs`.

    Spans of `own` cover the row. The second of a pair is a span of `before_*` where that is given, else of the row.
    """

    @staticmethod
    def forward(ctx, query, key, value, before_key, before_value, own, pairs, scale):
        kernel = kernel_for(query, key)
        output, lse = kernel.forward(query, key, value, [(span, span) for span in own], True, scale)
        if pairs:
            keys, values = (key, value) if before_key is None else (before_key, before_value)
            other, other_lse = kernel.forward(query, keys, values, pairs, False, scale)
            for (a, b), _ in pairs:
                merged = torch.logaddexp(lse[..., a:b], other_lse[..., a:b])
                weight = (lse[..., a:b] - merged).exp()[..., None].to(output.dtype)
                output[:, :, a:b] = torch.lerp(other[:, :, a:b], output[:, :, a:b], weight)
                lse[..., a:b] = merged
        ctx.save_for_backward(query, key, value, before_key, before_value, output, lse)
        ctx.own, ctx.pairs, ctx.scale = own, pairs, scale
        return output

    @staticmethod
    def backward(ctx, slope):
        query, key, value, before_key, before_value, output, lse = ctx.saved_tensors
        kernel = kernel_for(query, key)
        given = (slope, query, output, lse)
        dq, dk, dv = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        kernel.backward(given, key, value, [(span, span) for span in ctx.own], True, ctx.scale, (dq, dk, dv))
        if before_key is None:
            if ctx.pairs:
                kernel.backward(given, key, value, ctx.pairs, False, ctx.scale, (dq, dk, dv))
            return dq, dk, dv, None, None, None, None, None
        dbk, dbv = torch.zeros_like(before_key), torch.zeros_like(before_value)
        kernel.backward(given, before_key, before_value, ctx.pairs, False, ctx.scale, (dq, dbk, dbv))
        return dq, dk, dv, dbk, dbv, None, None, None


Pairs = Sequence[tuple[Span, Span]]


class Kernel(NamedTuple):
    """Attention of spans of queries to spans of keys.

    `forward(query, key, value, pairs, causal, scale)` -> (output, log-sum-exp (rows, heads, tokens) in float32).
    `backward((slope, query, output, log-sum-exp), key, value, pairs, causal, scale, (dq, dk, dv))` adds to the last.
    """

    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., None]


def _cpu_forward(query, key, value, pairs: Pairs, causal: bool, scale):
    output = torch.empty_like(query)
    lse = torch.empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32), device=query.device)
    for (a, b), (c, d) in pairs:
        output[:, :, a:b], lse[..., a:b] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query[:, :, a:b], key[:, :, c:d], value[:, :, c:d], 0.0, causal, scale=scale
        )
    return output, lse


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """(output, log-sum-exp (rows, heads, queries)) without gradient. As many heads on both sides; `mask`: (rows, 1, 1,
    keys), added to the scores.
    """
    if query.device.type == "cpu" and kernel_for(query, key).forward is _cpu_forward:
        mask = None if mask is None else mask.to(query.dtype)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=mask, scale=scale
        )
    scores = (query @ key.transpose(-1, -2)).float() * scale
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp().to(value.dtype) @ value, lse


def _cpu_backward(given, key, value, pairs: Pairs, causal: bool, scale, slopes) -> None:
    dq, dk, dv = slopes
    slope, query, output, lse = given
    for (a, b), (c, d) in pairs:
        parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *(slope[:, :, a:b], query[:, :, a:b], key[:, :, c:d], value[:, :, c:d], output[:, :, a:b], lse[..., a:b]),
            *(0.0, causal),
            scale=scale,
        )
        for whole_slope, (first, end), part in zip((dq, dk, dv), ((a, b), (c, d), (c, d)), parts, strict=True):
            whole_slope[:, :, first:end] += part


def _cuda_forward(query, key, value, pairs: Pairs, causal: bool, scale):
    output = torch.zeros_like(query)
    lse = torch.full(query.shape[:3], -torch.inf, dtype=torch.float32, device=query.device)
    queries, keys, (q_starts, q_most), (k_starts, k_most) = _cuda_pairs(pairs, query.device)
    part, part_lse, *_ = torch.ops.aten._flash_attention_forward(
        *(_tokens_first(query, queries), _tokens_first(key, keys), _tokens_first(value, keys)),
        *(q_starts, k_starts, q_most, k_most, 0.0, causal, False),
        scale=scale,
    )
    output[:, :, queries] = part.transpose(0, 1)[None]
    lse[:, :, queries] = part_lse[None]
    return output, lse


def _cuda_backward(given, key, value, pairs: Pairs, causal: bool, scale, slopes) -> None:
    slope, query, output, lse = given
    queries, keys, (q_starts, q_most), (k_starts, k_most) = _cuda_pairs(pairs, query.device)
    state = torch.zeros(2, dtype=torch.uint64, device=query.device)  # of the dropout that there is not
    parts = torch.ops.aten._flash_attention_backward(
        *(_tokens_first(slope, queries), _tokens_first(query, queries)),
        *(_tokens_first(key, keys), _tokens_first(value, keys)),
        *(_tokens_first(output, queries), lse[0][:, queries].contiguous()),
        *(q_starts, k_starts, q_most, k_most, 0.0, causal, state, torch.empty(0, device=query.device)),
        scale=scale,
    )
    for whole_slope, places, part in zip(slopes, (queries, keys, keys), parts, strict=True):
        whole_slope[:, :, places] += part.transpose(0, 1)[None]


def _cuda_pairs(pairs: Pairs, device):
    """(places of the queries, of the keys, (starts of the query spans, longest), the same of the key spans)."""
    result = []
    for side in zip(*pairs, strict=True):
        places = torch.cat([torch.arange(a, b) for a, b in side]).to(device)
        lengths = torch.tensor([0] + [b - a for a, b in side])
        result.append((places, (lengths.cumsum(0).int().to(device), int(lengths.max()))))
    (queries, q_spans), (keys, k_spans) = result
    return queries, keys, q_spans, k_spans


def _tokens_first(tensor: Tensor, places: Tensor) -> Tensor:
    """(1, heads, tokens, size) as (chosen tokens, heads, size)."""
    return tensor[0][:, places].transpose(0, 1).contiguous()


def _dense_forward(query, key, value, pairs: Pairs, causal: bool, scale):
    """Plain arithmetic, for devices without a kernel of theirs here, and what the kernels are checked against."""
    output = torch.zeros_like(query)
    lse = torch.empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32), device=query.device)
    for (a, b), (c, d) in pairs:
        scores = _scores(query[:, :, a:b], key[:, :, c:d], causal, scale)
        lse[..., a:b] = scores.logsumexp(-1)
        weights = (scores - lse[..., a:b, None]).exp()
        output[:, :, a:b] = (weights @ _all_heads(value[:, :, c:d], query).to(weights.dtype)).to(query.dtype)
    return output, lse


def _dense_backward(given, key, value, pairs: Pairs, causal: bool, scale, slopes) -> None:
    dq, dk, dv = slopes
    slope, query, output, lse = given
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    for (a, b), (c, d) in pairs:
        q, g = query[:, :, a:b].to(lse.dtype), slope[:, :, a:b].to(lse.dtype)
        weights = (_scores(q, key[:, :, c:d], causal, scale) - lse[..., a:b, None]).exp()
        keys, values = (_all_heads(t[:, :, c:d], query).to(lse.dtype) for t in (key, value))
        inner = (g * output[:, :, a:b]).sum(-1, keepdim=True)
        by_score = weights * (g @ values.transpose(-1, -2) - inner) * scale
        dq[:, :, a:b] += (by_score @ keys).to(dq.dtype)
        heads = key.shape[1]
        for whole_slope, part in ((dk, by_score.transpose(-1, -2) @ q), (dv, weights.transpose(-1, -2) @ g)):
            whole_slope[:, :, c:d] += part.unflatten(1, (heads, -1)).sum(2).to(whole_slope.dtype)


def _scores(query, key, causal: bool, scale) -> Tensor:
    wide = torch.promote_types(query.dtype, torch.float32)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query.to(wide) @ _all_heads(key, query).to(wide).transpose(-1, -2) * scale
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1), -torch.inf)
    return scores


def _all_heads(key: Tensor, query: Tensor) -> Tensor:
    """Keys or values of grouped heads, once for each head of the queries."""
    return key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)


DENSE = Kernel(_dense_forward, _dense_backward)
KERNELS = {"cpu": Kernel(_cpu_forward, _cpu_backward), "cuda": Kernel(_cuda_forward, _cuda_backward)}
_checked: dict[tuple[Any, ...], Kernel] = {}
log = logging.getLogger("rlhf")


def kernel_for(query: Tensor, key: Tensor) -> Kernel:
    """The device's kernel, if it agrees with plain arithmetic; tried out when heads of such a shape are first seen."""
    kind = (query.device, query.dtype, query.shape[1], key.shape[1], query.shape[3])
    if kind not in _checked:
        kernel = KERNELS.get(query.device.type, DENSE)
        if problem := disagreement(kernel, query, key):
            log.warning("attention on %s is computed by plain arithmetic, slowly: %s", query.device, problem)
            kernel = DENSE
        _checked[kind] = kernel
    return _checked[kind]


def disagreement(kernel: Kernel, query: Tensor, key: Tensor) -> str | None:
    """What is wrong with a kernel on random tensors with heads like these, or None."""
    generator = torch.Generator().manual_seed(0)
    pairs = [((0, 5), (0, 5)), ((5, 12), (0, 5)), ((12, 20), (12, 20))]
    results = []
    try:
        for candidate in (kernel, DENSE):
            generator.manual_seed(0)
            q, g = (torch.randn(1, query.shape[1], 20, query.shape[3], generator=generator).to(query) for _ in range(2))
            k, v = (torch.randn(1, key.shape[1], 20, key.shape[3], generator=generator).to(key) for _ in range(2))
            values = []
            for causal, chosen in ((True, pairs[::2]), (False, pairs[1:2])):
                output, lse = candidate.forward(q, k, v, chosen, causal, None)
                slopes = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
                candidate.backward((g, q, output, lse), k, v, chosen, causal, None, slopes)
                places = torch.cat([torch.arange(a, b) for (a, b), _ in chosen])
                values += [output[:, :, places], lse[..., places], *slopes]
            results.append(values)
    except RuntimeError as error:
        return str(error)
    apart = max((a.float() - b.float()).abs().max().item() for a, b in zip(*results, strict=True))
    allowed = 0.1 if torch.finfo(query.dtype).eps > 1e-4 else 1e-4
    return None if apart < allowed else f"its kernel is {apart:.2g} away from it"


def install(model: Any) -> None:
    """Set the implementation on a transformers model."""
    model.set_attn_implementation(NAME)


def installed(model: Any) -> bool:
    return model.config.get_text_config()._attn_implementation == NAME


@contextmanager
def set_aside(model: Any) -> Iterator[None]:
    """For calls without gradient that know no implementation but transformers' own."""
    was_installed = installed(model)
    if was_installed:
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if was_installed:
            install(model)
