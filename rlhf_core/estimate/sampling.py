"""Sampling of answers without values: the engines of a run, which would take as many passes as an answer has tokens.

Answers are as long as they may be. Of their tokens one or two are run, and the others take as long.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from rlhf_core.estimate.meter import Meter
from rlhf_core.estimate.weightless import Weightless
from rlhf_core.prefix import decoding, packed, padded, rollouts, sharing
from rlhf_core.prefix.cache import cache_bytes
from rlhf_core.prefix.groups import Rollout, Sampling
from rlhf_core.prefix.sampler import Sampler

CACHE = "KV cache"


@torch.no_grad()
def shared(meter: Meter, model: Any, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[Rollout]:
    """In place of `decoding.rollout`: the prompts' pass, then the token in the middle of the answers, which stands for
    those before the last, and the last.
    """
    length = sampling.max_new_tokens
    sampler = Sampler(replace(sampling, eos_token_ids=(), seed=0))
    rows = sampler.rows([prompt for prompt in prompts for _ in range(n)])
    with meter.during(meter.sampling), packed.evaluating(model):
        step = decoding.step_of(model, max(map(len, prompts)) + length)
        room = decoding.room_for(model, rows, sampling)
        rounds = len(rows) / room.rows
        batch = decoding.Batch(model, step, sampler, room)
        with meter.during(meter.name, repeat=rounds):
            batch.enter(deque(rows))
        batch.cache.arrange(len(batch.rows))
        for tokens, repeat in ((length // 2, length - 2), (length - 1, 1)):
            if tokens < 1 or repeat < 1:
                continue
            with meter.during(meter.name, repeat=repeat * rounds):
                batch.sample(tokens, equal=True)
    return [Rollout(list(row.prompt), [meter.token] * length, [-1.0] * length, finished=False) for row in rows]


def counted_as_cache(meter: Meter, allocate: Callable[..., None]) -> Callable[..., None]:
    def counted(cache: Any, layer: int, pair: tuple[Tensor, Tensor]) -> None:
        allocate(cache, layer, pair)
        for tensor in (*cache.prompts[layer], *cache.completions[layer]):
            meter.assign(tensor, CACHE)

    return counted


def generate(
    meter: Meter, compute: Callable[..., Any], model: Any, inputs: Tensor | None, config: Any, more: dict[str, Any]
) -> Tensor:
    """transformers' `generate`, which would never see that an answer ends: the prompts' pass and the second token. From
    then on the cache has the size that it has at the last token, with a copy of one layer, which grows.
    """
    with_values = not isinstance(next(model.parameters()), Weightless)
    if with_values or more.get("return_dict_in_generate"):  # a check of settings, or of `generate`, which is short
        return compute(model, inputs, config, **more)
    ids = more["input_ids"] if inputs is None else inputs
    length = more.pop("max_new_tokens", None) or config.max_new_tokens
    settings = copy.deepcopy(config or GenerationConfig())
    settings.eos_token_id, settings.max_new_tokens = None, min(2, length)
    ends = {"eos_token_id", "generation_config"}
    rows, prompt = ids.shape
    held: list[Tensor] = []
    spent: list[list[float]] = []

    def between(_: Tensor, scores: Tensor) -> Tensor:
        spent.append(meter.phase.spent())
        if len(spent) == 1:
            grown = cache_bytes(model, prompt + length) - cache_bytes(model, prompt)
            layers = model.config.get_text_config().num_hidden_layers
            held.append(hold(meter, rows * (grown + cache_bytes(model, prompt + length) // layers), CACHE))
        return scores

    given = {name: value for name, value in more.items() if name not in ends}
    given["logits_processor"] = LogitsProcessorList([*(given.get("logits_processor") or []), between])
    with meter.during(meter.sampling), rollouts.own_generation_config(model):
        compute(model, inputs, settings, **given)
        if len(spent) > 1:
            one = [after - before for before, after in zip(*spent[:2], strict=True)]
            meter.spend(meter.name, [value * (length - 2) / meter.repeat for value in one])
    return torch.cat([ids, torch.full((rows, length), meter.token)], 1)


def continuous(meter: Meter, model: Any, rows: list[list[int]], sampling: Sampling) -> list[list[int]]:
    """transformers' continuous batching, whose cache is made for all tokens at once. It computes the same."""
    blocks = rollouts._capacity(rows, sampling).num_blocks
    with meter.during(meter.sampling):
        held = hold(meter, cache_bytes(packed.unwrap(model), int(blocks or 0) * rollouts.BLOCK), CACHE)
    answers = rollouts._generate(model, rows, sampling)
    del held
    return answers


def recomputed(meter: Meter, model: Any, rows: list[list[int]], sampling: Sampling) -> list[list[int]]:
    """Without a cache, each token takes a pass over its row: that of the token in the middle stands for the others."""
    length = sampling.max_new_tokens
    with meter.during(meter.sampling):
        for tokens, repeat in ((length // 2, length - 1), (length - 1, 1)):
            if repeat:
                longer = [[*row, *[meter.token] * tokens] for row in rows]
                alone = not sharing.pads(model, max(map(len, longer)))
                with meter.during(meter.name, repeat=repeat):
                    padded.last_logits(model, longer, alone=alone)
    return [[meter.token] * length for _ in rows]


def hold(meter: Meter, size: int, component: str) -> Tensor:
    """So many bytes, as long as the result lives."""
    held = Weightless(torch.empty(size, dtype=torch.uint8, device="meta"))
    meter.assign(held, component)
    return held
