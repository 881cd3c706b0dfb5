"""Two phases, where a packed pass would not fit into memory: each prompt once, then its completions one after another
against its keys and values, so that memory is that of one completion.

Backward replays each completion from its part of `grad_output`, and the prompt last, with the gradients that the
completions gave its keys and values. That costs a second forward pass, and nothing but the random state is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import get_device_states, set_device_states

from rlhf_core.prefix.attention import Cache, ContinuedAttention, PackedAttention
from rlhf_core.prefix.groups import CompletionLogps, Group, on_device
from rlhf_core.prefix.head import precision
from rlhf_core.prefix.packed import Values, last_states, pack, scores, unwrap
from rlhf_core.prefix.recurrent import States


def completion_logps(
    model: Any, groups: Sequence[Group], *, temperature: float = 1.0, hidden: bool = False
) -> CompletionLogps:
    """As `rlhf_core.prefix.completion_logps`, with the memory of a prompt and of one completion."""
    if isinstance(model, DistributedDataParallel):
        # It gathers gradients only after a forward of its own with gradient; what this one gives is not used.
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=unwrap(model).device), logits_to_keep=1)
    job = Job(unwrap(model), groups, temperature)
    weights = [weight for weight in job.model.parameters() if weight.requires_grad]
    return Values(*_TwoPhase.apply(job, *weights)).in_rows(groups, hidden)


Gradients = Sequence[Tensor | None]


class Prompt(NamedTuple):
    """What completions go on from: the prompt's length, keys and values and recurrent states of each layer, and the
    last hidden state of its last token (1, size).
    """

    tokens: int
    cache: Cache
    states: States
    last: Tensor

    def tensors(self) -> list[Tensor]:
        kept = [*self.cache.values(), *self.states.values()]
        return [tensor for several in kept for tensor in several] + [self.last]

    def holding(self, tensors: Sequence[Tensor]) -> Prompt:
        """The same with other tensors, in the order of `tensors()`."""
        others = iter(tensors)
        cache = {layer: (next(others), next(others)) for layer in self.cache}
        states = {layer: tuple(next(others) for _ in state) for layer, state in self.states.items()}
        return Prompt(self.tokens, cache, states, next(others))


class Job(NamedTuple):
    model: Any
    groups: Sequence[Group]
    temperature: float

    def prompt(self, tokens: Sequence[int]) -> Prompt:
        packed = pack([Group(tokens, [])], self.model.device)
        metadata = PackedAttention(packed.spans, use_cache=True)
        states = last_states(self.model, packed.input_ids, packed.position_ids, metadata)
        return Prompt(len(tokens), *metadata.take_cache(), states[0, -1:])

    def completion(self, tokens: Sequence[int], prompt: Prompt) -> Values:
        """Of one completion."""
        metadata = ContinuedAttention(prompt.cache, prompt.states, prompt.tokens, len(tokens))
        ids = on_device(tokens, self.model.device)
        positions = torch.arange(metadata.start, metadata.start + len(tokens), device=self.model.device)
        states = last_states(self.model, ids[None], positions[None], metadata)[0]
        previous = torch.cat([prompt.last, states[:-1]])
        logps, entropies = scores(self.model, previous, ids, self.temperature)
        return Values(logps, entropies, previous, states[-1:])

    def values(self, group: Group) -> list[Values]:
        """Of each of a group's completions."""
        prompt = self.prompt(group.prompt)
        return [self.completion(tokens, prompt) for tokens in group.completions]

    def add_gradients(
        self, group: Group, grad_outputs: Sequence[Gradients], weights: Sequence[Tensor], totals: list[Tensor | None]
    ) -> None:
        """Add the gradients of `weights` that a group gives to `totals`. `grad_outputs`: for each completion, those of
        its log-probabilities, previous states and last state.
        """
        prompt = self.prompt(group.prompt)
        roots = prompt.tensors()
        leaves = [root.detach().requires_grad_() for root in roots]
        detached = prompt.holding(leaves)
        root_grads: list[Tensor | None] = [None] * len(roots)
        for tokens, grads in zip(group.completions, grad_outputs, strict=True):
            values = self.completion(tokens, detached)
            outputs = values.logps, values.previous, values.last
            _add(_gradients(outputs, [*weights, *leaves], grads), totals, root_grads)
        _add(_gradients(roots, weights, root_grads), totals)


class _TwoPhase(torch.autograd.Function):
    """`apply(job, *weights that require a gradient)` -> the `Values` of all completions, in the order of the groups.

    The weights are inputs so that their gradients leave by the usual way, and are seen by whoever gathers them. Where
    nothing depends on a weight its gradient is None, as in a plain backward pass, so that no optimizer decays it.
    """

    @staticmethod
    def forward(ctx, job: Job, *weights: nn.Parameter):
        ctx.job, ctx.weights = job, weights
        ctx.random = torch.get_rng_state(), *get_device_states(*weights)
        ctx.precision = precision(job.model.device)
        parts = []
        with torch.no_grad():
            for group in job.groups:
                parts += job.values(group)
        values = Values(*map(torch.cat, zip(*parts, strict=True)))
        ctx.mark_non_differentiable(values.entropies)
        return tuple(values)

    @staticmethod
    def backward(ctx, grad_logps, _, grad_previous, grad_last):
        job = ctx.job
        totals: list[Tensor | None] = [None] * len(ctx.weights)
        done = row = 0
        with torch.enable_grad(), torch.autocast(*ctx.precision), _replayed(*ctx.random):
            for group in job.groups:
                grads = []
                for tokens in group.completions:
                    part = slice(done, done + len(tokens))
                    grads.append((grad_logps[part], grad_previous[part], grad_last[row : row + 1]))
                    done, row = part.stop, row + 1
                job.add_gradients(group, grads, ctx.weights, totals)
        return None, *totals


def _gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor], grad_outputs: Gradients) -> list[Tensor | None]:
    """Of `outputs` by `inputs`; None where an input has no part in them."""
    pairs = zip(outputs, grad_outputs, strict=True)
    chosen = [(output, grad) for output, grad in pairs if output.requires_grad and grad is not None]
    if not chosen:
        return [None] * len(inputs)
    outputs, grad_outputs = zip(*chosen, strict=True)
    return list(torch.autograd.grad(outputs, inputs, grad_outputs, allow_unused=True))


def _add(more: list[Tensor | None], *totals: list[Tensor | None]) -> None:
    """Add `more` to `totals`, one list after another. It is emptied, so that it takes no memory in the next pass."""
    more.reverse()
    for part in totals:
        for i, total in enumerate(part):
            if (new := more.pop()) is not None:
                part[i] = new if total is None else total + new


@contextmanager
def _replayed(state: Tensor, devices: list[int], device_states: list[Tensor]) -> Iterator[None]:
    """The random numbers (of dropout) are once more those that followed these states."""
    with torch.random.fork_rng(devices):
        torch.set_rng_state(state)
        set_device_states(devices, device_states)
        yield
