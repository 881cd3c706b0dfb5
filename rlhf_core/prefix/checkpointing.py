"""Gradient checkpointing of models that are made like Llama, on a CPU, with less arithmetic and memory than usual.

Usually a layer's forward pass keeps its input alone, and its backward pass computes the rest once more. Here, too, but

* the forward pass is left out where the layer's output is known, because its tokens have just been sampled;
* the backward pass does without the MLP's last product, which gives the layer's output and no slope;
* an MLP's slopes are computed for those tokens alone that have one from above: in the last layer not for prompts;
* the wide inner tensors of the MLP are those of some tokens at a time, and norms keep nothing but their input.

The only place that touches how transformers calls gradient checkpointing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf_core.prefix.pages import give_back

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
TOKENS = 256  # that go through an MLP at a time
silu, silu_backward = torch.ops.aten.silu.out, torch.ops.aten.silu_backward.grad_input
Compute = Callable[[Tensor], Tensor]


def is_like_llama(model: Any) -> bool:
    """Whether it is of a family that is made like Llama, in transformers' own code."""
    return model.config.model_type in FAMILIES and type(model).__module__.startswith("transformers.models.")


def applies(model: Any) -> bool:
    """Whether `model` (without wrappers) is one of these, and trains with gradient checkpointing."""
    return (
        model.training
        and model.device.type == "cpu"
        and model.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and is_like_llama(model)
        and all(layer.gradient_checkpointing for layer in layers_of(model))
        and not any(module.p > 0 for module in model.modules() if isinstance(module, nn.Dropout))
    )


def layers_of(model: Any) -> list[GradientCheckpointingLayer]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def checkpointed(model: Any, outputs: Sequence[Tensor] | None = None) -> Iterator[None]:
    """Within, the layers of `model` keep their inputs alone. `outputs`: what each layer gives, where that is known."""
    layers = layers_of(model)
    usual = [layer._gradient_checkpointing_func for layer in layers]
    for layer, output in zip(layers, outputs or [None] * len(layers), strict=True):
        layer._gradient_checkpointing_func = _Checkpoint(layer, output, layer is layers[0])
    try:
        yield
    finally:
        for layer, function in zip(layers, usual, strict=True):
            layer._gradient_checkpointing_func = function


class _Checkpoint:
    """What transformers calls with a layer's forward and the states that go into it."""

    def __init__(self, layer: Any, output: Tensor | None, comes_first: bool) -> None:
        self.layer, self.output, self.comes_first = layer, output, comes_first
        self.weights = [weight for weight in layer.parameters() if weight.requires_grad]

    def __call__(self, compute: Compute, states: Tensor) -> Tensor:
        return _Layer.apply(self, compute, states, *self.weights)


class _Layer(torch.autograd.Function):
    """`apply(checkpoint, compute, states, *weights that learn)` -> the layer's output.

    The weights are inputs so that their gradients leave by the usual way, and are seen by whoever gathers them.
    """

    @staticmethod
    def forward(ctx, checkpoint: _Checkpoint, compute: Compute, states: Tensor, *weights: Tensor):
        # Not the checkpoint itself: it holds the output, which holds this, so that none of them would go.
        ctx.layer, ctx.comes_first = checkpoint.layer, checkpoint.comes_first
        ctx.compute, ctx.weights = compute, weights
        ctx.save_for_backward(states)
        return compute(states) if checkpoint.output is None else checkpoint.output

    @staticmethod
    def backward(ctx, slope):
        states = ctx.saved_tensors[0].detach().requires_grad_()
        if ctx.comes_first:  # and goes backward last, when the gradients of all others are there
            give_back()
        with torch.enable_grad(), _made_for_slopes(ctx.layer):
            output = ctx.compute(states)
        by_states, *by_weights = torch.autograd.grad(output, [states, *ctx.weights], slope)
        if ctx.comes_first:
            give_back()
        return None, None, by_states, *by_weights


@contextmanager
def _made_for_slopes(layer: Any) -> Iterator[None]:
    """Within, norms and the MLP of `layer` are those below, where they are what they seem. The MLP, and with it the
    layer, has slopes and no value.
    """
    norms = [module for module in layer.modules() if type(module).__name__.endswith("RMSNorm")]
    own = type(layer).__module__  # where a library that replaces norms has not put its own
    written = {norm: _norm(norm) for norm in norms if type(norm).__module__ == own and not _is_changed(norm)}
    mlp = layer.mlp
    matrices = [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    plain = all(type(matrix) is nn.Linear and matrix.bias is None for matrix in matrices)
    if plain and mlp.config.hidden_act == "silu" and not any(map(_is_changed, [mlp, *matrices])):
        written[mlp] = lambda states: _MLP.apply(states, *(matrix.weight for matrix in matrices))
    for module, compute in written.items():
        module.forward = compute
    try:
        yield
    finally:
        for module in written:
            del module.forward


def _norm(module: Any) -> Compute:
    return lambda states: _Norm.apply(states, module.weight, module.variance_epsilon)


def _is_changed(module: nn.Module) -> bool:
    """Whether someone else listens or computes there."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or "forward" in vars(module)


class _Norm(torch.autograd.Function):
    """`apply(states, weight, epsilon)` -> states / sqrt(mean(states²) + epsilon) * weight, over the last dimension
    (Zhang and Sennrich, 2019, equation 4: https://arxiv.org/abs/1910.07467).
    """

    @staticmethod
    def forward(ctx, states, weight, epsilon):
        mean = torch.linalg.vector_norm(states, dim=-1, keepdim=True).square_().div_(states.shape[-1])
        factor = mean.add_(epsilon).rsqrt_()
        ctx.save_for_backward(states, weight, factor)
        return (states * factor).mul_(weight)

    @staticmethod
    def backward(ctx, slope):
        states, weight, factor = ctx.saved_tensors
        normal = states * factor
        product = (slope * normal).flatten(0, -2)
        along = (product @ weight).view_as(factor).div_(-states.shape[-1])
        by_states = torch.mul(slope, weight).addcmul_(normal, along).mul_(factor)
        return by_states, product.sum(0) if ctx.needs_input_grad[1] else None, None


class _MLP(torch.autograd.Function):
    """`apply(states, gate, up, down)` -> zeros, with the slopes of (silu(states · gateᵀ) * (states · upᵀ)) · downᵀ."""

    @staticmethod
    def forward(ctx, states, gate, up, down):
        ctx.save_for_backward(states, gate, up, down)
        return states.new_zeros(()).expand(states.shape)

    @staticmethod
    def backward(ctx, slope):
        states, *weights = ctx.saved_tensors
        gate, up, down = weights
        some = slope.flatten(0, -2).any(-1).nonzero()[:, 0]
        every = len(some) == slope.shape[:-1].numel()
        by_states = torch.empty_like(states) if every else torch.zeros_like(states)
        learn = ctx.needs_input_grad[1:]
        totals = [torch.empty_like(weight) if needed else None for weight, needed in zip(weights, learn, strict=True)]
        by_gate, by_up, by_down = totals
        rows = [tensor.flatten(0, -2) for tensor in (states, slope, by_states)]
        chosen = rows if every else [tensor[some] for tensor in rows]
        room = states.new_empty(4, min(TOKENS, len(some)), len(gate))
        for part, (given, above, below) in enumerate(zip(*(tensor.split(TOKENS) for tensor in chosen), strict=True)):
            before = float(part > 0)  # how often what is there counts
            gated, raised, opened, inner = room[:, : len(given)]
            torch.mm(given, gate.t(), out=gated)
            torch.mm(given, up.t(), out=raised)
            silu(gated, out=opened)
            if by_down is not None:
                by_down.addmm_(above.t(), torch.mul(opened, raised, out=inner), beta=before)
            by_inner = torch.mm(above, down, out=inner)
            by_raised = opened.mul_(by_inner)
            by_gated = silu_backward(by_inner.mul_(raised), gated, grad_input=by_inner)
            torch.mm(by_gated, gate, out=below).addmm_(by_raised, up)
            if by_gate is not None:
                by_gate.addmm_(by_gated.t(), given, beta=before)
            if by_up is not None:
                by_up.addmm_(by_raised.t(), given, beta=before)
        if not every:
            rows[2][some] = chosen[2]
        return by_states, *totals
