"""The batches of PPO: the prompts to answer, and the answers with what was computed from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_core.prefix import Group, on_device


@dataclass
class Experience:
    """Rollouts and what is computed from them once. Tensors are (completions, tokens); `mask` is 1 for a token in the
    loss, `weights` what its policy loss is multiplied by where vLLM sampled it.
    """

    groups: list[Group]
    mask: Tensor
    logps: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    in_loss: list[bool] | None = None  # which completions have tokens in the loss; None: all
    weights: Tensor | None = None
    tokens: Tensor | None = None  # how many are in the loss of the full minibatch, in all processes

    def rows(self, chosen: list[int]) -> Experience:
        """Some completions, without columns that only longer ones use."""
        width = max(len(self.groups[i].completions[0]) for i in chosen)
        index = on_device(chosen, self.mask.device)

        def part(tensor: Tensor) -> Tensor:
            return tensor[:, :width].index_select(0, index)

        return Experience(
            [self.groups[i] for i in chosen],
            *map(part, (self.mask, self.logps, self.values, self.advantages, self.returns)),
            None if self.in_loss is None else [self.in_loss[i] for i in chosen],
            None if self.weights is None else part(self.weights),
        )


class PromptBatches:
    """Row numbers of one process: each batch of rollouts `repeats` times, prompts in a new order every epoch.

    The order depends on `seed` alone; the processes take turns in it, so that together they read what one process
    would.
    """

    def __init__(self, rows: int, size: int, repeats: int, passes: int, *, seed: int, rank: int, world: int) -> None:
        self.rows, self.size, self.repeats, self.passes = rows, size, repeats, passes
        self.seed, self.rank, self.world = seed, rank, world

    def __len__(self) -> int:
        return self.passes

    def __iter__(self) -> Iterator[list[int]]:
        stream = self._stream()
        for _ in range(-(-self.passes // self.repeats)):
            all_rows = [next(stream) for _ in range(self.size * self.world)]
            mine = all_rows[self.rank * self.size : (self.rank + 1) * self.size]
            for _ in range(self.repeats):
                yield mine

    def _stream(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield from torch.randperm(self.rows, generator=generator).tolist()
