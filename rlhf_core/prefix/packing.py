"""Groups as one row of tokens without padding: `[prompt, completion 1, …, completion G, next prompt, …]`.

A completion's positions go on where its prompt ends, so each completion sees its prompt as if it stood alone behind it.
`attention.py` sees to it that nothing attends to anything else, by the spans that are given here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_core.prefix.groups import Group
from rlhf_core.prefix.kernels import Span


class GroupSpans(NamedTuple):
    """Where a prompt and its completions stand in the row."""

    prompt: Span
    completions: tuple[Span, ...]


@dataclass(frozen=True)
class Packed:
    """`input_ids`, `position_ids`: (1, tokens). `spans`: of each group. `tokens`: (N,), the completions' tokens one
    after another; `previous`: (N,), the index in the row of the token before each, whose state predicts it. `last`:
    (completions,), the index of each one's last token. `lengths`: of the completions.
    """

    input_ids: Tensor
    position_ids: Tensor
    spans: tuple[GroupSpans, ...]
    tokens: Tensor
    previous: Tensor
    last: Tensor
    lengths: tuple[int, ...]

    def mask(self) -> Tensor:
        """(completions, longest), 1 for the tokens of each completion."""
        lengths = torch.tensor(self.lengths, device=self.tokens.device)
        columns = torch.arange(max(self.lengths), device=self.tokens.device)
        return (columns < lengths[:, None]).long()

    def rows(self, values: Tensor) -> Tensor:
        """`values` (N, …), one of each completion's token, as (completions, longest, …) with 0 after the end."""
        mask = self.mask().bool()
        padded = values.new_zeros(*mask.shape, *values.shape[1:])
        return padded.masked_scatter(mask.view(*mask.shape, *[1] * (values.dim() - 1)), values)

    def states(self, previous: Tensor, last: Tensor) -> Tensor:
        """(completions, 1 + longest, size): the state of the prompt's last token, then that of each token.

        `previous`: (N, size), the states that predict the tokens; `last`: (completions, size), of the last tokens.
        """
        padded = torch.cat([self.rows(previous), previous.new_zeros(len(last), 1, previous.shape[1])], dim=1)
        rows = torch.arange(len(last), device=last.device)
        return padded.index_put((rows, torch.tensor(self.lengths, device=last.device)), last)


def pack(groups: Sequence[Group], device: torch.device | None = None) -> Packed:
    """All groups in one row."""
    ids: list[int] = []
    positions: list[int] = []
    tokens: list[int] = []
    previous: list[int] = []
    spans, last, lengths = [], [], []
    for group in groups:
        start, size = len(ids), len(group.prompt)
        ids += group.prompt
        positions += range(size)
        completions = []
        for completion in group.completions:
            first = len(ids)
            ids += completion
            tokens += completion
            positions += range(size, size + len(completion))
            previous += [start + size - 1, *range(first, len(ids) - 1)]
            completions.append((first, len(ids)))
            last.append(len(ids) - 1)
            lengths.append(len(completion))
        spans.append(GroupSpans((start, start + size), tuple(completions)))
    return Packed(
        torch.tensor([ids], device=device),
        torch.tensor([positions], device=device),
        tuple(spans),
        torch.tensor(tokens, device=device),
        torch.tensor(previous, device=device),
        torch.tensor(last, device=device),
        tuple(lengths),
    )


def size(group: Group) -> int:
    """Tokens that a group takes in a packed row."""
    return len(group.prompt) + sum(map(len, group.completions))


def batches(groups: Sequence[Group], token_budget: int) -> Iterator[list[Group]]:
    """The groups in their order, whole, as many at a time as `token_budget` allows, and at least one."""
    batch: list[Group] = []
    total = 0
    for group in groups:
        if batch and total + size(group) > token_budget:
            yield batch
            batch, total = [], 0
        batch.append(group)
        total += size(group)
    if batch:
        yield batch
