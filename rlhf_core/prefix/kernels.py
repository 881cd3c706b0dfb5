"""Attention of spans of queries to spans of keys, forward and backward, with its log-sum-exp.

torch's flash kernels on the CPU and on CUDA, and plain arithmetic elsewhere. A kernel is compared with plain arithmetic
when heads of a shape are first seen, and left where they differ. The only place that touches torch's attention kernels
below their public surface.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Span = tuple[int, int]  # first position, and the one after the last


class Indices(NamedTuple):
    """The spans of one side as flash attention takes them: positions (N,), starts among them (spans + 1,) in int32."""

    positions: Tensor
    starts: Tensor
    longest: int


class SpanPairs:
    """Spans of queries, each with the span of keys that it attends to. With `causal` a query sees the keys up to its
    own number.
    """

    def __init__(self, pairs: Sequence[tuple[Span, Span]], *, causal: bool) -> None:
        self.pairs, self.causal = pairs, causal
        self._indices: dict[torch.device, tuple[Indices, Indices]] = {}

    def indices(self, device: torch.device) -> tuple[Indices, Indices]:
        """(queries, keys). All layers share them, so nothing waits for a copy to the device but the first."""
        if device not in self._indices:
            queries, keys = zip(*self.pairs, strict=True)
            self._indices[device] = _indices(queries, device), _indices(keys, device)
        return self._indices[device]


def _indices(spans: Sequence[Span], device: torch.device) -> Indices:
    lengths = [b - a for a, b in spans]
    starts = torch.tensor([0, *lengths]).cumsum(0).int().to(device)
    return Indices(torch.cat([torch.arange(a, b) for a, b in spans]).to(device), starts, max(lengths))


class Kernel(NamedTuple):
    """`forward(query, key, value, spans, scale)` -> (output, log-sum-exp (rows, heads, tokens), at least in float32).
    Queries in no span get output 0 and a log-sum-exp of minus infinity.

    `backward((grad_output, query, output, log-sum-exp), key, value, spans, scale, (dq, dk, dv))` adds to the last.
    """

    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., None]


def upcast(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision."""
    return torch.promote_types(dtype, torch.float32)


def _empty(query: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(query), query.new_full(query.shape[:3], -torch.inf, dtype=upcast(query.dtype))


def _cpu_forward(query, key, value, spans: SpanPairs, scale):
    output, lse = _empty(query)
    for (a, b), (c, d) in spans.pairs:
        output[:, :, a:b], lse[..., a:b] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query[:, :, a:b], key[:, :, c:d], value[:, :, c:d], 0.0, spans.causal, scale=scale
        )
    return output, lse


def _cpu_backward(given, key, value, spans: SpanPairs, scale, grads) -> None:
    grad_output, query, output, lse = given
    for pair in spans.pairs:
        (a, b), (c, d) = pair
        parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *(grad_output[:, :, a:b], query[:, :, a:b], key[:, :, c:d], value[:, :, c:d]),
            *(output[:, :, a:b], lse[..., a:b], 0.0, spans.causal),
            scale=scale,
        )
        _add(grads, pair, parts)


def _cuda_forward(query, key, value, spans: SpanPairs, scale):
    output, lse = _empty(query)
    queries, keys = spans.indices(query.device)
    part, part_lse, *_ = torch.ops.aten._flash_attention_forward(
        *(_tokens_first(query, queries), _tokens_first(key, keys), _tokens_first(value, keys)),
        *(queries.starts, keys.starts, queries.longest, keys.longest, 0.0, spans.causal, False),
        scale=scale,
    )
    output[:, :, queries.positions] = part.transpose(0, 1)[None]
    lse[:, :, queries.positions] = part_lse[None]
    return output, lse


def _cuda_backward(given, key, value, spans: SpanPairs, scale, grads) -> None:
    grad_output, query, output, lse = given
    queries, keys = spans.indices(query.device)
    state = torch.zeros(2, dtype=torch.uint64, device=query.device)  # of the dropout that there is not
    parts = torch.ops.aten._flash_attention_backward(
        *(_tokens_first(grad_output, queries), _tokens_first(query, queries)),
        *(_tokens_first(key, keys), _tokens_first(value, keys)),
        *(_tokens_first(output, queries), lse[0][:, queries.positions].contiguous()),
        *(queries.starts, keys.starts, queries.longest, keys.longest, 0.0, spans.causal),
        *(state, torch.empty(0, device=query.device)),
        scale=scale,
    )
    for grad, side, part in zip(grads, (queries, keys, keys), parts, strict=True):
        grad[:, :, side.positions] += part.transpose(0, 1)[None]


def _tokens_first(tensor: Tensor, side: Indices) -> Tensor:
    """(1, heads, tokens, size) as (tokens of the spans, heads, size)."""
    return tensor[0][:, side.positions].transpose(0, 1).contiguous()


def _dense_forward(query, key, value, spans: SpanPairs, scale):
    """Plain arithmetic, for devices without a kernel of theirs here, and what the kernels are checked against."""
    output, lse = _empty(query)
    for (a, b), (c, d) in spans.pairs:
        q, k, v = _for_each_head(query[:, :, a:b], key[:, :, c:d], value[:, :, c:d])
        scores = _scores(q, k, spans.causal, scale)
        lse[..., a:b] = scores.logsumexp(-1)
        output[:, :, a:b] = ((scores - lse[..., a:b, None]).exp() @ v).to(query.dtype)
    return output, lse


def _dense_backward(given, key, value, spans: SpanPairs, scale, grads) -> None:
    grad_output, query, output, lse = given
    for pair in spans.pairs:
        (a, b), (c, d) = pair
        q, k, v = _for_each_head(query[:, :, a:b], key[:, :, c:d], value[:, :, c:d])
        above = grad_output[:, :, a:b].to(lse.dtype)
        weights = (_scores(q, k, spans.causal, scale) - lse[..., a:b, None]).exp()
        by_weights = above @ v.mT - (above * output[:, :, a:b]).sum(-1, keepdim=True)
        by_scores = weights * by_weights * scale
        summed = (part.unflatten(1, (key.shape[1], -1)).sum(2) for part in (by_scores.mT @ q, weights.mT @ above))
        _add(grads, pair, (by_scores @ k, *summed))


def _scores(query: Tensor, key: Tensor, causal: bool, scale: float) -> Tensor:
    scores = query @ key.mT * scale
    return scores.masked_fill(torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1), -torch.inf) if causal else scores


def _for_each_head(query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """At least in float32, keys and values of grouped heads once for each head of the queries."""
    return [t.to(upcast(t.dtype)).repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (query, key, value)]


def _add(grads: Sequence[Tensor], pair: tuple[Span, Span], parts: Sequence[Tensor]) -> None:
    """To the gradients of query, key and value those of one pair of spans."""
    for grad, (first, end), part in zip(grads, (pair[0], pair[1], pair[1]), parts, strict=True):
        grad[:, :, first:end] += part


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
    """What is wrong with a kernel on 20 random tokens with heads like these, or None."""
    generator = torch.Generator().manual_seed(0)
    like = (query, key, key, query)
    q, k, v, g = (torch.randn(1, t.shape[1], 20, t.shape[3], generator=generator).to(t) for t in like)
    alone = SpanPairs([((0, 5), (0, 5)), ((12, 20), (12, 20))], causal=True)
    results: tuple[list[Tensor], list[Tensor]] = [], []
    try:
        for candidate, found in zip((kernel, DENSE), results, strict=True):
            for spans in (alone, SpanPairs([((5, 12), (0, 5))], causal=False)):
                output, lse = candidate.forward(q, k, v, spans, 0.2)
                grads = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
                candidate.backward((g, q, output, lse), k, v, spans, 0.2, grads)
                found += [output.double(), lse.nan_to_num(neginf=0).double(), *(grad.double() for grad in grads)]
    except RuntimeError as error:
        return str(error)
    apart = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*results, strict=True))
    # A kernel rounds its weights and its results to the type of its inputs, and approximates exp to about float32.
    allowed = 8 * torch.finfo(query.dtype).eps + 64 * torch.finfo(torch.float32).eps
    return None if apart < allowed else f"its kernel is {apart:.2g} of the values away from it"


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """(output, log-sum-exp (rows, heads, queries)) of the few queries of a decoding step to all keys, without gradient.
    As many heads on both sides; `mask`: (rows, 1, 1, keys), added to the scores.
    """
    scores = (query @ key.transpose(-1, -2)).to(upcast(query.dtype)) * scale
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp().to(value.dtype) @ value, lse
