"""Sample completions of prompts, with the log-probabilities they were sampled at.

Engines: `shared` (`decoding.py`, each prompt once), `transformers` (plain `generate`, the reference) and `continuous`
(transformers' continuous batching).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from rlhf_core.prefix import attention, decoding
from rlhf_core.prefix.groups import Group, Rollout, Sampling
from rlhf_core.prefix.packed import evaluating, unwrap
from rlhf_core.prefix.sharing import completion_logps, shares

BLOCK = 32  # tokens
Engine = Literal["shared", "transformers", "continuous"]


def rollout(
    model: Any, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, engine: Engine = "shared"
) -> list[Rollout]:
    """`n` completions of each prompt (token ids), those of one prompt next to each other.

    A model that can't share its prompts is sampled by `transformers` where `shared` is asked for.
    """
    longest = [Group(max(prompts, key=len), [[0] * sampling.max_new_tokens])]
    if engine == "shared" and shares(model, longest):
        return decoding.rollout(model, prompts, n, sampling)
    rows = [list(prompt) for prompt in prompts for _ in range(n)]
    with evaluating(model), torch.no_grad():
        sampled = (_continuous if engine == "continuous" else _generate)(model, rows, sampling)
        completions = [_without_rest(tokens, sampling.eos_token_ids) for tokens in sampled]
        groups = [Group(row, [completion]) for row, completion in zip(rows, completions, strict=True)]
        # Neither engine gives log-probabilities at the temperature alone.
        scored = completion_logps(model, groups, temperature=sampling.temperature)
    return [
        Rollout(row, tokens, logps[: len(tokens)], tokens[-1] in sampling.eos_token_ids)
        for row, tokens, logps in zip(rows, completions, scored.logps.tolist(), strict=True)
    ]


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
        settings["min_p"] = sampling.min_p or None
    return settings


def _generate(model: Any, rows: list[list[int]], sampling: Sampling) -> list[list[int]]:
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    output = model.generate(input_ids=ids, attention_mask=mask, use_cache=True, **_settings(sampling))
    return output[:, longest:].tolist()


def _continuous(model: Any, rows: list[list[int]], sampling: Sampling) -> list[list[int]]:
    with attention.set_aside(unwrap(model)):
        outputs = model.generate_batch(
            rows,
            generation_config=GenerationConfig(**_settings(sampling)),
            continuous_batching_config=_capacity(rows, sampling),
            progress_bar=False,
        )
    by_number = sorted(outputs.values(), key=lambda output: int(output.request_id.rsplit("_", 1)[-1]))
    return [output.generated_tokens for output in by_number]


def _capacity(rows: list[list[int]], sampling: Sampling) -> ContinuousBatchingConfig:
    """A cache for as many tokens as there will be; by itself it would take most of the memory that the machine has."""
    blocks = sum(-(-(len(row) + sampling.max_new_tokens) // BLOCK) + 1 for row in rows)
    return ContinuousBatchingConfig(block_size=BLOCK, num_blocks=blocks, max_batch_tokens=max(2048, len(rows)))


def _without_rest(tokens: list[int], eos_token_ids: Sequence[int]) -> list[int]:
    """Without what stands behind the first end token."""
    return tokens[: next((i + 1 for i, token in enumerate(tokens) if token in eos_token_ids), len(tokens))]
