"""Decoding on a CPU: a token's few rows go through wide matrices, which linear algebra libraries do slowly.

Multiplied by blocks of the matrix's rows, as a batch of small products, the same work takes a third to three
quarters of the time (docs/lab-notes.md). Nothing is copied: the blocks are a view of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

BLOCK = 64  # outputs
ROWS = 64  # up to which blocks are faster
SMALL = 1 << 18  # entries of a matrix that one thread multiplies sooner than several can begin


@contextmanager
def on_few_rows(model: Any) -> Iterator[None]:
    """Within, the linear layers of `model` (without wrappers) are fast on few rows; without gradient."""
    chosen = [module for module in model.modules() if _takes_blocks(module)]
    threads = torch.get_num_threads()
    sizes = [module.weight.numel() for module in model.base_model.modules() if isinstance(module, nn.Linear)]
    if model.device.type == "cpu" and sizes and max(sizes) <= SMALL:
        torch.set_num_threads(1)  # by the size alone, so that a run goes on with the same numbers
    for module in chosen:
        module.forward = partial(_in_blocks, module)
    try:
        yield
    finally:
        for module in chosen:
            del module.forward
        torch.set_num_threads(threads)


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
    blocks = module.weight.view(-1, BLOCK, module.in_features).transpose(1, 2)
    output = torch.matmul(rows, blocks).transpose(0, 1).reshape(*states.shape[:-1], module.out_features)
    return output if module.bias is None else output + module.bias
