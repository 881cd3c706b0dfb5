"""Decoding on a CPU: a token's few rows go through wide matrices, which linear algebra libraries do slowly.

Multiplied by blocks of the matrix's rows, as a batch of small products, the same work takes a third to three
quarters of the time (docs/lab-notes.md). Nothing is copied: the blocks are a view of the weights. Only where an adapter
is beside them, and there is room, it is added to a copy of them, since on few rows its products are mostly overhead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import psutil
import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import linear

BLOCK = 64  # outputs
ROWS = 64  # up to which blocks are faster
SMALL = 1 << 18  # entries of a matrix that one thread multiplies sooner than several can begin


@contextmanager
def on_few_rows(model: Any) -> Iterator[set[nn.Module]]:
    """Within, the linear layers of `model` (without wrappers) are fast on few rows; without gradient. Gives those that
    are.
    """
    chosen = {module for module in model.modules() if _takes_blocks(module)}
    threads = torch.get_num_threads()
    sizes = [module.weight.numel() for module in model.base_model.modules() if isinstance(module, nn.Linear)]
    if model.device.type == "cpu" and sizes and max(sizes) <= SMALL:
        torch.set_num_threads(1)  # by the size alone, so that a run goes on with the same numbers
    for module in chosen:
        module.forward = partial(_in_blocks, module)
    try:
        with _merged(model):
            yield chosen
    finally:
        for module in chosen:
            del module.forward
        torch.set_num_threads(threads)


@contextmanager
def _merged(model: Any) -> Iterator[None]:
    """Within, adapters in float32 on a CPU are part of the weights beside them, if a copy of those takes no more than
    a quarter of the free memory. After, every weight is the very tensor that it was.
    """
    layers = [module for module in model.base_model.modules() if _can_be_merged(module)]  # the head may be tied
    weights = [weight for layer in layers for weight in layer.base_layer.parameters()]
    if sum(weight.nbytes for weight in weights) > psutil.virtual_memory().available / 4:
        layers, weights = [], []
    kept = [weight.data for weight in weights]
    try:
        for weight in weights:
            weight.data = weight.data.clone()
        for layer in layers:
            layer.merge()
        yield
    finally:
        for layer in layers:
            layer.merged_adapters.clear()
        for weight, data in zip(weights, kept, strict=True):
            weight.data = data


def _can_be_merged(module: nn.Module) -> bool:
    """Whether it has a plain adapter that is in use."""
    return (
        type(module) is LoraLinear
        and not (module.lora_variant or module.merged or module.disable_adapters)
        and all(w.device.type == "cpu" and w.dtype == torch.float32 for w in module.parameters())
    )


def _takes_blocks(module: nn.Module) -> bool:
    return (
        type(module) is nn.Linear
        and "forward" not in vars(module)  # where another library has put its own
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.float32
        and module.weight.is_contiguous()
        and module.out_features % BLOCK == 0
    )


def _in_blocks(module: nn.Linear, states: Tensor) -> Tensor:
    rows = states.reshape(-1, module.in_features)
    if len(rows) > ROWS or states.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return linear(states, module.weight, module.bias)
    return Blocks.of(module).times(rows).transpose(0, 1).reshape(*states.shape[:-1], module.out_features)


class Blocks(NamedTuple):
    """A linear layer's weights as a view of `blocks`, (blocks, inputs, outputs of a block), and its bias likewise."""

    blocks: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, module: nn.Linear, size: int = BLOCK) -> Blocks:
        blocks = module.weight.view(-1, size, module.in_features).transpose(1, 2)
        return cls(blocks, None if module.bias is None else module.bias.view(-1, 1, size))

    def times(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """(blocks, rows, outputs of a block) of (rows, inputs)."""
        rows = rows.expand(len(self.blocks), *rows.shape)
        if self.bias is None:
            return torch.bmm(rows, self.blocks, out=out)
        return torch.baddbmm(self.bias, rows, self.blocks, out=out)
