"""Log-probabilities and entropies of tokens from the model's last hidden states, a few rows of logits at a time.

The logits of a batch are the largest tensor of a step (tokens × vocabulary); here they never exist all at once, neither
forward nor backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from rlhf_core.prefix.kernels import upcast

CHUNK_BYTES = 1 << 25  # of logits in float32 at a time


def token_logps(head: Any, states: Tensor, tokens: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """(log-probability of each token, entropy in nats) under softmax(head(states) / temperature), (N,), in float32.

    `states`: (N, hidden size); `tokens`: (N,). The first is differentiable, the second is not.
    """
    rows = max(16, CHUNK_BYTES // (4 * head.out_features))
    if type(head) is nn.Linear:
        return _TokenLogps.apply(states, head.weight, head.bias, tokens, temperature, rows)
    parts = [
        checkpoint(_plain, head, states[i : i + rows], tokens[i : i + rows], temperature, use_reentrant=False)
        for i in range(0, len(tokens), rows)
    ]
    logps, entropies = zip(*parts, strict=True)
    return torch.cat(logps), torch.cat(entropies)


def _plain(head: Any, states: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = head(states)
    distribution = torch.log_softmax(logits.to(upcast(logits.dtype)) / temperature, dim=-1)
    entropies = -(distribution.exp() * distribution).sum(-1)
    return distribution.gather(-1, tokens[:, None])[:, 0], entropies.detach()


class _TokenLogps(torch.autograd.Function):
    """The gradient of a log-probability by its state is (one-hot - softmax) · weight, times the factor from above. With
    a head that is frozen it is computed in the forward pass, and the logits are never needed again; else they are
    computed a second time in the backward pass.
    """

    @staticmethod
    def forward(ctx, states, weight, bias, tokens, temperature, rows):
        logps = states.new_empty(len(tokens), dtype=upcast(states.dtype))
        entropies = torch.empty_like(logps)
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        ctx.frozen_head = needs_states and not needs_weight and not needs_bias
        by_states = torch.empty_like(states) if ctx.frozen_head else None
        for i in range(0, len(tokens), rows):
            part = slice(i, i + rows)
            logits = _logits(states[part], weight, bias, temperature)
            logits -= logits.logsumexp(-1, keepdim=True)
            logps[part] = logits.gather(-1, tokens[part, None])[:, 0]
            probs = logits.exp()
            entropies[part] = -(logits.mul_(probs)).sum(-1)
            if by_states is not None:
                by_logits = _minus_probs(probs, tokens[part, None]).div_(temperature)
                by_states[part] = by_logits.to(weight.dtype) @ weight
        ctx.save_for_backward(*((by_states,) if ctx.frozen_head else (states, weight, bias, tokens, logps)))
        ctx.temperature, ctx.rows, ctx.precision = temperature, rows, precision(states.device)
        ctx.mark_non_differentiable(entropies)
        return logps, entropies

    @staticmethod
    def backward(ctx, grad_logps, _):
        if ctx.frozen_head:
            (by_states,) = ctx.saved_tensors
            return by_states * grad_logps[:, None].to(by_states.dtype), *[None] * 5
        states, weight, bias, tokens, logps = ctx.saved_tensors
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_states = torch.empty_like(states) if needs_states else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if needs_bias else None
        for i in range(0, len(tokens), ctx.rows):
            part = slice(i, i + ctx.rows)
            chosen = tokens[part, None]
            with torch.autocast(*ctx.precision):
                logits = _logits(states[part], weight, bias, ctx.temperature)
            normalizer = logits.gather(-1, chosen) - logps[part, None]  # the log-sum-exp of the logits
            by_logits = _minus_probs(logits.sub_(normalizer).exp_(), chosen)
            by_logits = by_logits.mul_(grad_logps[part, None] / ctx.temperature).to(weight.dtype)
            if grad_states is not None:
                grad_states[part] = by_logits @ weight
            if grad_weight is not None:
                grad_weight.addmm_(by_logits.t(), states[part].to(weight.dtype))
            if grad_bias is not None:
                grad_bias += by_logits.sum(0)
        return grad_states, grad_weight, grad_bias, None, None, None


def precision(device: torch.device) -> tuple[str, torch.dtype, bool]:
    """What `torch.autocast` takes to be as it is now, for a backward pass that computes something a second time."""
    kind = device.type
    return kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)


def _logits(states: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = linear(states, weight, bias)
    return logits.to(upcast(logits.dtype)).div_(temperature)


def _minus_probs(probs: Tensor, chosen: Tensor) -> Tensor:
    """one-hot - `probs`, in place: the gradient of log softmax at `chosen` (rows, 1)."""
    return probs.neg_().scatter_add_(1, chosen, torch.ones_like(probs[:, :1]))
