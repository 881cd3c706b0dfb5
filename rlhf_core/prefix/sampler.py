"""How the next tokens of rows are chosen from logits, whichever way those are computed, without a read from the device.

Random numbers belong to a row, not to the batch: with the same seed a row gets the same numbers whatever runs beside
it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.generation import logits_process

from rlhf_core.errors import RunStopped
from rlhf_core.prefix.groups import Rollout, Sampling

NOT_NUMBERS = (
    "the model's log-probabilities are not numbers (NaN) while it samples: its weights are broken, or its precision is "
    "too small for it. Try --dtype float32 or bfloat16, a lower --learning-rate, or the last checkpoint"
)


@dataclass
class Row:
    """One completion under way. `uniforms`: (max_new_tokens,), a number for each token to come."""

    number: int
    prompt: tuple[int, ...]
    uniforms: Tensor
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)


class Sampler:
    """Chooses tokens as `sampling` says."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.filters = _filters(sampling)

    @property
    def needs_seen(self) -> bool:
        return self.sampling.repetition_penalty != 1

    def rows(self, prompts: Sequence[Sequence[int]]) -> list[Row]:
        numbers = uniforms(len(prompts), self.sampling)
        return [Row(i, tuple(prompt), numbers[i]) for i, prompt in enumerate(prompts)]

    def choose(self, logits: Tensor, points: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(token, its log-probability at the temperature alone), (rows,) each, by `logits` (rows, vocabulary).

        `points`: (rows,), of the rows' random numbers those of this token. `seen`: (rows, vocabulary), whether a token
        is in a row already, which a penalty for repetition needs. Of logits that are not numbers the log-probability is
        none either.
        """
        logits = logits.float()
        logps = scores = torch.log_softmax(logits / self.sampling.temperature, dim=-1)
        if seen is not None:
            penalty = self.sampling.repetition_penalty
            logits = torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
            scores = logits / self.sampling.temperature
        if self.sampling.greedy:
            tokens = logits.argmax(-1)
        else:
            bounds = self.filters(None, scores).double().softmax(-1).cumsum(-1)
            total = bounds[:, -1]
            points = torch.minimum(points * total, torch.nextafter(total, torch.zeros_like(total)))
            # Beyond the last token if the logits are not numbers.
            tokens = torch.searchsorted(bounds, points[:, None], right=True)[:, 0].clamp(max=bounds.shape[1] - 1)
        return tokens, logps.gather(-1, tokens[:, None])[:, 0]

    def append(self, row: Row, token: int, logp: float) -> None:
        """Raises `RunStopped` if the logits were not numbers."""
        if math.isnan(logp):
            raise RunStopped(NOT_NUMBERS)
        row.tokens.append(token)
        row.logps.append(logp)

    def step(self, rows: Sequence[Row], logits: Tensor) -> None:
        """Choose the next token of each row and append it."""
        points = torch.stack([row.uniforms[len(row.tokens)] for row in rows]).to(logits.device)
        seen = seen_in([[*row.prompt, *row.tokens] for row in rows], logits) if self.needs_seen else None
        tokens, logps = self.choose(logits, points, seen)
        for row, token, logp in zip(rows, tokens.tolist(), logps.tolist(), strict=True):
            self.append(row, token, logp)

    def left(self, row: Row) -> int:
        """Tokens that may come behind the last, which is under way if the row has none yet."""
        return self.sampling.max_new_tokens - max(1, len(row.tokens))

    def ended(self, row: Row) -> bool:
        return row.tokens[-1] in self.sampling.eos_token_ids or len(row.tokens) == self.sampling.max_new_tokens

    def rollouts(self, done: Sequence[Row]) -> list[Rollout]:
        """Rows that have ended, in the order that they came in."""
        return [
            Rollout(list(row.prompt), row.tokens, row.logps, row.tokens[-1] in self.sampling.eos_token_ids)
            for row in sorted(done, key=lambda row: row.number)
        ]


def seen_in(texts: Sequence[Sequence[int]], logits: Tensor) -> Tensor:
    """(rows, vocabulary): whether each token is in each text."""
    seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    rows = torch.tensor([row for row, text in enumerate(texts) for _ in text], device=logits.device)
    seen[rows, torch.tensor([token for text in texts for token in text], device=logits.device)] = True
    return seen


def uniforms(rows: int, sampling: Sampling) -> Tensor:
    """(rows, max_new_tokens), in [0, 1): from `seed` and the row's number, or from the generator that all share."""
    if sampling.seed is None:
        return torch.rand(rows, sampling.max_new_tokens, dtype=torch.float64)
    generators = [torch.Generator().manual_seed(sampling.seed * 1_000_003 + row) for row in range(rows)]
    return torch.stack([torch.rand(sampling.max_new_tokens, dtype=torch.float64, generator=g) for g in generators])


def _filters(sampling: Sampling) -> logits_process.LogitsProcessorList:
    """What leaves tokens out, in the order of transformers' `generate`."""
    filters = logits_process.LogitsProcessorList()
    if sampling.top_k:
        filters.append(logits_process.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        filters.append(logits_process.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        filters.append(logits_process.MinPLogitsWarper(sampling.min_p))
    return filters
