"""A prompt with the completions that share it, and their tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Group:
    """Token ids of a prompt and of its completions, without padding. No completion is empty."""

    prompt: Sequence[int]
    completions: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        if not self.prompt or not all(self.completions):
            raise ValueError("a group has no empty prompt and no empty completion")


def stacked(rows: Sequence[Sequence[float]], fill: float = 0, device: torch.device | None = None) -> torch.Tensor:
    """(rows, longest) with `fill` after the end of shorter ones. Integers give int64, floats float32."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], device=device)
