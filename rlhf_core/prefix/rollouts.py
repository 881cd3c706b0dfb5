"""Sample completions of prompts, with the log-probabilities they were sampled at. Here by plain `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList


@dataclass(frozen=True)
class Sampling:
    """How to sample. `ends` are the token ids that end a completion; `max_new_tokens` counts the end token."""

    max_new_tokens: int
    ends: Sequence[int]
    temperature: float = 1.0
    top_p: float = 1.0
    greedy: bool = False


@dataclass(frozen=True)
class Rollout:
    """One completion: its token ids, with the end token if it came to one, and the log-probability of each at the
    sampling temperature, before top-p.
    """

    prompt: list[int]
    completion: list[int]
    logps: list[float]
    finished: bool


@torch.no_grad()
def rollout(model: Any, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[Rollout]:
    """`n` completions of each prompt (token ids), those of one prompt next to each other."""
    longest = max(map(len, prompts))
    rows = [list(prompt) for prompt in prompts for _ in range(n)]
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=model.device)
    there = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    recorder = _Recorder(longest, sampling.temperature)
    choice = {"do_sample": False} if sampling.greedy else {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": 0,
    }  # fmt: skip
    was_training = model.training
    model.eval()
    output = model.generate(
        input_ids=ids,
        attention_mask=there,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=list(sampling.ends),
        pad_token_id=sampling.ends[0],
        logits_processor=LogitsProcessorList([recorder]),
        use_cache=True,
        **choice,
    )
    model.train(was_training)
    logps = recorder.finish(output).tolist()
    rollouts = []
    for row, tokens, values in zip(rows, output[:, longest:].tolist(), logps, strict=True):
        size = next((i + 1 for i, token in enumerate(tokens) if token in sampling.ends), len(tokens))
        rollouts.append(Rollout(row, tokens[:size], values[:size], tokens[size - 1] in sampling.ends))
    return rollouts


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a completion: the tokenizer's own and the model's."""
    declared = model.generation_config.eos_token_id
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return list(dict.fromkeys([tokenizer.eos_token_id, *declared]))


class _Recorder(LogitsProcessor):
    """Keeps the log-probability of each sampled token, which is known when the next one is asked for.

    It stands before the processors for temperature and top-p, so it sees the model's own logits.
    """

    def __init__(self, prompt_length: int, temperature: float) -> None:
        self.prompt_length = prompt_length
        self.temperature = temperature
        self.last: torch.Tensor | None = None
        self.columns: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._record(input_ids)
        self.last = torch.log_softmax(scores.float() / self.temperature, dim=-1)
        return scores

    def finish(self, output: torch.Tensor) -> torch.Tensor:
        """(rows, new tokens): the log-probabilities, once `generate` has returned `output`."""
        self._record(output)
        return torch.stack(self.columns, dim=1)

    def _record(self, ids: torch.Tensor) -> None:
        if self.last is not None:
            self.columns.append(self.last.gather(-1, ids[:, -1:])[:, 0])
