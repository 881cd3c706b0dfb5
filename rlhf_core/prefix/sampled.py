"""What a model made of the tokens that were sampled, for the first training pass over them.

Until an optimizer's step the weights are those that sampled, so the forward pass would compute the same states again
(`checkpointing.py`), and the same log-probabilities (`head.py`).
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_core.prefix.checkpointing import layers_of
from rlhf_core.prefix.groups import Group
from rlhf_core.prefix.packing import size
from rlhf_core.prefix.pages import fresh

TOLERANCE = 1e-3  # of a layer's outputs, in the mean, over their size
BLOCK = 128  # tokens of a completion whose states have one place
Tokens = tuple[int, ...]
log = logging.getLogger("rlhf")
_agreed: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


class Known(NamedTuple):
    """`outputs`: after each layer, (1, tokens of some groups in one row, width); at a completion's last token, which
    nothing that is sampled depends on, they are zero. `logps`, `entropies`: of the completions' tokens, (N,).
    """

    outputs: list[Tensor]
    logps: Tensor
    entropies: Tensor


class States:
    """Of a completion's tokens after each layer, (layers, width) each; all of them gone with the completion."""

    def __init__(self) -> None:
        self.blocks: list[Tensor] = []
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def append(self, states: Tensor) -> None:
        place = self.count % BLOCK
        if place == 0:
            self.blocks.append(fresh((BLOCK, *states.shape), states.dtype))
        self.blocks[-1][place] = states
        self.count += 1

    def by_layers(self) -> Sequence[Tensor]:
        """(tokens, width) for each layer."""
        return torch.cat(self.blocks)[: self.count].unbind(1)


class Sampled(NamedTuple):
    """Of a completion. `states`: of every token but the last. `logps`, `entropies`: of each token."""

    states: States
    logps: list[float]
    entropies: list[float]


class SampledStates:
    """Filled by `rollout` and used up by `completion_logps`. Wrong for any other weights than those that sampled: who
    changes them throws it away.
    """

    def __init__(self) -> None:
        self.temperature: float | None = None  # of the log-probabilities; None where they are not the model's own
        self.prompts: dict[Tokens, Tensor] = {}  # (layers, tokens, width)
        self.completions: dict[Tokens, dict[Tokens, Sampled]] = {}

    def add_prompt(self, prompt: Tokens, outputs: Sequence[Tensor]) -> None:
        """`outputs`: after each layer, (tokens, width)."""
        self.prompts[prompt] = fresh((len(outputs), *outputs[0].shape), outputs[0].dtype)
        for place, output in zip(self.prompts[prompt], outputs, strict=True):
            place.copy_(output)

    def add(self, prompt: Tokens, completion: Tokens, sampled: Sampled) -> None:
        self.completions.setdefault(prompt, {})[completion] = sampled

    def take(self, groups: Sequence[Group]) -> Known | None:
        """What is known of `groups`, then forgotten; None where some are missing."""
        wanted = [(tuple(group.prompt), [tuple(tokens) for tokens in group.completions]) for group in groups]
        there = self.completions
        if not all(tokens in there.get(prompt, {}) for prompt, completions in wanted for tokens in completions):
            return None
        layers = self.prompts[wanted[0][0]]
        rows = [states.new_zeros(1, sum(map(size, groups)), states.shape[1]) for states in layers]
        place = 0
        logps: list[float] = []
        entropies: list[float] = []
        for prompt, completions in wanted:
            _fill(rows, place, self.prompts[prompt])
            place += len(prompt)
            for tokens in completions:
                one = there[prompt][tokens]
                if len(tokens) > 1:
                    _fill(rows, place, one.states.by_layers())
                logps += one.logps
                entropies += one.entropies
                place += len(tokens)
        for prompt, completions in wanted:
            rest = there.get(prompt, {})
            for tokens in completions:
                rest.pop(tokens, None)
            if not rest:
                there.pop(prompt, None)
                self.prompts.pop(prompt, None)
        return Known(rows, torch.tensor(logps, device=rows[0].device), torch.tensor(entropies, device=rows[0].device))


def _fill(rows: Sequence[Tensor], place: int, states: Iterable[Tensor]) -> None:
    for row, part in zip(rows, states, strict=True):
        row[0, place : place + len(part)] = part


@contextmanager
def outputs_of_layers(model: Any) -> Iterator[list[Tensor]]:
    """What the layers give within, in their order."""
    outputs: list[Tensor] = []
    handles = [
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(output)) for layer in layers_of(model)
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def are_right(model: Any, outputs: Sequence[Tensor], compute: Callable[[], Tensor], unknown: Tensor) -> bool:
    """Whether `outputs` are what the layers give when training computes, but for the tokens at these places; seen once
    for each model.
    """
    if model not in _agreed:
        places = torch.ones(outputs[0].shape[1], dtype=torch.bool).index_fill(0, unknown, False)
        with torch.no_grad(), outputs_of_layers(model) as expected:
            compute()
        apart = max(
            ((known - right)[:, places].abs().mean() / right[:, places].abs().mean()).item()
            for known, right in zip(outputs, expected, strict=True)
        )
        _agreed[model] = apart < TOLERANCE
        if not _agreed[model]:
            log.warning("training computes again what sampling has computed: they differ by %.2g in the mean", apart)
    return _agreed[model]
