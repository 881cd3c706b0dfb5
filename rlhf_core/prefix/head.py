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

CHUNK_BYTES = 1 << 23  # of logits in float32 at a time


def token_logps(
    head: Any,
    states: Tensor,
    tokens: Tensor,
    temperature: float = 1.0,
    known: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """(log-probability of each token, entropy in nats) under softmax(head(states) / temperature), (N,), in float32.

    `states`: (N, hidden size); `tokens`: (N,). The first is differentiable, the second is not. `known`: these values,
    where sampling has computed them.
    """
    rows = max(16, CHUNK_BYTES // (4 * head.out_features))
    if type(head) is nn.Linear:
        return _TokenLogps.apply(states, head.weight, head.bias, tokens, temperature, rows, known)
    parts = [
        checkpoint(_plain, head, states[i : i + rows], tokens[i : i + rows], temperature, use_reentrant=False)
        for i in range(0, len(tokens), rows)
    ]
    logps, entropies = zip(*parts, strict=True)
    return torch.cat(logps), torch.cat(entropies)


def _plain(head: Any, states: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    distribution = torch.log_softmax(_wide(head(states)) / temperature, dim=-1)
    entropies = -(distribution.exp() * distribution).sum(-1)
    return distribution.gather(-1, tokens[:, None])[:, 0], entropies.detach()


class _TokenLogps(torch.autograd.Function):
    """Of a log-probability's slope only the factor from above is unknown in the forward: with a head that does not
    learn, the rest, (one-hot - softmax) · weight, is computed right there, and the logits are never needed again.
    """

    @staticmethod
    def forward(ctx, states, weight, bias, tokens, temperature, rows, known):
        wide = torch.promote_types(states.dtype, torch.float32)
        logps = torch.empty(len(tokens), dtype=wide, device=states.device)
        entropies = torch.empty_like(logps)
        learns = ctx.needs_input_grad
        at_once = learns[0] and not learns[1] and not learns[2]
        slopes = torch.empty_like(states) if at_once else None
        begins = range(0, len(tokens), rows)
        if known and not at_once:
            (logps[:], entropies[:]), begins = known, range(0)
        for i in begins:
            part = slice(i, i + rows)
            logits = _wide(linear(states[part], weight, bias)).div_(temperature)
            logits -= logits.logsumexp(-1, keepdim=True)
            logps[part] = logits.gather(-1, tokens[part, None])[:, 0]
            chances = logits.exp()
            entropies[part] = -(logits.mul_(chances)).sum(-1)
            if slopes is not None:
                slopes[part] = _by_state(chances, tokens[part], temperature, weight)
        ctx.save_for_backward(*((slopes,) if at_once else (states, weight, bias, tokens, logps)))
        ctx.at_once, ctx.temperature, ctx.rows = at_once, temperature, rows
        ctx.mark_non_differentiable(entropies)
        return logps, entropies

    @staticmethod
    def backward(ctx, slope, _):
        if ctx.at_once:
            return ctx.saved_tensors[0] * slope[:, None].to(ctx.saved_tensors[0].dtype), *[None] * 6
        states, weight, bias, tokens, logps = ctx.saved_tensors
        learns = ctx.needs_input_grad
        by_states = torch.empty_like(states) if learns[0] else None
        by_weight = torch.zeros_like(weight) if learns[1] else None
        by_bias = torch.zeros_like(bias) if learns[2] else None
        for i in range(0, len(tokens), ctx.rows):
            part = slice(i, i + ctx.rows)
            logits = _wide(linear(states[part], weight, bias)).div_(ctx.temperature)
            chosen = tokens[part, None]
            total = logits.gather(-1, chosen) - logps[part, None]  # the log-sum-exp of the logits
            by_logits = logits.sub_(total).exp_().neg_()
            by_logits.scatter_add_(1, chosen, torch.ones_like(by_logits[:, :1]))
            by_logits = by_logits.mul_(slope[part, None] / ctx.temperature).to(states.dtype)
            if by_states is not None:
                by_states[part] = by_logits @ weight
            if by_weight is not None:
                by_weight.addmm_(by_logits.t(), states[part])
            if by_bias is not None:
                by_bias += by_logits.sum(0)
        return by_states, by_weight, by_bias, None, None, None, None


def _by_state(chances: Tensor, tokens: Tensor, temperature: float, weight: Tensor) -> Tensor:
    by_logits = chances.neg_()
    by_logits.scatter_add_(1, tokens[:, None], torch.ones_like(by_logits[:, :1]))
    return by_logits.div_(temperature).to(weight.dtype) @ weight


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
