"""What makes a run fit into a device's memory: remedies in the order of what they cost, each measured."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rlhf_core.estimate.estimating import Estimate
from rlhf_core.estimate.step import EVALUATION
from rlhf_core.estimate.synthetic import Lengths
from rlhf_core.models.loading import ModelInfo

FEWEST = 4  # held-out prompts that are kept at least
SHORTEST = 64  # tokens to which answers, or conversations, are shortened at most


@dataclass(frozen=True)
class Tried:
    """Options that were changed, by name, beside those that the user gave, and what a run with them takes."""

    changes: dict[str, Any]
    estimate: Estimate

    def flags(self) -> list[str]:
        """The changes as flags of `rlhf run`."""
        words: list[str] = []
        for name, value in self.changes.items():
            flag = name.replace("_", "-")
            words += (
                [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
            )
        return words


def try_remedies(
    options: Any, info: ModelInfo, measure: Callable[[dict[str, Any]], Estimate], *, first: Estimate
) -> Iterator[Tried]:
    """Try one remedy after another, each on top of those before, until a run fits. `measure(changes)`: an estimate."""
    changes: dict[str, Any] = {}
    shorter = functools.partial(_shorter, rows=first.rows)
    remedies: list[Callable[[Any, ModelInfo], Iterator[dict[str, Any]]]] = [
        _smaller_passes,
        _checkpointing,
        _adapter,
        _four_bits,
        shorter,
    ]
    remedies.insert(0 if first.phase == EVALUATION else -1, _fewer_held_out)
    for remedy in remedies:
        for more in remedy(options, info):
            tried = Tried({**changes, **more}, measure({**changes, **more}))
            if tried.estimate.fits and remedy is _smaller_passes:
                tried = _largest_that_fits(options, changes, tried, measure)
            yield tried
            if tried.estimate.fits:
                return
            if tried.estimate.peak < first.peak:  # it helps
                changes |= more


def _largest_that_fits(
    options: Any, changes: dict[str, Any], smallest: Tried, measure: Callable[[dict[str, Any]], Estimate]
) -> Tried:
    """Of forward passes of fewer rows, where those of one row fit: the largest half, quarter, … that fits."""
    rows = options.per_device_train_batch_size // 2
    while rows > 1:
        found = Tried({**changes, **_in_passes_of(rows, options)}, measure({**changes, **_in_passes_of(rows, options)}))
        if found.estimate.fits:
            return found
        rows //= 2
    return smallest


def _in_passes_of(rows: int, options: Any) -> dict[str, Any]:
    """As many rows in an optimizer step, with fewer in a forward pass."""
    together = options.per_device_train_batch_size * options.gradient_accumulation_steps
    return {"per_device_train_batch_size": rows, "gradient_accumulation_steps": together // rows}


def _smaller_passes(options: Any, info: ModelInfo) -> Iterator[dict[str, Any]]:
    if options.per_device_train_batch_size > 1:
        yield _in_passes_of(1, options)


def _checkpointing(options: Any, info: ModelInfo) -> Iterator[dict[str, Any]]:
    if not options.gradient_checkpointing:
        yield {"gradient_checkpointing": True}


def _adapter(options: Any, info: ModelInfo) -> Iterator[dict[str, Any]]:
    if not options.lora:
        yield {"lora": True}


def _four_bits(options: Any, info: ModelInfo) -> Iterator[dict[str, Any]]:
    by_vllm = options.model_dump(include={"rollouts"}).get("rollouts") == "vllm"  # which has no quantized weights
    if not options.load_in_4bit and not info.quantized and not by_vllm:
        adapter = {} if options.lora else {"lora": True}
        yield {**adapter, "load_in_4bit": True, **({"load_in_8bit": False} if options.load_in_8bit else {})}


def _fewer_held_out(options: Any, info: ModelInfo) -> Iterator[dict[str, Any]]:
    """The held-out prompts are answered together."""
    prompts = options.num_eval_prompts // 4
    while prompts >= FEWEST:
        yield {"num_eval_prompts": prompts}
        prompts //= 4


def _shorter(options: Any, info: ModelInfo, rows: Lengths) -> Iterator[dict[str, Any]]:
    conversations = "max_length" in type(options).model_fields
    name, longest = ("max_length", rows.total) if conversations else ("max_completion_length", rows.completion)
    length = min(getattr(options, name), longest) // 2
    while length >= SHORTEST:
        yield {name: length}
        length //= 2
