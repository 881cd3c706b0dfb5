"""Sampling on a CPU: a token's few rows go through wide matrices, which linear algebra libraries do slowly.

oneDNN multiplies them about twice as fast by weights in an order of its own (docs/lab-notes.md). While answers are
sampled a linear layer's weights therefore stand in that order, and nowhere else, which takes no memory. Weights that
something else needs meanwhile, such as the table of the embeddings, and those with adapters, which are added to them,
stay as they are and have a copy in that order, if the copies take no more than a quarter of the free memory.

The only place that touches torch's operations for such an order, which its own compiler uses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import psutil
import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import linear

from rlhf_core.prefix.pages import give_back

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
    alone = _alone(model, plain)
    copied = [module for module in [*plain, *adapted] if module not in alone]
    room = sum(_weight(module).nbytes for module in copied) <= psutil.virtual_memory().available / 4
    reorder = room and not small and torch.backends.mkldnn.is_available()
    with ExitStack() as stack:
        if reorder:
            stack.callback(give_back)
        computed = {}
        for module in [*plain, *(adapted if room else [])]:
            weight, bias, put_back = _summed(module), getattr(module, "base_layer", module).bias, _nothing
            product: Product = partial(linear, weight=weight, bias=bias)
            if reorder:
                packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)
                product = partial(_packed_linear, packed, bias)
                if module in alone and _comes_back(weight, packed):
                    put_back = partial(_put_back, weight, packed)
                    stack.callback(put_back)
                    weight.untyped_storage().resize_(0)
            computed[module] = product
            module.forward = partial(_forward, module, product, put_back)
            stack.callback(delattr, module, "forward")
        stack.callback(computed.clear)
        if small and computed:  # by the size alone, so that a run goes on with the same numbers
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        yield computed


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


def _alone(model: Any, modules: Sequence[nn.Module]) -> set[nn.Module]:
    """Those whose weights nothing else in `model` uses, and that can leave their place."""
    users = Counter(weight.data_ptr() for module in model.modules() for weight in module.parameters(recurse=False))
    weights = {module: _weight(module) for module in modules}
    return {module for module, weight in weights.items() if users[weight.data_ptr()] == 1 and _is_whole(weight)}


def _is_whole(weight: Tensor) -> bool:
    """Whether it is all that its storage holds, and torch can free that."""
    storage = weight.untyped_storage()
    return storage.resizable() and storage.nbytes() == weight.nbytes and weight.is_contiguous()


_seen: dict[torch.Size, bool] = {}


def _comes_back(weight: Tensor, packed: Tensor) -> bool:
    """Whether every bit of it does; seen once for each shape."""
    if weight.shape not in _seen:
        _seen[weight.shape] = torch.equal(packed.to_dense(), weight)
    return _seen[weight.shape]


def _summed(module: Any) -> Tensor:
    """The weight, with the adapters that are in use."""
    weight = _weight(module).detach()
    if not isinstance(module, LoraLinear):
        return weight
    names = [name for name in module.active_adapters if name in module.lora_A]
    return sum((module.get_delta_weight(name) for name in names), weight)


def _put_back(weight: Tensor, packed: Tensor) -> None:
    """The same numbers in the usual order, where they were."""
    storage = weight.untyped_storage()
    if storage.nbytes() == 0:
        storage.resize_(weight.nbytes)
        weight.data.copy_(packed.to_dense())  # unseen by autograd: the numbers are what they were


def _nothing() -> None:
    pass


def _packed_linear(weight: Tensor, bias: Tensor | None, states: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")


def _forward(
    module: nn.Module, product: Product, put_back: Callable[[], None], states: Tensor, *more: Any, **options: Any
) -> Tensor:
    if more or options or states.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        put_back()
        return type(module).forward(module, states, *more, **options)
    return product(states)
