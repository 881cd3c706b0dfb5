"""Sampling with shared prompts: each distinct prompt goes through the model once, and its keys and values are cached
once for all of its completions. Rows that are finished leave, and waiting ones take their places.

Random numbers belong to a row, not to the batch: with the same seed a row gets the same numbers whatever runs beside
it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.generation import logits_process

from rlhf_core.prefix.attention import PackedAttention
from rlhf_core.prefix.cache import DecodingCache, compacted
from rlhf_core.prefix.groups import Group, Rollout, Sampling
from rlhf_core.prefix.packed import batches, call, evaluating, pack, unwrap

PREFILL_TOKENS = 8192  # of prompts in one pass
MAX_ROWS = 256  # completions that are sampled beside each other


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
        self.cache = DecodingCache(self.device)
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
        chosen = torch.stack([tokens.double(), logps.double()]).tolist()  # read from the device once
        for row, token, logp in zip(self.rows, *chosen, strict=True):
            row.tokens.append(int(token))
            row.logps.append(logp)
        ended = [row for row in self.rows if self._ended(row)]
        if ended:
            stay = compacted([not self._ended(row) for row in self.rows])
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
            tokens = torch.searchsorted(bounds, points[:, None], right=True)[:, 0]
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
