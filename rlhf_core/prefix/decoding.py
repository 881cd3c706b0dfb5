"""Sampling with shared prompts: each distinct prompt goes through the model once, and its keys and values are cached
once for all of its completions. Rows that are finished leave, and waiting ones take their places.

Random numbers belong to a row, not to the batch: with the same seed a row gets the same numbers whatever runs beside
it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.generation import logits_process

from rlhf_core.errors import RunStopped
from rlhf_core.prefix.attention import Cache, PackedAttention
from rlhf_core.prefix.groups import Group, Rollout, Sampling
from rlhf_core.prefix.kernels import Span, attend
from rlhf_core.prefix.packed import batches, call, evaluating, pack, unwrap

PREFILL_TOKENS = 8192  # of prompts in one pass
MAX_ROWS = 256  # completions that are sampled beside each other
NOT_NUMBERS = (
    "the model's log-probabilities are not numbers (NaN) while it samples: its weights are broken, or its precision is too "
    "small for it. Try --dtype float32 (or bfloat16 instead of float16), a lower --learning-rate, or the last checkpoint"
)
GROWTH = 64  # tokens by which the cache's capacity for completions grows


@torch.no_grad()
def rollout(model: Any, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[Rollout]:
    """As `rlhf_core.prefix.rollout`, by a model that shares prompts."""
    wanted = [tuple(prompt) for prompt in prompts for _ in range(n)]
    numbers = uniforms(len(wanted), sampling)
    waiting = deque(_Row(i, prompt, numbers[i]) for i, prompt in enumerate(wanted))
    done: list[_Row] = []
    with evaluating(model):
        batch = _Batch(model, sampling)
        while waiting or batch.rows:
            if waiting and len(batch.rows) <= MAX_ROWS // 2:
                batch.enter([waiting.popleft() for _ in range(min(len(waiting), MAX_ROWS - len(batch.rows)))])
            done += batch.step()
    return [row.finished(sampling.eos_token_ids) for row in sorted(done, key=lambda row: row.number)]


def uniforms(rows: int, sampling: Sampling) -> Tensor:
    """(rows, max_new_tokens), in [0, 1): from `seed` and the row's number, or from the generator that all share."""
    if sampling.seed is None:
        return torch.rand(rows, sampling.max_new_tokens, dtype=torch.float64)
    generators = [torch.Generator().manual_seed(sampling.seed * 1_000_003 + row) for row in range(rows)]
    return torch.stack([torch.rand(sampling.max_new_tokens, dtype=torch.float64, generator=g) for g in generators])


@dataclass
class _Row:
    """One completion under way. `uniforms`: (max_new_tokens,), a number for each token to come."""

    number: int
    prompt: tuple[int, ...]
    uniforms: Tensor
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)

    def finished(self, eos_token_ids: Sequence[int]) -> Rollout:
        return Rollout(list(self.prompt), self.tokens, self.logps, self.tokens[-1] in eos_token_ids)


class _Batch:
    """Rows that are sampled together. `logits`: (rows, vocabulary), by which their next tokens are chosen."""

    def __init__(self, model: Any, sampling: Sampling) -> None:
        self.model, self.sampling = model, sampling
        self.device = unwrap(model).device
        self.rows: list[_Row] = []
        self.logits = torch.empty(0)
        self.cache = _DecodingCache(self.device)
        self.penalty, self.filters = _processors(sampling)

    def enter(self, rows: list[_Row]) -> None:
        """Prefill the prompts of `rows`, and add the rows."""
        last: dict[tuple[int, ...], Tensor] = {}
        new = [Group(prompt, []) for prompt in dict.fromkeys(row.prompt for row in rows)]
        for part in batches(new, PREFILL_TOKENS):
            packed = pack(part, self.device)
            metadata = PackedAttention(packed.spans, use_cache=True)
            ends = torch.tensor([spans.prompt[1] - 1 for spans in packed.spans], device=self.device)
            logits = call(self.model, packed.input_ids, packed.position_ids, metadata, ends).logits[0]
            last |= {tuple(group.prompt): row for group, row in zip(part, logits, strict=True)}
            self.cache.add_prompts(part, [spans.prompt for spans in packed.spans], metadata.cache)
        entering = torch.stack([last[row.prompt] for row in rows])
        self.logits = torch.cat([self.logits, entering]) if self.rows else entering
        self.rows += rows
        self.cache.set_rows([row.prompt for row in self.rows])

    def step(self) -> list[_Row]:
        """Choose every row's next token, and run the model on it where the row goes on. Returns the rows that end."""
        tokens, logps = self._choose(self.logits.float())
        chosen = torch.stack([tokens.float(), logps]).tolist()  # one read from the device; float32 has all token ids
        for row, token, logp in zip(self.rows, *chosen, strict=True):
            if math.isnan(logp):
                raise RunStopped(NOT_NUMBERS)
            row.tokens.append(int(token))
            row.logps.append(logp)
        ended = [row for row in self.rows if self._ended(row)]
        if ended:
            stay = _compacted([not self._ended(row) for row in self.rows])
            self.rows = [self.rows[i] for i in stay]
            self.cache.compact(stay)
            self.cache.set_rows([row.prompt for row in self.rows])
            tokens = tokens[stay]
        if self.rows:
            self.cache.begin_token([len(row.tokens) - 1 for row in self.rows])
            positions = torch.tensor([[len(row.prompt) + len(row.tokens) - 1] for row in self.rows], device=self.device)
            self.logits = call(self.model, tokens[:, None], positions, self.cache).logits[:, 0]
        return ended

    def _ended(self, row: _Row) -> bool:
        return row.tokens[-1] in self.sampling.eos_token_ids or len(row.tokens) == self.sampling.max_new_tokens

    def _choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(token, its log-probability at the sampling temperature), (rows,) each."""
        if self.penalty is not None:
            seen = [[*row.prompt, *row.tokens] for row in self.rows]
            longest = max(map(len, seen))
            filled = [[*row, *[row[0]] * (longest - len(row))] for row in seen]
            logits = self.penalty(torch.tensor(filled, device=self.device), logits)
        logps = torch.log_softmax(logits / self.sampling.temperature, dim=-1)
        if self.sampling.greedy:
            tokens = logits.argmax(-1)
        else:
            bounds = self.filters(None, logps).double().softmax(-1).cumsum(-1)
            total = bounds[:, -1]
            points = torch.stack([row.uniforms[len(row.tokens)] for row in self.rows]).to(self.device) * total
            points = torch.minimum(points, torch.nextafter(total, torch.zeros_like(total)))
            # Beyond the last token if the logits are not numbers, which the log-probabilities then say.
            tokens = torch.searchsorted(bounds, points[:, None], right=True)[:, 0].clamp(max=bounds.shape[1] - 1)
        return tokens, logps.gather(-1, tokens[:, None])[:, 0]


def _processors(sampling: Sampling) -> tuple[Any, logits_process.LogitsProcessorList]:
    """(the repetition penalty or None, what leaves tokens out), in the order of transformers' `generate`."""
    penalty = sampling.repetition_penalty
    filters = logits_process.LogitsProcessorList()
    if sampling.top_k:
        filters.append(logits_process.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        filters.append(logits_process.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        filters.append(logits_process.MinPLogitsWarper(sampling.min_p))
    return None if penalty == 1 else logits_process.RepetitionPenaltyLogitsProcessor(penalty), filters


class _DecodingCache:
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

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        rows, heads, _, size = query.shape
        groups = key.shape[1]
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
        slots = query.new_zeros(len(self.names) * self.width, groups, each, size).index_copy(0, self.slots, query)
        slots = slots.unflatten(0, (len(self.names), self.width)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        output, lse = attend(slots, keys, values, self.prompt_mask, scale)
        output = output.unflatten(2, (each, self.width)).permute(0, 3, 1, 2, 4).flatten(0, 1)
        lse = lse.unflatten(2, (each, self.width)).permute(0, 3, 1, 2).flatten(0, 1)
        return output[self.slots], lse[self.slots]

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
