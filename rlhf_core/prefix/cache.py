"""Keys and values while completions are sampled: those of a prompt once, for all rows that share it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf_core.prefix.attention import Cache
from rlhf_core.prefix.groups import Group
from rlhf_core.prefix.kernels import Span, attend

GROWTH = 64  # tokens by which the capacity for completions grows


class DecodingCache:
    """Attention metadata of one new token a row, which attends to its prompt and to its completion's tokens so far.

    `prompts`: for each layer (prompts, heads, longest, size), padded on the right; `completions`: the same of the rows,
    with capacity for tokens to come.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.names: list[tuple[int, ...]] = []  # the tokens of each prompt
        self.prompts: Cache = {}
        self.completions: Cache = {}

    def add_prompts(self, groups: Sequence[Group], spans: Sequence[Span], cache: Cache) -> None:
        """Prompts that stand in a row at `spans`; `cache`: the row's."""
        self.names += [tuple(group.prompt) for group in groups]
        longest = max(map(len, self.names))
        for layer, pair in cache.items():
            new = [torch.cat([_padded(tensor[:, :, a:b], longest) for a, b in spans]) for tensor in pair]
            if layer in self.prompts:
                old = (_padded(tensor, longest) for tensor in self.prompts[layer])
                new = [torch.cat(pair) for pair in zip(old, new, strict=True)]
            self.prompts[layer] = new[0], new[1]

    def set_rows(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Which prompt each row has. Prompts that none has are dropped."""
        used = set(prompts)
        if len(used) < len(self.names):
            stay = [i for i, name in enumerate(self.names) if name in used]
            self.names = [self.names[i] for i in stay]
            longest = max(map(len, self.names), default=0)
            self.prompts = {
                layer: (k[stay, :, :longest], v[stay, :, :longest]) for layer, (k, v) in self.prompts.items()
            }
        number = {name: i for i, name in enumerate(self.names)}
        counts = [0] * len(self.names)
        slots = []  # (the row's prompt, its number among the rows of this prompt)
        for prompt in prompts:
            slots.append((number[prompt], counts[number[prompt]]))
            counts[number[prompt]] += 1
        self.width = max(counts, default=0)
        flat = [owner * self.width + rank for owner, rank in slots]
        self.contiguous = flat == list(range(len(self.names) * self.width))
        self.slots = torch.tensor(flat, device=self.device)
        self.prompt_mask = _mask([len(name) for name in self.names], self.device)

    def compact(self, rows: Sequence[int]) -> None:
        """`rows`: the numbers of those that stay, as from `compacted`. Rows that have just entered stand last, and have
        nothing here yet.
        """
        for layer, (keys, values) in self.completions.items():
            moves = [(to, of) for to, of in enumerate(rows) if to < of < len(keys)]
            if moves:
                to, of = map(list, zip(*moves, strict=True))
                keys[to], values[to] = keys[of], values[of]
            self.completions[layer] = keys[: len(rows)], values[: len(rows)]

    def begin_token(self, lengths: Sequence[int]) -> None:
        """A token comes to each row, behind `lengths` others of its completion."""
        self.longest = max(lengths) + 1
        self.mask = _mask([length + 1 for length in lengths], self.device)
        self.at: tuple[Any, ...] = slice(None), slice(None), lengths[0]
        if self.mask is not None:
            at = torch.tensor(lengths, device=self.device)
            self.at = torch.arange(len(lengths), device=self.device), slice(None), at

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        rows, heads, _, size = query.shape
        groups = key.shape[1]
        scale = size**-0.5 if scale is None else scale
        query = query.reshape(rows, groups, heads // groups, size)
        keys, values = self._with_capacity(layer, key)
        keys[self.at], values[self.at] = key[:, :, 0], value[:, :, 0]
        output, lse = attend(query, keys[:, :, : self.longest], values[:, :, : self.longest], self.mask, scale)
        prefix_output, prefix_lse = self._attend_to_prompts(query, *self.prompts[layer], scale)
        merged = torch.lerp(output, prefix_output, torch.sigmoid(prefix_lse - lse)[..., None].to(output.dtype))
        return merged.reshape(rows, heads, 1, size)

    def _attend_to_prompts(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """The rows of each prompt stand beside each other, so that its keys are read once for all of them."""
        _, groups, each, size = query.shape
        slots = query
        if not self.contiguous:
            slots = query.new_zeros(len(self.names) * self.width, groups, each, size).index_copy(0, self.slots, query)
        slots = slots.unflatten(0, (len(self.names), self.width)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        output, lse = attend(slots, keys, values, self.prompt_mask, scale)
        output = output.unflatten(2, (each, self.width)).permute(0, 3, 1, 2, 4).flatten(0, 1)
        lse = lse.unflatten(2, (each, self.width)).permute(0, 3, 1, 2).flatten(0, 1)
        return (output, lse) if self.contiguous else (output[self.slots], lse[self.slots])

    def _with_capacity(self, layer: int, key: Tensor) -> tuple[Tensor, Tensor]:
        """(keys, values) of the completions, with capacity for one more token, and for rows that entered."""
        rows, groups, _, size = key.shape
        if layer not in self.completions:
            self.completions[layer] = key.new_zeros(0, groups, 0, size), key.new_zeros(0, groups, 0, size)
        keys, values = self.completions[layer]
        more_rows, more = rows - keys.shape[0], self.longest - keys.shape[2]
        if more_rows > 0 or more > 0:
            by = (0, 0, 0, GROWTH if more > 0 else 0, 0, 0, 0, more_rows)
            self.completions[layer] = pad(keys, by), pad(values, by)
        return self.completions[layer]


def compacted(stays: Sequence[bool]) -> list[int]:
    """The numbers of those that stay, where the last ones have filled the gaps."""
    count = sum(stays)
    last = [i for i in range(count, len(stays)) if stays[i]]
    return [i if stays[i] else last.pop() for i in range(count)]


def _mask(lengths: Sequence[int], device: torch.device) -> Tensor | None:
    """(rows, 1, 1, longest): 0 for the first `lengths` of each row, minus infinity after them; None where all are as
    long as the longest.
    """
    if not lengths or min(lengths) == max(lengths):
        return None
    beyond = torch.arange(max(lengths), device=device) >= torch.tensor(lengths, device=device)[:, None]
    return torch.zeros(beyond.shape, device=device).masked_fill(beyond, -torch.inf)[:, None, None]


def _padded(tensor: Tensor, longest: int) -> Tensor:
    """(rows, heads, tokens, size) with zeros up to `longest` tokens."""
    return pad(tensor, (0, 0, 0, longest - tensor.shape[2]))
