"""Sampling with shared prompts: each distinct prompt goes through the model once, and its keys and values are cached
once for all of its completions. Rows that are finished leave, and waiting ones take their places.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf_core.prefix.attention import Cache, PackedAttention
from rlhf_core.prefix.groups import Group, Rollout, Sampling
from rlhf_core.prefix.kernels import Span, attend
from rlhf_core.prefix.packed import batches, call, evaluating, pack, unwrap
from rlhf_core.prefix.sampler import Row, Sampler

PREFILL_TOKENS = 8192  # of prompts in one pass
MAX_ROWS = 256  # completions that are sampled beside each other
GROWTH = 64  # tokens by which the cache's capacity for completions grows


@torch.no_grad()
def rollout(model: Any, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[Rollout]:
    """As `rlhf_core.prefix.rollout`, by a model that shares prompts."""
    sampler = Sampler(sampling)
    waiting = deque(sampler.rows([prompt for prompt in prompts for _ in range(n)]))
    done: list[Row] = []
    with evaluating(model):
        batch = Batch(model, sampler)
        while waiting or batch.rows:
            if waiting and len(batch.rows) <= MAX_ROWS // 2:
                batch.enter([waiting.popleft() for _ in range(min(len(waiting), MAX_ROWS - len(batch.rows)))])
            done += batch.step()
    return sampler.rollouts(done)


class Batch:
    """Rows that are sampled together. `logits`: (rows, vocabulary), by which their next tokens are chosen."""

    def __init__(self, model: Any, sampler: Sampler) -> None:
        self.model, self.sampler = model, sampler
        self.device = unwrap(model).device
        self.rows: list[Row] = []
        self.logits = torch.empty(0)
        self.cache = DecodingCache(self.device)

    def enter(self, rows: list[Row]) -> None:
        """Prefill the prompts of `rows`, and add the rows."""
        last: dict[tuple[int, ...], Tensor] = {}
        new = [Group(prompt, []) for prompt in dict.fromkeys(row.prompt for row in rows)]
        for part in batches(new, PREFILL_TOKENS):
            packed = pack(part, self.device)
            metadata = PackedAttention(packed.spans, use_cache=True)
            ends = torch.tensor([spans.prompt[1] - 1 for spans in packed.spans], device=self.device)
            logits = call(self.model, packed.input_ids, packed.position_ids, metadata, ends).logits[0]
            last |= {tuple(group.prompt): row for group, row in zip(part, logits, strict=True)}
            self.cache.add_prompts(part, [spans.prompt for spans in packed.spans], metadata.take_cache()[0])
        entering = torch.stack([last[row.prompt] for row in rows])
        self.logits = torch.cat([self.logits, entering]) if self.rows else entering
        self.rows += rows
        self.cache.set_rows([row.prompt for row in self.rows])

    def step(self) -> list[Row]:
        """Choose every row's next token, and run the model on it where the row goes on. Returns the rows that end."""
        tokens = self.sampler.step(self.rows, self.logits)
        ended = [row for row in self.rows if self.sampler.ended(row)]
        if ended:
            stay = _compacted([not self.sampler.ended(row) for row in self.rows])
            self.rows = [self.rows[i] for i in stay]
            self.cache.compact(stay)
            self.cache.set_rows([row.prompt for row in self.rows])
            tokens = tokens[stay]
        if self.rows:
            self.cache.begin_token([len(row.tokens) - 1 for row in self.rows])
            positions = torch.tensor([[len(row.prompt) + len(row.tokens) - 1] for row in self.rows], device=self.device)
            self.logits = call(self.model, tokens[:, None], positions, self.cache).logits[:, 0]
        return ended


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
        self.slots = torch.tensor([owner * self.width + rank for owner, rank in slots], device=self.device)
        self.prompt_mask = _mask([len(name) for name in self.names], self.device)

    def compact(self, rows: Sequence[int]) -> None:
        """Keep these rows, as from `_compacted`. Those that have just entered stand last, and have nothing here yet."""
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

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        rows, heads, _, size = query.shape
        groups = key.shape[1]
        query = query.reshape(rows, groups, heads // groups, size)
        keys, values = self.with_capacity(layer, key)
        keys[self.at], values[self.at] = key[:, :, 0], value[:, :, 0]
        output, lse = attend(query, keys[:, :, : self.longest], values[:, :, : self.longest], self.mask, scale)
        prefix_output, prefix_lse = self._attend_to_prompts(query, *self.prompts[layer], scale)
        merged = torch.lerp(output, prefix_output, torch.sigmoid(prefix_lse - lse)[..., None].to(output.dtype))
        return merged.reshape(rows, heads, 1, size)

    def _attend_to_prompts(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """The rows of each prompt stand beside each other, so that its keys are read once for all of them."""
        _, groups, each, size = query.shape
        slots = query.new_zeros(len(self.names) * self.width, groups, each, size).index_copy(0, self.slots, query)
        slots = slots.unflatten(0, (len(self.names), self.width)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        output, lse = attend(slots, keys, values, self.prompt_mask, scale)
        output = output.unflatten(2, (each, self.width)).permute(0, 3, 1, 2, 4).flatten(0, 1)
        lse = lse.unflatten(2, (each, self.width)).permute(0, 3, 1, 2).flatten(0, 1)
        return output[self.slots], lse[self.slots]

    def with_capacity(self, layer: int, key: Tensor) -> tuple[Tensor, Tensor]:
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


def _compacted(stays: Sequence[bool]) -> list[int]:
    """The numbers of those that stay, where the last ones have filled the gaps."""
    count = sum(stays)
    last = [i for i in range(count, len(stays)) if stays[i]]
    return [i if stays[i] else last.pop() for i in range(count)]


def _mask(lengths: Sequence[int], device: torch.device) -> Tensor | None:
    """(rows, 1, 1, longest): minus infinity after the first `lengths` of each row, else 0. None where all are equal."""
    if not lengths or min(lengths) == max(lengths):
        return None
    beyond = torch.arange(max(lengths), device=device) >= torch.tensor(lengths, device=device)[:, None]
    return torch.zeros(beyond.shape, device=device).masked_fill(beyond, -torch.inf)[:, None, None]


def _padded(tensor: Tensor, longest: int) -> Tensor:
    """(rows, heads, tokens, size) with zeros up to `longest` tokens."""
    return pad(tensor, (0, 0, 0, longest - tensor.shape[2]))
