"""Groups as one row of tokens without padding: `[prompt, completion 1, …, completion G, next prompt, …]`.

A completion's positions go on where its prompt ends, so each completion sees its prompt as if it stood alone behind it.
Who sees whom is the layout, which `attention.py` carries out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_core.prefix.groups import Group

Span = tuple[int, int]  # first position, and the one after the last


class Shared(NamedTuple):
    """Where a prompt and its completions stand in the row."""

    prompt: Span
    completions: tuple[Span, ...]


@dataclass(frozen=True)
class Packed:
    """`input_ids`, `position_ids`: (1, tokens). `tokens`: (N,), the completions' tokens one after another; `before`:
    (N,), the place in the row of the state that predicts each. `last`: (completions,), the place of each one's last
    token. `lengths`: of the completions.
    """

    input_ids: Tensor
    position_ids: Tensor
    layout: tuple[Shared, ...]
    tokens: Tensor
    before: Tensor
    last: Tensor
    lengths: tuple[int, ...]

    def mask(self) -> Tensor:
        """(completions, longest), 1 for the tokens of each completion."""
        lengths = torch.tensor(self.lengths, device=self.tokens.device)
        columns = torch.arange(max(self.lengths), device=self.tokens.device)
        return (columns < lengths[:, None]).long()

    def rows(self, values: Tensor) -> Tensor:
        """`values` (N, …), one of each completion's token, as (completions, longest, …) with 0 after the end."""
        there = self.mask().bool()
        spread = values.new_zeros(*there.shape, *values.shape[1:])
        return spread.masked_scatter(there.view(*there.shape, *[1] * (values.dim() - 1)), values)

    def states(self, before: Tensor, last: Tensor) -> Tensor:
        """(completions, 1 + longest, size): the state of the prompt's last token, then that of each token.

        `before`: (N, size), the states that predict the tokens; `last`: (completions, size), those of the last tokens.
        """
        spread = torch.cat([self.rows(before), before.new_zeros(len(last), 1, before.shape[1])], dim=1)
        rows = torch.arange(len(last), device=last.device)
        return spread.index_put((rows, torch.tensor(self.lengths, device=last.device)), last)


def pack(groups: Sequence[Group], device: torch.device | None = None) -> Packed:
    """All groups in one row."""
    ids: list[int] = []
    positions: list[int] = []
    before: list[int] = []
    layout, last, lengths = [], [], []
    for group in groups:
        start, size = len(ids), len(group.prompt)
        ids += group.prompt
        positions += range(size)
        spans = []
        for completion in group.completions:
            first = len(ids)
            ids += completion
            positions += range(size, size + len(completion))
            before += [start + size - 1, *range(first, len(ids) - 1)]
            spans.append((first, len(ids)))
            last.append(len(ids) - 1)
            lengths.append(len(completion))
        layout.append(Shared((start, start + size), tuple(spans)))
    tokens = [token for group in groups for completion in group.completions for token in completion]
    return Packed(
        torch.tensor([ids], device=device),
        torch.tensor([positions], device=device),
        tuple(layout),
        torch.tensor(tokens, device=device),
        torch.tensor(before, device=device),
        torch.tensor(last, device=device),
        tuple(lengths),
    )


def size(group: Group) -> int:
    """Tokens that a group takes in a packed row."""
    return len(group.prompt) + sum(map(len, group.completions))


def batches(groups: Sequence[Group], tokens: int) -> Iterator[list[Group]]:
    """The groups in their order, whole, as many at a time as `tokens` allow, and at least one."""
    batch: list[Group] = []
    total = 0
    for group in groups:
        if batch and total + size(group) > tokens:
            yield batch
            batch, total = [], 0
        batch.append(group)
        total += size(group)
    if batch:
        yield batch
