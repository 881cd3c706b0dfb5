"""Sampling on a CPU: a token's few rows go through wide matrices, which linear algebra libraries do slowly.

oneDNN multiplies them about twice as fast by weights in an order of its own (docs/lab-notes.md), so there is a copy of
the weights in that order while answers are sampled, adapters added to it, if the copy takes no more than a quarter of
the free memory.

The only place that touches torch's operations for such copies, which its own compiler uses.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psutil
import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import linear

ROWS = 8  # for which the order is chosen; it is as good for more
SMALL = 1 << 18  # entries of the largest matrix in a model that one thread computes sooner than several can begin
Product = Callable[[Tensor], Tensor]


@contextmanager
def on_few_rows(model: Any) -> Iterator[dict[nn.Module, Product]]:
    """Within, the linear layers of `model` (without wrappers) are fast on few rows; without gradient. Gives what each
    of them computes, those in float32 on a CPU.
    """
    adapted = [module for module in model.modules() if _is_adapted(module)]
    within = {inner for module in adapted for inner in module.modules() if inner is not module}
    plain = [module for module in model.modules() if _is_plain(module) and module not in within]
    inside = [_weight(module).numel() for module in model.base_model.modules() if module in {*plain, *adapted}]
    small = max(inside, default=0) <= SMALL
    room = sum(_weight(module).nbytes for module in [*plain, *adapted]) <= psutil.virtual_memory().available / 4
    reorder = room and not small and torch.backends.mkldnn.is_available()
    computed = {module: _product(module, reorder) for module in [*plain, *(adapted if room else [])]}
    threads = torch.get_num_threads()
    if small and computed:  # by the size alone, so that a run goes on with the same numbers
        torch.set_num_threads(1)
    for module, product in computed.items():
        module.forward = partial(_forward, module, product)
    try:
        yield computed
    finally:
        for module in computed:
            del module.forward
        torch.set_num_threads(threads)
        computed.clear()
        if reorder:
            give_back()


def give_back() -> None:
    """To the system what has been freed, which glibc would keep."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _is_plain(module: nn.Module) -> bool:
    return (
        type(module) is nn.Linear
        and "forward" not in vars(module)  # where another library has put its own
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.float32
    )


def _is_adapted(module: nn.Module) -> bool:
    """Whether it is a linear layer with a plain adapter that is in use."""
    return (
        type(module) is LoraLinear
        and _is_plain(module.base_layer)
        and not (module.lora_variant or module.merged or module.disable_adapters or any(module.lora_bias.values()))
        and all(weight.dtype == torch.float32 for weight in module.parameters())
    )


def _weight(module: Any) -> Tensor:
    return module.base_layer.weight if isinstance(module, LoraLinear) else module.weight


def _product(module: Any, reorder: bool) -> Product:
    weight, bias = _weight(module).detach(), getattr(module, "base_layer", module).bias
    if isinstance(module, LoraLinear):
        names = [name for name in module.active_adapters if name in module.lora_A]
        weight = sum((module.get_delta_weight(name) for name in names), weight)
    if not reorder:
        return partial(linear, weight=weight, bias=bias)
    return partial(_reordered_linear, torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS), bias)


def _reordered_linear(weight: Tensor, bias: Tensor | None, states: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")


def _forward(module: nn.Module, product: Product, states: Tensor, *more: Any, **options: Any) -> Tensor:
    if more or options or states.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return type(module).forward(module, states, *more, **options)
    return product(states)
