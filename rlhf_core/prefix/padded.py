"""The plain computation, and the reference for every faster one: each completion in a row of its own, padded.

Prompts are padded on the left and completions on the right, so that completions stand in the same columns and only
those columns get logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_core.prefix.groups import CompletionHidden, CompletionLogps, Group, stacked


def completion_logps(
    model: Any, groups: Sequence[Group], *, temperature: float = 1.0, hidden: bool = False
) -> CompletionLogps:
    """Log-probability and entropy of every completion token. With `hidden`, the states of the same pass as well."""
    inputs, tokens, mask = _padded(groups, model.device)
    width = tokens.shape[1]
    output = model(**inputs, logits_to_keep=width + 1, output_hidden_states=hidden, use_cache=False)
    logps, entropies = [], []
    for logits, row in zip(output.logits[:, -width - 1 : -1], tokens, strict=True):  # a row at a time: float32 is large
        distribution = torch.log_softmax(logits.float() / temperature, dim=-1)
        logps.append(distribution.gather(-1, row[:, None])[:, 0])
        with torch.no_grad():
            entropies.append(-(distribution.exp() * distribution).sum(-1))
    states = output.hidden_states[-1][:, -width - 1 :] if hidden else None
    return CompletionLogps(torch.stack(logps) * mask, torch.stack(entropies) * mask, mask, states)


def completion_hidden(model: Any, groups: Sequence[Group]) -> CompletionHidden:
    """The last hidden states at the prompt's last token and at every completion token."""
    inputs, tokens, mask = _padded(groups, model.device)
    output = model(**inputs, logits_to_keep=1, output_hidden_states=True, use_cache=False)
    return CompletionHidden(output.hidden_states[-1][:, -tokens.shape[1] - 1 :], mask)


def _padded(groups: Sequence[Group], device: torch.device) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """(the model's inputs, completion tokens, completion mask). What stands in padding is masked, so 0 serves."""
    prompts = [list(group.prompt) for group in groups for _ in group.completions]
    completions = [list(completion) for group in groups for completion in group.completions]
    longest = max(map(len, prompts))
    left = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    prompt_mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    tokens = stacked(completions, device=device)
    mask = stacked([[1] * len(completion) for completion in completions], device=device)
    attention = torch.cat([prompt_mask, mask], dim=1)
    inputs = {
        "input_ids": torch.cat([left, tokens], dim=1),
        "attention_mask": attention,
        "position_ids": (attention.cumsum(dim=1) - 1).clamp(min=0),
    }
    return inputs, tokens, mask
