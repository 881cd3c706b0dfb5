"""Log-probabilities and entropies of tokens from the model's last hidden states, a few rows of logits at a time.

The logits of a batch are the largest tensor of a step (tokens × vocabulary); here they never exist all at once, neither
forward nor backward. A chunk of them is one product, so that the head's weights are read once for many rows; what
follows is in float32 and goes over a chunk block by block, so that only small buffers are that wide. The gradient is
written over the logits that it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from rlhf_core.prefix.kernels import upcast
from rlhf_core.prefix.logits import UNCHANGED, LogitScaling

BLOCK_BYTES = 1 << 25  # of logits in float32 at a time; on a CPU, also all of a chunk
# On a GPU, where a product of fewer rows waits for the weights. 1,024 rows of 152k logits in bfloat16 are 311 MB.
GPU_ROWS = 1024
GPU_SHARE = 32  # of its memory one part is the most that a chunk may take: 1,024 such rows from 10 GB on


def token_logps(
    head: Any, states: Tensor, tokens: Tensor, temperature: float = 1.0, scaling: LogitScaling = UNCHANGED
) -> tuple[Tensor, Tensor]:
    """(log-probability of each token, entropy in nats) under softmax(logits / temperature), (N,), in float32, where
    logits are what `scaling` makes of head(states).

    `states`: (N, hidden size); `tokens`: (N,). The first is differentiable, the second is not.
    """
    plain, softmax = type(head) is nn.Linear, Softmax(scaling, temperature)
    rows = chunk_rows(head.out_features, _computed_in(head.weight if plain else states), _gpu_memory(states.device))
    if plain:
        return _TokenLogps.apply(states, head.weight, head.bias, tokens, softmax, rows)
    parts = [
        checkpoint(_module_logps, head, states[part], tokens[part], softmax, use_reentrant=False)
        for part in _parts(len(tokens), max(1, rows // 2))  # what such a head keeps beside its logits is as wide
    ]
    logps, entropies = zip(*parts, strict=True)
    return torch.cat(logps), torch.cat(entropies)


def chunk_rows(vocabulary: int, dtype: torch.dtype, gpu_memory: int | None) -> int:
    """Rows of logits in `dtype` that are computed at a time. `gpu_memory`: bytes of a GPU; None elsewhere."""
    if gpu_memory is None:
        return max(16, BLOCK_BYTES // (4 * vocabulary))
    return max(16, min(GPU_ROWS, gpu_memory // GPU_SHARE // (dtype.itemsize * vocabulary)))


def _gpu_memory(device: torch.device) -> int | None:
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def _computed_in(weight: Tensor) -> torch.dtype:
    """The type of a product with `weight`, as autocast has it now."""
    kind = weight.device.type
    casts = torch.is_autocast_enabled(kind) and weight.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if casts else weight.dtype


def _module_logps(head: Any, states: Tensor, tokens: Tensor, softmax: Softmax) -> tuple[Tensor, Tensor]:
    return _LogpsOfLogits.apply(head(states), tokens, softmax)


class _LogpsOfLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, tokens, softmax):
        ctx.save_for_backward(logits, tokens)
        ctx.softmax = softmax
        logps, entropies = _scores(logits, tokens, softmax)
        ctx.mark_non_differentiable(entropies)
        return logps, entropies

    @staticmethod
    def backward(ctx, grad_logps, _):
        logits, tokens = ctx.saved_tensors
        return _gradient(logits, tokens, ctx.softmax, grad_logps, torch.empty_like(logits)), None, None


class _TokenLogps(torch.autograd.Function):
    """The gradient of a log-probability by its state is (one-hot - softmax) · weight, times the factor from above. With
    a head that is frozen it is computed in the forward pass, and the logits are never needed again; else they are
    computed a second time in the backward pass.
    """

    @staticmethod
    def forward(ctx, states, weight, bias, tokens, softmax, rows):
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        ctx.frozen_head = needs_states and not needs_weight and not needs_bias
        dtype = _computed_in(weight)
        cast, cast_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        by_states = torch.empty_like(states) if ctx.frozen_head else None
        found = []
        for part in _parts(len(tokens), rows):
            logits = linear(states[part].to(dtype), cast, cast_bias)
            found.append(_scores(logits, tokens[part], softmax, gradient=ctx.frozen_head))
            if by_states is not None:
                by_states[part] = logits @ cast
            del logits
        logps, entropies = map(torch.cat, zip(*found, strict=True))
        ctx.save_for_backward(*((by_states,) if ctx.frozen_head else (states, weight, bias, tokens)))
        ctx.softmax, ctx.rows, ctx.dtype = softmax, rows, dtype
        ctx.mark_non_differentiable(entropies)
        return logps, entropies

    @staticmethod
    def backward(ctx, grad_logps, _):
        if ctx.frozen_head:
            (by_states,) = ctx.saved_tensors
            return by_states * grad_logps[:, None].to(by_states.dtype), *[None] * 5
        states, weight, bias, tokens = ctx.saved_tensors
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        cast, cast_bias = weight.to(ctx.dtype), None if bias is None else bias.to(ctx.dtype)
        grad_states = torch.empty_like(states) if needs_states else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if needs_bias else None
        for part in _parts(len(tokens), ctx.rows):
            inputs = states[part].to(ctx.dtype)
            logits = linear(inputs, cast, cast_bias)
            by_logits = _gradient(logits, tokens[part], ctx.softmax, grad_logps[part], logits)
            if grad_states is not None:
                grad_states[part] = by_logits @ cast
            if grad_weight is not None:
                _add_product(grad_weight, by_logits.t(), inputs)
            if grad_bias is not None:
                grad_bias += by_logits.sum(0)
            del logits, by_logits
        return grad_states, grad_weight, grad_bias, None, None, None


def precision(device: torch.device) -> tuple[str, torch.dtype, bool]:
    """What `torch.autocast` takes to be as it is now, for a backward pass that computes something a second time."""
    kind = device.type
    return kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _parts(count: int, rows: int) -> Iterator[slice]:
    return (slice(i, min(i + rows, count)) for i in range(0, count, rows))


def _blocks(logits: Tensor) -> Iterator[slice]:
    """Of as many rows as may be in float32 at a time."""
    return _parts(len(logits), max(16, BLOCK_BYTES // (4 * logits.shape[1])))


def _scores(logits: Tensor, tokens: Tensor, softmax: Softmax, *, gradient: bool = False) -> tuple[Tensor, Tensor]:
    """(log-probabilities of `tokens`, entropies). With `gradient`, that of the former is written over `logits`."""
    logps = logits.new_empty(len(logits), dtype=upcast(logits.dtype))
    entropies = torch.empty_like(logps)
    for block in _blocks(logits):
        chosen = tokens[block, None]
        distribution = torch.log_softmax(*softmax.takes(logits[block]))
        logps[block] = distribution.gather(-1, chosen)[:, 0]
        probs = distribution.exp()
        entropies[block] = -distribution.mul_(probs).sum(-1)
        del distribution  # before what the gradient takes
        if gradient:
            logits[block] = softmax.gradient(probs, chosen, logits[block], 1)
        del probs  # before those of the next block
    return logps, entropies


def _gradient(logits: Tensor, tokens: Tensor, softmax: Softmax, grad_logps: Tensor, out: Tensor) -> Tensor:
    """By `logits`, of the sum of the log-probabilities of `tokens`, each times `grad_logps`; in `out`."""
    for block in _blocks(logits):
        probs = torch.softmax(*softmax.takes(logits[block]))
        out[block] = softmax.gradient(probs, tokens[block, None], logits[block], grad_logps[block, None])
        del probs
    return out


class Softmax(NamedTuple):
    """Of logits / temperature, where logits are what `scaling` makes of a head's output."""

    scaling: LogitScaling
    temperature: float

    def takes(self, output: Tensor) -> tuple[Tensor, int, torch.dtype]:
        """logits / temperature, the dimension, and the type that it computes in."""
        return self.scaling.logits(output, self.temperature), -1, upcast(output.dtype)

    def gradient(self, probs: Tensor, chosen: Tensor, output: Tensor, factor: Tensor | float) -> Tensor:
        """Of the log-probabilities of `chosen` (rows, 1) by the head's output, times `factor`; in place of `probs`."""
        minus = probs.scatter_add_(1, chosen, torch.full_like(probs[:, :1], -1))
        return self.scaling.by_output(minus, output, factor / -self.temperature)
