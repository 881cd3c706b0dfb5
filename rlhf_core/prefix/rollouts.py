"""Sample completions of prompts, with the log-probabilities they were sampled at.

Engines: `shared` (`decoding.py`, each prompt once), `transformers` (plain `generate`) and `continuous` (transformers'
continuous batching). `auto` takes the first for models that share prompts, for others on a GPU the last, where it gives
what `generate` gives. What `generate` gets wrong is sampled without it.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList

from rlhf_core.errors import RunStopped
from rlhf_core.phases import phase
from rlhf_core.prefix import attention, decoding, padded
from rlhf_core.prefix.groups import Group, Rollout, Sampling
from rlhf_core.prefix.packed import evaluating, is_sharded, unwrap
from rlhf_core.prefix.sampler import NOT_NUMBERS, Row, Sampler
from rlhf_core.prefix.self_check import continuing_disagrees, generation_disagrees
from rlhf_core.prefix.sharing import checked, completion_logps, exceeds_rope, pads, shares

BLOCK = 32  # tokens
Engine = Literal["auto", "shared", "transformers", "continuous"]
NAMES = {
    "shared": "our engine, which computes each prompt once (shared)",
    "transformers": "transformers' generate (transformers)",
    "continuous": "transformers' continuous batching (continuous)",
}
log = logging.getLogger("rlhf")
_said: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()


@phase("sampling")
def rollout(
    model: Any, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, engine: Engine = "auto"
) -> list[Rollout]:
    """`n` completions of each prompt (token ids), those of one prompt next to each other.

    A model that can't share its prompts is sampled by `transformers` where `shared` is asked for, and so is one for
    which continuous batching is wrong where that is. Which engine is taken is said once. Raises `RunStopped` if the
    model's log-probabilities are not numbers, `ValueError` for a repetition penalty in continuous batching.
    """
    longest = max(map(len, prompts)) + sampling.max_new_tokens
    if sampling.repetition_penalty != 1:
        if engine == "continuous":
            raise ValueError("continuous batching leaves out the penalty for repetition")
        engine = "shared" if engine == "auto" else engine  # or `generate`
    engine = chosen(model, engine, longest)
    if engine == "shared":
        return decoding.rollout(model, prompts, n, sampling)
    rows = [list(prompt) for prompt in prompts for _ in range(n)]
    with evaluating(model), torch.no_grad(), own_generation_config(model):
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        way = _continuous if engine == "continuous" else _generate
        sampled = (way if _generates(model, longest) else _recomputed)(model, rows, sampling)
        completions = [_without_rest(tokens, sampling.eos_token_ids) for tokens in sampled]
        groups = [Group(row, [completion]) for row, completion in zip(rows, completions, strict=True)]
        # As a loss will compute them, and at the temperature alone.
        scored = completion_logps(model, groups, temperature=sampling.temperature).logps.tolist()
    if any(math.isnan(logp) for logps in scored for logp in logps):
        raise RunStopped(NOT_NUMBERS)
    return [
        Rollout(row, tokens, logps[: len(tokens)], tokens[-1] in sampling.eos_token_ids)
        for row, tokens, logps in zip(rows, completions, scored, strict=True)
    ]


def chosen(model: Any, engine: Engine, longest: int) -> Engine:
    """The engine that samples rows of up to `longest` tokens where `engine` is asked for."""
    plain = unwrap(model)
    if engine in ("auto", "shared") and shares(model, [Group([0] * longest, [])]):
        found: Engine = "shared"
    else:
        asked = engine == "continuous" or (engine == "auto" and plain.device.type == "cuda")
        found = "continuous" if asked and _continues(model, longest) else "transformers"
    said = _said.setdefault(plain, set())
    if found not in said:
        said.add(found)
        log.info("answers are sampled by %s", NAMES[found], extra={"shown": True})
    return found


@contextmanager
def own_generation_config(model: Any) -> Iterator[None]:
    """Within, `generate` knows nothing but what it is told. A model brings settings of its own (a penalty for
    repetition, forced and forbidden tokens, beams, …), with which it would sample from another distribution than it is
    trained on.
    """
    plain = unwrap(model)
    before, plain.generation_config = plain.generation_config, GenerationConfig()
    try:
        yield
    finally:
        plain.generation_config = before


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
        # NaN is noticed when tokens are scored; while they are chosen it would end a GPU's process.
        "remove_invalid_values": True,
    }
    if not sampling.greedy:
        settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        settings["min_p"] = sampling.min_p or None
    return settings


def _generate(model: Any, rows: list[list[int]], sampling: Sampling) -> list[list[int]]:
    output = model.generate(**_left_padded(model, rows), **_settings(sampling))
    return output[:, max(map(len, rows)) :].tolist()


def _left_padded(model: Any, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    longest, device = max(map(len, rows)), unwrap(model).device
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask, "use_cache": True}


def _generates(model: Any, longest: int) -> bool:
    """Whether `generate` computes what the model does, although it pads on the left, counts positions and caches: some
    models count positions in another way, pass padding through recurrent layers, or have rotary positions that change
    when a row has more than so many tokens.
    """
    return not exceeds_rope(model, longest) and not checked(
        model, generation_disagrees, None, "in this model all is computed again for each token", _forced
    )


def _continues(model: Any, longest: int) -> bool:
    """Whether continuous batching samples what `generate` does, in models that this samples rightly."""
    consequence = "continuous batching is not used"
    return _generates(model, longest) and not checked(model, continuing_disagrees, None, consequence, _greedy)


def _greedy(model: Any, rows: list[list[int]], way: str) -> list[list[int]]:
    """A few likeliest tokens behind each row."""
    sampling = Sampling(4, [unwrap(model).get_input_embeddings().weight.shape[0]], greedy=True)
    with own_generation_config(model):
        return (_continuous if way == "continuous" else _generate)(model, rows, sampling)


def _forced(model: Any, rows: Sequence[Sequence[int]], steps: int) -> Tensor:
    """What `generate` computes at the last `steps` tokens of each row, which it is made to choose: log-probabilities
    (rows, steps, vocabulary).
    """
    chosen = torch.tensor([row[-steps:] for row in rows], device=unwrap(model).device)
    prompts = _left_padded(model, [row[:-steps] for row in rows])
    width = prompts["input_ids"].shape[1]

    def only(ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, ids.shape[1] - width, None], 0)

    with own_generation_config(model):
        output = model.generate(
            **prompts,
            generation_config=GenerationConfig(max_new_tokens=steps, do_sample=False, pad_token_id=0),
            logits_processor=LogitsProcessorList([only]),
            output_logits=True,
            return_dict_in_generate=True,
        )
    return torch.stack(output.logits, dim=1).float().log_softmax(-1)


def _recomputed(model: Any, rows: list[list[int]], sampling: Sampling) -> list[list[int]]:
    """Without a cache and without padding on the left: right in every causal model, and slow."""
    sampler = Sampler(sampling)
    left = sampler.rows(rows)
    done: list[Row] = []
    while _goes_on(model, left):
        texts = [[*row.prompt, *row.tokens] for row in left or done[-1:]]
        logits = padded.last_logits(model, texts, alone=not pads(model, max(map(len, texts))))
        if left:
            sampler.step(left, logits)
        done += [row for row in left if sampler.ended(row)]
        left = [row for row in left if not sampler.ended(row)]
    return [one.completion for one in sampler.rollouts(done)]


def _goes_on(model: Any, left: list[Row]) -> bool:
    """Whether a row is left, here or, of a model that processes share in parts, in any of them."""
    if not is_sharded(model):
        return bool(left)
    rows = torch.tensor(len(left), device=unwrap(model).device)
    torch.distributed.all_reduce(rows)
    return bool(rows)


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
