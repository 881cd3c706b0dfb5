"""Attention of sequences of queries to sequences of keys, forward and backward, with its log-sum-exp.

torch's flash kernels on the CPU and on CUDA, and plain arithmetic elsewhere. A kernel is compared with plain arithmetic
when heads of a shape are first seen, and left where they differ. The only place that touches torch's attention kernels
below their public surface.

Tensors are (tokens, heads, size), which for flash attention on CUDA are the projections' outputs as they are in memory:
nothing is copied. Log-sum-exps are (heads, tokens).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_core.prefix.groups import on_device

Span = tuple[int, int]  # first position, and the one after the last
BLOCK = 256  # queries at a time, where a mask says what they see


class Sequences:
    """Sequences of queries, by their lengths, and the sequence of keys that each attends to, none empty; they stand one
    after another on both sides.

    With `causal` a query sees no key behind its own, where the last query's own is the last key; with `window` as well,
    of those the last so many, its own among them.
    """

    def __init__(self, queries: Sequence[int], keys: Sequence[int], *, causal: bool, window: int | None = None) -> None:
        self.queries, self.keys, self.causal, self.window = queries, keys, causal, window
        self._starts: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def starts(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Of queries and of keys (sequences + 1,) in int32, as flash attention takes them."""
        if device not in self._starts:
            send([self], device)
        return self._starts[device]

    def spans(self) -> Iterator[tuple[Span, Span]]:
        """(queries, keys) of each sequence."""
        return zip(pairwise(_starts(self.queries)), pairwise(_starts(self.keys)), strict=True)


def send(several: Iterable[Sequences], device: torch.device) -> None:
    """Copy the starts of all to a device, once for all layers and without waiting for it."""
    missing = [one for one in several if device not in one._starts]
    lists = [_starts(lengths) for one in missing for lengths in (one.queries, one.keys)]
    numbers = on_device([number for starts in lists for number in starts], device, torch.int32)
    parts = iter(numbers.split([len(starts) for starts in lists]))
    for one in missing:
        one._starts[device] = next(parts), next(parts)


def _starts(lengths: Sequence[int]) -> list[int]:
    return [0, *accumulate(lengths)]


class Kernel(NamedTuple):
    """`forward(query, key, value, sequences, scale)` -> (output, log-sum-exp, at least in float32), both new.

    `backward(grad_output, query, key, value, output, log-sum-exp, sequences, scale)` -> the gradients of query, key and
    value, where output and log-sum-exp may be those of an attention to more keys than these.
    """

    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]


def upcast(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision."""
    return torch.promote_types(dtype, torch.float32)


class _Call(NamedTuple):
    """Some queries of one sequence, and the keys that they see: all, those up to their own (`causal`), or by `mask`."""

    queries: slice
    keys: slice
    causal: bool
    mask: Tensor | None

    def of(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _heads_first(query[self.queries]), _heads_first(key[self.keys]), _heads_first(value[self.keys])


def _calls(sequences: Sequences, device: torch.device) -> Iterator[_Call]:
    for (a, b), (c, d) in sequences.spans():
        window, behind = sequences.window or d - c, (d - c) - (b - a)  # keys before the first query's own
        if not sequences.causal or (behind == 0 and window >= d - c):
            yield _Call(slice(a, b), slice(c, d), sequences.causal, None)
            continue
        for first in range(0, b - a, BLOCK):
            last = min(first + BLOCK, b - a)
            low = max(0, first + behind + 1 - window)
            own = torch.arange(first + behind, last + behind, device=device)[:, None]
            keys = torch.arange(low, last + behind, device=device)
            sees = (keys <= own) & (keys > own - window)
            mask = torch.zeros(sees.shape, device=device).masked_fill(~sees, -torch.inf)
            yield _Call(slice(a + first, a + last), slice(c + low, c + last + behind), False, mask)


def _heads_first(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1)[None]


def _tokens_first(tensor: Tensor) -> Tensor:
    return tensor[0].transpose(0, 1)


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(output, log-sum-exp) of one call after another, each with heads first."""
    if len(parts) == 1:
        return _tokens_first(parts[0][0]), parts[0][1][0]
    return torch.cat([_tokens_first(output) for output, _ in parts]), torch.cat([lse[0] for _, lse in parts], dim=-1)


def _cpu_forward(query, key, value, sequences: Sequences, scale):
    return _joined(
        [
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *call.of(query, key, value), 0.0, call.causal, attn_mask=_in(call.mask, query), scale=scale
            )
            for call in _calls(sequences, query.device)
        ]
    )


def _cpu_backward(grad_output, query, key, value, output, lse, sequences: Sequences, scale):
    grads = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    for call in _calls(sequences, query.device):
        parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *(_heads_first(grad_output[call.queries]), *call.of(query, key, value)),
            *(_heads_first(output[call.queries]), lse[None, :, call.queries], 0.0, call.causal),
            attn_mask=_in(call.mask, query),
            scale=scale,
        )
        _add(grads, call, parts)
    return grads


def _in(mask: Tensor | None, query: Tensor) -> Tensor | None:
    return None if mask is None else mask.to(query.dtype)


def _cuda_forward(query, key, value, sequences: Sequences, scale):
    output, lse, *_ = torch.ops.aten._flash_attention_forward(
        *map(_dense, (query, key, value)),
        *sequences.starts(query.device),
        *(max(sequences.queries), max(sequences.keys), 0.0, sequences.causal, False),
        scale=scale,
        **_window(sequences),
    )
    return output, lse


def _cuda_backward(grad_output, query, key, value, output, lse, sequences: Sequences, scale):
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=query.device), query.new_empty(0)
    return torch.ops.aten._flash_attention_backward(
        *map(_dense, (grad_output, query, key, value, output)),
        *(lse.contiguous(), *sequences.starts(query.device)),
        *(max(sequences.queries), max(sequences.keys), 0.0, sequences.causal, *no_dropout),
        scale=scale,
        **_window(sequences),
    )


def _dense(tensor: Tensor) -> Tensor:
    """With each head's numbers beside each other, as the kernels take it; nearly all tensors are so already."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _window(sequences: Sequences) -> dict[str, int]:
    """In flash attention's words: how many keys before its own a query sees, and how many behind."""
    if sequences.window is None:
        return {}
    return {"window_size_left": sequences.window - 1, "window_size_right": 0}


def _plain_forward(query, key, value, sequences: Sequences, scale):
    """Plain arithmetic, for devices without a kernel of theirs here, and what the kernels are checked against."""
    parts = []
    for call in _calls(sequences, query.device):
        q, k, v = _for_each_head(*call.of(query, key, value))
        scores = _scores(q, k, call, scale)
        lse = scores.logsumexp(-1)
        parts.append((((scores - lse[..., None]).exp() @ v).to(query.dtype), lse))
    return _joined(parts)


def _plain_backward(grad_output, query, key, value, output, lse, sequences: Sequences, scale):
    grads = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    for call in _calls(sequences, query.device):
        q, k, v = _for_each_head(*call.of(query, key, value))
        above = _heads_first(grad_output[call.queries]).to(lse.dtype)
        weights = (_scores(q, k, call, scale) - lse[None, :, call.queries, None]).exp()
        by_weights = above @ v.mT - (above * _heads_first(output[call.queries])).sum(-1, keepdim=True)
        by_scores = weights * by_weights * scale
        summed = (part.unflatten(1, (key.shape[1], -1)).sum(2) for part in (by_scores.mT @ q, weights.mT @ above))
        _add(grads, call, (by_scores @ k, *summed))
    return grads


def _scores(query: Tensor, key: Tensor, call: _Call, scale: float) -> Tensor:
    scores = query @ key.mT * scale
    if call.mask is not None:
        return scores + call.mask
    return (
        scores.masked_fill(torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1), -torch.inf)
        if call.causal
        else scores
    )


def _for_each_head(query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """At least in float32, keys and values of grouped heads once for each head of the queries."""
    return [t.to(upcast(t.dtype)).repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (query, key, value)]


def _add(grads: Sequence[Tensor], call: _Call, parts: Sequence[Tensor]) -> None:
    """To the gradients of query, key and value those of one call."""
    for grad, tokens, part in zip(grads, (call.queries, call.keys, call.keys), parts, strict=True):
        grad[tokens] += _tokens_first(part)


DENSE = Kernel(_plain_forward, _plain_backward)
KERNELS = {"cpu": Kernel(_cpu_forward, _cpu_backward), "cuda": Kernel(_cuda_forward, _cuda_backward)}
_checked: dict[tuple[Any, ...], Kernel] = {}
log = logging.getLogger("rlhf")


def kernel_for(query: Tensor, key: Tensor) -> Kernel:
    """The device's kernel, if it agrees with plain arithmetic; tried out when heads of such a shape are first seen."""
    kind = (query.device, query.dtype, query.shape[1], key.shape[1], query.shape[2])
    if kind not in _checked:
        kernel = KERNELS.get(query.device.type, DENSE)
        if problem := disagreement(kernel, query, key):
            log.warning("attention on %s is computed by plain arithmetic, slowly: %s", query.device, problem)
            kernel = DENSE
        _checked[kind] = kernel
    return _checked[kind]


CASES = (  # what prompts and completions attend to, without a window and with one
    Sequences([5, 8, 7], [5, 8, 7], causal=True),
    Sequences([13, 7], [4, 9], causal=False),
    Sequences([12, 8], [12, 8], causal=True, window=3),
    Sequences([3, 1, 8], [7, 2, 11], causal=True, window=4),
)


def disagreement(kernel: Kernel, query: Tensor, key: Tensor) -> str | None:
    """What is wrong with a kernel on 20 random tokens with heads like these, or None."""
    generator = torch.Generator().manual_seed(0)
    like = (query, key, key, query)
    q, k, v, g = (torch.randn(20, *t.shape[1:], generator=generator).to(t) for t in like)
    results: tuple[list[Tensor], list[Tensor]] = [], []
    try:
        for candidate, found in zip((kernel, DENSE), results, strict=True):
            for case in CASES:
                queries, keys = sum(case.queries), sum(case.keys)
                given = q[:queries], k[:keys], v[:keys]
                output, lse = candidate.forward(*given, case, 0.2)
                grads = candidate.backward(g[:queries], *given, output, lse, case, 0.2)
                found += [output.double(), lse.double(), *(grad.double() for grad in grads)]
    except RuntimeError as error:
        return str(error)
    apart = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*results, strict=True))
    # A kernel rounds its weights and its results to the type of its inputs, and approximates exp to about float32.
    allowed = 8 * torch.finfo(query.dtype).eps + 64 * torch.finfo(torch.float32).eps
    return None if apart < allowed else f"its kernel is {apart:.2g} of the values away from it"
