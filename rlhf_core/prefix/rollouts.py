"""Sample completions of prompts, with the log-probabilities they were sampled at.

Engines: `shared` (`decoding.py`, each prompt once), `transformers` (plain `generate`, the reference) and `continuous`
(transformers' continuous batching).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessor, LogitsProcessorList

from rlhf_core.prefix import attention, decoding
from rlhf_core.prefix.groups import Group, Rollout, Sampling
from rlhf_core.prefix.packed import evaluating, unwrap
from rlhf_core.prefix.sharing import completion_logps, shares

BLOCK = 32  # tokens
Engine = Literal["shared", "transformers", "continuous"]


def rollout(
    model: Any,
    prompts: Sequence[Sequence[int]],
    n: int,
    sampling: Sampling,
    engine: Engine = "shared",
) -> list[Rollout]:
    """`n` completions of each prompt (token ids), those of one prompt next to each other.

    A model that can't share its prompts is sampled by `transformers` where `shared` is asked for.
    """
    longest = [Group(max(prompts, key=len), [[0] * sampling.max_new_tokens])]
    if engine == "shared" and shares(model, longest):
        return decoding.rollout(model, prompts, n, sampling)
    rows = [list(prompt) for prompt in prompts for _ in range(n)]
    return _continuous(model, rows, sampling) if engine == "continuous" else _generate(model, rows, sampling)


def eos_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a completion: the tokenizer's own and the model's."""
    declared = model.generation_config.eos_token_id
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return list(dict.fromkeys([tokenizer.eos_token_id, *declared]))


def _settings(sampling: Sampling) -> dict[str, Any]:
    """The same in `generate`'s words."""
    settings: dict[str, Any] = {
        "max_new_tokens": sampling.max_new_tokens,
        "eos_token_id": list(sampling.eos_token_ids),
        "pad_token_id": sampling.eos_token_ids[0],
        "do_sample": not sampling.greedy,
        "repetition_penalty": sampling.repetition_penalty,
    }
    if not sampling.greedy:
        settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        settings |= {"min_p": sampling.min_p} if sampling.min_p else {}
    return settings


@torch.no_grad()
def _generate(model: Any, rows: list[list[int]], sampling: Sampling) -> list[Rollout]:
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    recorder = _Recorder(sampling.temperature)
    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    with evaluating(model):
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            logits_processor=LogitsProcessorList([recorder]),
            use_cache=True,
            **_settings(sampling),
        )
    logps = recorder.finish(output).tolist()
    pairs = zip(rows, output[:, longest:].tolist(), logps, strict=True)
    return [_ended(row, tokens, values, sampling.eos_token_ids) for row, tokens, values in pairs]


def _continuous(model: Any, rows: list[list[int]], sampling: Sampling) -> list[Rollout]:
    """Log-probabilities are computed afterwards, since continuous batching does not give them at this temperature."""
    with evaluating(model), torch.no_grad():
        with attention.set_aside(unwrap(model)):
            outputs = model.generate_batch(
                rows,
                generation_config=GenerationConfig(**_settings(sampling)),
                continuous_batching_config=_capacity(rows, sampling),
                progress_bar=False,
            )
        by_number = sorted(outputs.values(), key=lambda output: int(output.request_id.rsplit("_", 1)[-1]))
        completions = [output.generated_tokens for output in by_number]
        groups = [Group(row, [completion]) for row, completion in zip(rows, completions, strict=True)]
        logps = completion_logps(model, groups, temperature=sampling.temperature).logps.tolist()
    return [_ended(*each, sampling.eos_token_ids) for each in zip(rows, completions, logps, strict=True)]


def _capacity(rows: list[list[int]], sampling: Sampling) -> ContinuousBatchingConfig:
    """A cache for as many tokens as there will be; by itself it would take most of the memory that the machine has."""
    blocks = sum(-(-(len(row) + sampling.max_new_tokens) // BLOCK) + 1 for row in rows)
    return ContinuousBatchingConfig(block_size=BLOCK, num_blocks=blocks, max_batch_tokens=max(2048, len(rows)))


def _ended(row: list[int], tokens: list[int], logps: list[float], eos_token_ids: Sequence[int]) -> Rollout:
    """Without what stands behind the first end token."""
    size = next((i + 1 for i, token in enumerate(tokens) if token in eos_token_ids), len(tokens))
    return Rollout(row, tokens[:size], logps[:size], tokens[size - 1] in eos_token_ids)


class _Recorder(LogitsProcessor):
    """Keeps the log-probability of each sampled token, which is known when the next one is asked for.

    It stands before the processors for temperature and top-p, and behind that of the repetition penalty.
    """

    def __init__(self, temperature: float) -> None:
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
