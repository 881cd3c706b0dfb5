"""Sampling with shared prompts: each distinct prompt goes through the model once, and its keys and values are kept once
for all of its completions. Rows that are finished leave, and waiting ones take their places.

Random numbers belong to a row, not to the batch: with the same seed a row gets the same numbers whatever runs beside
it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rlhf_core.prefix.attention import PackedPath, attend
from rlhf_core.prefix.checkpointing import applies
from rlhf_core.prefix.few_rows import on_few_rows
from rlhf_core.prefix.groups import Group, Rollout, Sampling, stacked
from rlhf_core.prefix.lean import Step
from rlhf_core.prefix.packing import Span, batches, pack
from rlhf_core.prefix.sampled import Sampled, SampledStates, States, outputs_of_layers
from rlhf_core.prefix.shared import call, unwrap

PREFILL_TOKENS = 8192  # of prompts in one pass
ROWS_AT_ONCE = 256  # completions that are sampled beside each other
GROWTH = 64  # tokens by which the room for completions grows


@torch.no_grad()
def rollout(
    model: Any,
    prompts: Sequence[Sequence[int]],
    n: int,
    sampling: Sampling,
    sampled: SampledStates | None = None,
) -> list[Rollout]:
    """As `rlhf_core.prefix.rollout`, by a model that shares prompts."""
    wanted = [tuple(prompt) for prompt in prompts for _ in range(n)]
    given = chances(len(wanted), sampling)
    waiting = deque(_Row(i, prompt, given[i]) for i, prompt in enumerate(wanted))
    sampled = sampled if applies(unwrap(model)) else None
    was_training = model.training
    model.eval()
    with on_few_rows(unwrap(model)) as computed:
        done = _sampled(_Batch(model, sampling, Step(model, computed), sampled), waiting)
    model.train(was_training)
    return [row.finished(sampling.eos_token_ids) for row in sorted(done, key=lambda row: row.number)]


def _sampled(batch: _Batch, waiting: deque[_Row]) -> list[_Row]:
    """All rows, in the order in which they end."""
    done: list[_Row] = []
    while waiting or batch.rows:
        if waiting and len(batch.rows) <= ROWS_AT_ONCE // 2:
            batch.enter([waiting.popleft() for _ in range(min(len(waiting), ROWS_AT_ONCE - len(batch.rows)))])
        done += batch.step()
    return done


def chances(rows: int, sampling: Sampling) -> Tensor:
    """(rows, max_new_tokens), uniform: from `seed` and the row's number, or from the generator that all share."""
    if sampling.seed is None:
        return torch.rand(rows, sampling.max_new_tokens, dtype=torch.float64)
    generators = [torch.Generator().manual_seed(sampling.seed * 1_000_003 + row) for row in range(rows)]
    return torch.stack([torch.rand(sampling.max_new_tokens, dtype=torch.float64, generator=g) for g in generators])


@dataclass
class _Row:
    """One completion under way. `chances`: (max_new_tokens,), a uniform number for each token to come."""

    number: int
    prompt: tuple[int, ...]
    chances: Tensor
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)  # where they are kept
    states: States = field(default_factory=States)  # of every token but the last, where they are kept

    def finished(self, ends: Sequence[int]) -> Rollout:
        return Rollout(list(self.prompt), self.tokens, self.logps, self.tokens[-1] in ends)


class _Batch:
    """Rows that are sampled together. `logits`: (rows, vocabulary), by which their next tokens are chosen."""

    def __init__(self, model: Any, sampling: Sampling, decode: Step, sampled: SampledStates | None) -> None:
        self.model, self.sampling, self.decode, self.sampled = model, sampling, decode, sampled
        self.device = unwrap(model).device
        self.rows: list[_Row] = []
        self.logits = torch.empty(0)
        self.path = _DecodingPath()
        self.penalty, self.choice = _processors(sampling)
        if sampled:
            sampled.temperature = None if self.penalty else sampling.temperature

    def enter(self, rows: list[_Row]) -> None:
        """Prefill the prompts that are new, and add the rows."""
        last: dict[tuple[int, ...], Tensor] = {}
        new = [Group(prompt, []) for prompt in dict.fromkeys(row.prompt for row in rows)]
        for part in batches(new, PREFILL_TOKENS):
            packed = pack(part, self.device)
            path = PackedPath(packed.layout, keep=True)
            ends = torch.tensor([shared.prompt[1] - 1 for shared in packed.layout], device=self.device)
            watched = outputs_of_layers(self.model) if self.sampled else nullcontext(list[Tensor]())
            with watched as outputs:
                found = call(self.model, packed.input_ids, packed.position_ids, path, ends).logits[0]
            if self.sampled:
                for group, shared in zip(part, packed.layout, strict=True):
                    own = slice(*shared.prompt)
                    self.sampled.add_prompt(tuple(group.prompt), [output[0, own] for output in outputs])
            last |= {tuple(group.prompt): row for group, row in zip(part, found, strict=True)}
            self.path.add_prompts(part, [shared.prompt for shared in packed.layout], path.kept)
        entering = torch.stack([last[row.prompt] for row in rows])
        self.logits = torch.cat([self.logits, entering]) if self.rows else entering
        self.rows += rows
        self.path.arrange([row.prompt for row in self.rows])

    def step(self) -> list[_Row]:
        """Choose every row's next token, and run the model on it where the row goes on. Returns the rows that end."""
        tokens, logps, entropies = self._choose(self.logits.float())
        for row, token, logp, entropy in zip(self.rows, tokens.tolist(), logps.tolist(), entropies, strict=True):
            row.tokens.append(token)
            row.logps.append(logp)
            row.entropies.append(entropy)
        ended = [row for row in self.rows if self._ended(row)]
        if ended:
            self._keep(ended)
            stay = _closed_up([not self._ended(row) for row in self.rows])
            self.rows = [self.rows[i] for i in stay]
            self.path.keep_rows(stay)
            self.path.arrange([row.prompt for row in self.rows])
            tokens = tokens[stay]
        if self.rows:
            self.path.begin([len(row.tokens) - 1 for row in self.rows], self.device)
            positions = torch.tensor([[len(row.prompt) + len(row.tokens) - 1] for row in self.rows], device=self.device)
            self.logits = self.decode(tokens, positions, self.path)
            if self.sampled and self.decode.outputs:
                for row, states in zip(self.rows, torch.stack(self.decode.outputs, dim=1), strict=True):
                    row.states.append(states)
        return ended

    def _keep(self, ended: list[_Row]) -> None:
        for row in ended:
            if self.sampled and len(row.states) == len(row.tokens) - 1:
                self.sampled.add(row.prompt, tuple(row.tokens), Sampled(row.states, row.logps, row.entropies))

    def _ended(self, row: _Row) -> bool:
        return row.tokens[-1] in self.sampling.eos_token_ids or len(row.tokens) == self.sampling.max_new_tokens

    def _choose(self, logits: Tensor) -> tuple[Tensor, Tensor, list[float]]:
        """(token, its log-probability at the sampling temperature, entropy in nats where it is kept), (rows,) each."""
        if self.penalty is not None:
            seen = [[*row.prompt, *row.tokens] for row in self.rows]
            longest = max(map(len, seen))
            filled = [[*row, *[row[0]] * (longest - len(row))] for row in seen]
            logits = self.penalty(torch.tensor(filled, device=self.device), logits)
        logps = torch.log_softmax(logits / self.sampling.temperature, dim=-1)
        if self.sampling.greedy:
            tokens = logits.argmax(-1)
        else:
            bounds = self.choice(None, logps).double().softmax(-1).cumsum(-1)
            total = bounds[:, -1]
            points = torch.stack([row.chances[len(row.tokens)] for row in self.rows]).to(self.device) * total
            points = torch.minimum(points, torch.nextafter(total, torch.zeros_like(total)))
            tokens = torch.searchsorted(bounds, points[:, None], right=True)[:, 0]
        entropies = -(logps.exp() * logps).sum(-1) if self.sampled else torch.zeros(len(logps))
        return tokens, logps.gather(-1, tokens[:, None])[:, 0], entropies.tolist()


def _closed_up(stays: Sequence[bool]) -> list[int]:
    """The places of those that stay, where the last ones have filled the gaps."""
    count = sum(stays)
    last = [place for place in range(count, len(stays)) if stays[place]]
    return [place if stays[place] else last.pop() for place in range(count)]


def _processors(sampling: Sampling) -> tuple[Any, LogitsProcessorList]:
    """(the repetition penalty or None, what leaves tokens out), in the order of transformers' `generate`."""
    penalty = sampling.repetition_penalty
    choice = LogitsProcessorList()
    if sampling.top_k:
        choice.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        choice.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        choice.append(MinPLogitsWarper(sampling.min_p))
    return None if penalty == 1 else RepetitionPenaltyLogitsProcessor(penalty), choice


class _DecodingPath:
    """One new token a row, which attends to its prompt, kept once for all rows that share it, and to its own tokens.

    `prompts`: for each layer (prompts, heads, longest, size), padded on the right; `own`: the same of the rows.
    """

    def __init__(self) -> None:
        self.names: list[tuple[int, ...]] = []
        self.prompts: dict[int, tuple[Tensor, Tensor]] = {}
        self.own: dict[int, tuple[Tensor, Tensor]] = {}

    def add_prompts(
        self, groups: Sequence[Group], spans: Sequence[Span], kept: dict[int, tuple[Tensor, Tensor]]
    ) -> None:
        """Prompts that stand in a row at `spans`, with the row's keys and values (1, heads, tokens, size)."""
        self.names += [tuple(group.prompt) for group in groups]
        longest = max(map(len, self.names))
        for layer, pair in kept.items():
            new = [torch.cat([_longer(tensor[:, :, a:b], longest) for a, b in spans]) for tensor in pair]
            if layer in self.prompts:
                there = (_longer(tensor, longest) for tensor in self.prompts[layer])
                new = [torch.cat(pair) for pair in zip(there, new, strict=True)]
            self.prompts[layer] = new[0], new[1]

    def arrange(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Note which prompt each row has, and forget prompts that none has."""
        used = set(prompts)
        if len(used) < len(self.names):
            stay = [i for i, name in enumerate(self.names) if name in used]
            self.names = [self.names[i] for i in stay]
            longest = max(map(len, self.names), default=0)
            self.prompts = {
                layer: tuple(tensor[stay, :, :longest] for tensor in pair) for layer, pair in self.prompts.items()
            }
        number = {name: i for i, name in enumerate(self.names)}
        counts = [0] * len(self.names)
        places = []
        for prompt in prompts:
            places.append((number[prompt], counts[number[prompt]]))
            counts[number[prompt]] += 1
        self.width = max(counts, default=0)
        self.places = [owner * self.width + rank for owner, rank in places]
        self.contiguous = self.places == list(range(len(self.names) * self.width))

    def keep_rows(self, rows: Sequence[int]) -> None:
        """`rows`: the places of those that stay, as from `_closed_up`. Rows that have just entered stand last, and have
        nothing here yet.
        """
        for layer, pair in self.own.items():
            for tensor in pair:
                for place, before in enumerate(rows):
                    if place < before < len(tensor):
                        tensor[place] = tensor[before]
            self.own[layer] = pair[0][: len(rows)], pair[1][: len(rows)]

    def begin(self, lengths: Sequence[int], device: torch.device) -> None:
        """A token comes to each row, behind `lengths` others of its own."""
        self.most = max(lengths) + 1
        self.place = torch.tensor(self.places, device=device)
        everywhere = slice(None)
        if min(lengths) == max(lengths):
            self.at: tuple[Any, ...] = everywhere, everywhere, lengths[0]
            self.own_mask = None
        else:
            rows = torch.arange(len(lengths), device=device)
            self.at = rows, everywhere, torch.tensor(lengths, device=device)
            self.own_mask = _mask([n + 1 for n in lengths], device)
        sizes = [len(name) for name in self.names]
        self.prompt_mask = None if min(sizes) == max(sizes) else _mask(sizes, device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        rows, heads, _, size = query.shape
        groups = key.shape[1]
        scale = size**-0.5 if scale is None else scale
        query = query.reshape(rows, groups, heads // groups, size)
        keys, values = self._room(layer, key)
        keys[self.at], values[self.at] = key[:, :, 0], value[:, :, 0]
        own, own_lse = attend(query, keys[:, :, : self.most], values[:, :, : self.most], self.own_mask, scale)
        shared, shared_lse = self._attend_prompts(query, *self.prompts[layer], scale)
        merged = torch.lerp(own, shared, torch.sigmoid(shared_lse - own_lse)[..., None].to(own.dtype))
        return merged.reshape(rows, heads, 1, size)

    def _attend_prompts(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """The rows of each prompt stand beside each other, so that its keys are read once for all of them."""
        _, groups, each, size = query.shape
        spread = query
        if not self.contiguous:
            spread = query.new_zeros(len(self.names) * self.width, groups, each, size).index_copy(0, self.place, query)
        spread = spread.unflatten(0, (len(self.names), self.width)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        output, lse = attend(spread, keys, values, self.prompt_mask, scale)
        output = output.unflatten(2, (each, self.width)).permute(0, 3, 1, 2, 4).flatten(0, 1)
        lse = lse.unflatten(2, (each, self.width)).permute(0, 3, 1, 2).flatten(0, 1)
        return (output, lse) if self.contiguous else (output[self.place], lse[self.place])

    def _room(self, layer: int, key: Tensor) -> tuple[Tensor, Tensor]:
        """(keys, values) of the rows' own tokens, with room for one more token, and for rows that entered."""
        rows, groups, _, size = key.shape
        there = self.own.get(layer) or tuple(key.new_zeros(0, groups, 0, size) for _ in range(2))
        more_rows, more = rows - there[0].shape[0], self.most - there[0].shape[2]
        if more_rows > 0 or more > 0:
            there = tuple(pad(t, (0, 0, 0, GROWTH if more > 0 else 0, 0, 0, 0, more_rows)) for t in there)
            self.own[layer] = there
        return there


def _mask(sizes: Sequence[int], device: torch.device) -> Tensor:
    """(rows, 1, 1, longest): 0 for the first `sizes` of each row, minus infinity after them."""
    there = stacked([[0.0] * size for size in sizes], -torch.inf, device)
    return there[:, None, None]


def _longer(tensor: Tensor, longest: int) -> Tensor:
    """(rows, heads, tokens, size) with zeros up to `longest` tokens."""
    return pad(tensor, (0, 0, 0, longest - tensor.shape[2]))
