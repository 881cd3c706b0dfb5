"""A prompt with the completions that share it, and what is computed of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Group:
    """Token ids of a prompt and of its completions, without padding. No completion is empty."""

    prompt: Sequence[int]
    completions: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        if not self.prompt or not all(self.completions):
            raise ValueError("a group has no empty prompt and no empty completion")


@dataclass(frozen=True)
class CompletionLogps:
    """All (completions, longest completion), completions in the order of the groups; 0 where `mask` is 0.

    `logps`: log-probability of each token under `softmax(logits / temperature)`, differentiable, in float32.
    `entropies`: of the same distribution, in nats, without gradient. `mask`: 1 for the tokens of the completion.
    `hidden`: where it was asked for, what `completion_hidden` gives.
    """

    logps: torch.Tensor
    entropies: torch.Tensor
    mask: torch.Tensor
    hidden: torch.Tensor | None = None


@dataclass(frozen=True)
class CompletionHidden:
    """`states`: (completions, 1 + longest completion, hidden size), the last hidden states of the prompt's last token
    and of every token of the completion. `mask`: (completions, longest completion), 1 for the completion's tokens.
    """

    states: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class Sampling:
    """How to sample. `eos_token_ids` are the token ids that end a completion; `max_new_tokens` counts the end token.

    `top_k` and `min_p` of 0 leave nothing out, nor does a `top_p` of 1. With `seed` a completion depends on it, on the
    prompt and on its place in the order alone; without, on torch's generator.
    """

    max_new_tokens: int
    eos_token_ids: Sequence[int]
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    greedy: bool = False
    seed: int | None = None


@dataclass(frozen=True)
class Rollout:
    """One completion: its token ids, with the end token if it came to one, and the log-probability of each at the
    sampling temperature, before a penalty for repetition, and before tokens are left out by `top_p` and the like.
    """

    prompt: list[int]
    completion: list[int]
    logps: list[float]
    finished: bool


def stacked(rows: Sequence[Sequence[float]], fill: float = 0, device: torch.device | None = None) -> torch.Tensor:
    """(rows, longest) with `fill` after the end of shorter ones. Integers give int64, floats float32."""
    longest = max(map(len, rows))
    return on_device([[*row, *[fill] * (longest - len(row))] for row in rows], device)


def on_device(numbers: Sequence[Any], device: torch.device | None, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor of numbers, or of rows of them, there. Nothing waits for the copy, neither here nor on the device: it
    comes from memory that the GPU reads by itself, after what was asked of it before.
    """
    made = torch.tensor(numbers, dtype=dtype)
    if device is not None and device.type == "cuda":
        made = made.pin_memory()
    return made.to(device, non_blocking=True)
