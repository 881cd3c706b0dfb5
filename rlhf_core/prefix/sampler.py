"""How the next tokens of rows are chosen from logits, whichever way those are computed.

Random numbers belong to a row, not to the batch: with the same seed a row gets the same numbers whatever runs beside
it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

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
        self.penalty, self.filters = _processors(sampling)

    def rows(self, prompts: Sequence[Sequence[int]]) -> list[Row]:
        numbers = uniforms(len(prompts), self.sampling)
        return [Row(i, tuple(prompt), numbers[i]) for i, prompt in enumerate(prompts)]

    def step(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
        """Choose the next token of each row by `logits` (rows, vocabulary) and append it. Returns the tokens (rows,).
        Raises `RunStopped` if the logits are not numbers.
        """
        tokens, logps = self._choose(rows, logits.float())
        chosen = torch.stack([tokens.float(), logps]).tolist()  # one read from the device; float32 has all token ids
        for row, token, logp in zip(rows, *chosen, strict=True):
            if math.isnan(logp):
                raise RunStopped(NOT_NUMBERS)
            row.tokens.append(int(token))
            row.logps.append(logp)
        return tokens

    def ended(self, row: Row) -> bool:
        return row.tokens[-1] in self.sampling.eos_token_ids or len(row.tokens) == self.sampling.max_new_tokens

    def rollouts(self, done: Sequence[Row]) -> list[Rollout]:
        """Rows that have ended, in the order that they came in."""
        return [
            Rollout(list(row.prompt), row.tokens, row.logps, row.tokens[-1] in self.sampling.eos_token_ids)
            for row in sorted(done, key=lambda row: row.number)
        ]

    def _choose(self, rows: Sequence[Row], logits: Tensor) -> tuple[Tensor, Tensor]:
        """(token, its log-probability at the sampling temperature), (rows,) each."""
        if self.penalty is not None:
            seen = [[*row.prompt, *row.tokens] for row in rows]
            longest = max(map(len, seen))
            filled = [[*row, *[row[0]] * (longest - len(row))] for row in seen]
            logits = self.penalty(torch.tensor(filled, device=logits.device), logits)
        logps = torch.log_softmax(logits / self.sampling.temperature, dim=-1)
        if self.sampling.greedy:
            tokens = logits.argmax(-1)
        else:
            bounds = self.filters(None, logps).double().softmax(-1).cumsum(-1)
            total = bounds[:, -1]
            points = torch.stack([row.uniforms[len(row.tokens)] for row in rows]).to(logits.device) * total
            points = torch.minimum(points, torch.nextafter(total, torch.zeros_like(total)))
            # Beyond the last token if the logits are not numbers, which the log-probabilities then say.
            tokens = torch.searchsorted(bounds, points[:, None], right=True)[:, 0].clamp(max=bounds.shape[1] - 1)
        return tokens, logps.gather(-1, tokens[:, None])[:, 0]


def uniforms(rows: int, sampling: Sampling) -> Tensor:
    """(rows, max_new_tokens), in [0, 1): from `seed` and the row's number, or from the generator that all share."""
    if sampling.seed is None:
        return torch.rand(rows, sampling.max_new_tokens, dtype=torch.float64)
    generators = [torch.Generator().manual_seed(sampling.seed * 1_000_003 + row) for row in range(rows)]
    return torch.stack([torch.rand(sampling.max_new_tokens, dtype=torch.float64, generator=g) for g in generators])


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
