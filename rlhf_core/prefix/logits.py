"""What a model does to the output of its head: logits = cap · tanh(scale · output / cap), or scale · output.

Gemma 2, 3n and 4 and NanoChat cap (`final_logit_softcapping`), Cohere and Falcon H1 multiply, Granite divides by what
HyperCLOVA X multiplies by (`logits_scaling`), and MiniCPM3 divides the states that its head reads. A model's
configuration has the numbers; what is done with them is seen in its own forward pass, in which the head's output is
replaced by numbers that are known.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_core.prefix.attention import NotShared
from rlhf_core.prefix.kernels import upcast

CAP = "final_logit_softcapping"
SCALES = ("logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier")
LARGE = 100.0  # an output that is beyond any cap
BEYOND = 3.0  # times a cap is the largest output that is tried
ROUNDINGS = 4  # of an output until it is a logit: three products and tanh


class LogitScaling(NamedTuple):
    """`before`: what the states are multiplied by that the head reads; `scale` and `cap`: of its output."""

    before: float = 1.0
    scale: float = 1.0
    cap: float | None = None

    def logits(self, output: Tensor, temperature: float = 1.0) -> Tensor:
        """logits / temperature, at least in float32 where that is not `output`."""
        if self.cap is not None:
            return self._tanh(output).mul_(self.cap / temperature)
        by = self.scale / temperature
        return output if by == 1 else output.to(upcast(output.dtype), copy=True).mul_(by)

    def by_output(self, grad: Tensor, output: Tensor, factor: Tensor | float) -> Tensor:
        """The gradient by `output`, times `factor`, from that by logits; in place of `grad`."""
        if self.cap is not None:
            grad.mul_(self._tanh(output).square_().neg_().add_(1))
        return grad.mul_(factor * self.scale)

    def _tanh(self, output: Tensor) -> Tensor:
        return output.to(upcast(output.dtype), copy=True).mul_(self.scale / (self.cap or 1)).tanh_()


UNCHANGED = LogitScaling()
_found: weakref.WeakKeyDictionary[Any, LogitScaling] = weakref.WeakKeyDictionary()


def scaling_of(model: Any) -> LogitScaling:
    """Of a transformers model with a head. Raises `NotShared` if its logits follow from the head's output otherwise."""
    if model not in _found:
        _found[model] = measured(model)
    return _found[model]


def usual(model: Any) -> LogitScaling:
    """By the configuration alone: all of its numbers, which multiply."""
    scales, caps = _numbers(model)
    return LogitScaling(1.0, scales[-1], caps[0])


def _numbers(model: Any) -> tuple[list[float], list[float | None]]:
    """(what may be multiplied by, 1 first; caps that may apply, that of the configuration first)"""
    config = model.config.get_text_config()
    cap, *scales = (getattr(config, name, None) for name in (CAP, *SCALES))  # a property in MiniCPM3's
    given = [float(scale) for scale in scales if scale]
    return list(dict.fromkeys([1.0, *(1 / one for one in given), *given])), [float(cap), None] if cap else [None]


@torch.no_grad()
def measured(model: Any) -> LogitScaling:
    """By a forward pass of the model."""
    scales, caps = _numbers(model)
    span = BEYOND * max(LARGE, caps[0] or 0) / min(scales)
    states, read, output, logits = _seen(model, span)
    if logits.shape != output.shape:
        raise NotShared("the model's logits are not the output of its head")
    after = [LogitScaling(1.0, *pair) for pair in itertools.product(scales, caps)]
    found = _fitting(after, [one.logits(_exact(output)) for one in after], logits, output)
    if found is None:
        raise NotShared("the model changes its logits after its head in a way that is not known")
    if states.shape != read.shape:
        return found
    before = [found._replace(before=scale) for scale in scales]
    # What else is between them is known by comparing results.
    return _fitting(before, [_exact(states) * one.before for one in before], read, states) or found


def _seen(model: Any, span: float) -> list[Tensor]:
    """Of a token: its last hidden state, what the head reads, numbers from -`span` to `span` in place of what the head
    gives, and the logits.
    """
    seen: list[Tensor] = []

    def decoded(module: Any, inputs: Any, output: Any) -> None:
        seen.append(output.last_hidden_state)

    def replaced(module: Any, inputs: Any, output: Tensor) -> Tensor:
        values = torch.linspace(-span, span, output.shape[-1], device=output.device).to(output.dtype)
        seen.extend([inputs[0], values.expand_as(output)])
        return seen[-1]

    with (
        model.base_model.register_forward_hook(decoded),
        model.get_output_embeddings().register_forward_hook(replaced),
    ):
        output = model(input_ids=torch.tensor([[3, 4]], device=model.device), use_cache=False)
    seen.append(output.logits)
    if len(seen) != 4:
        raise NotShared("the model does not compute its logits by its base model and its head")
    return [one[0, -1] for one in seen]


def _exact(values: Tensor) -> Tensor:
    return values.cpu().double()


def _fitting(candidates: list[LogitScaling], values: list[Tensor], found: Tensor, given: Tensor) -> LogitScaling | None:
    """The candidate whose values are those that were found of what was given, up to rounding."""
    eps = max(torch.finfo(one.dtype).eps for one in (found, given))
    apart = [(one - _exact(found)).abs().max() / one.abs().max() for one in values]
    nearest = min(range(len(apart)), key=lambda i: apart[i])
    return candidates[nearest] if apart[nearest] <= ROUNDINGS * eps else None
