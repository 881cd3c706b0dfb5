"""Tensors without values: a step of any model runs on any machine.

    with Meter() as meter:
        without_values(model)  # its parameters have shapes and types, and no storage
        with meter.during("loss"):
            model(input_ids=ids).logits.sum().backward()
    meter.phases["loss"].peak

A `Weightless` tensor says that it is on the CPU, so that autograd and autocast treat it as any other; each operation on
one runs on the meta device, which computes shapes alone. What does not come of weights (token ids, masks, positions,
rewards) stays a real tensor with real numbers, so that code that decides by them decides as in a run. Numbers that are
read from weightless tensors are made up: 1.0, `False`, or the meter's token.

This and `meter.py` are the only places that touch torch's dispatch below its public surface.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rlhf_core.estimate import operations
from rlhf_core.estimate.operations import MAKES, META, VIEW, WRITES, tensors_in

aten = torch.ops.aten
LARGEST = 1 << 22  # numbers that a tensor may have that does not come of weights, and be real
FLASH = 1  # torch's number of the kernel that never holds all scores of an attention


class Counter(Protocol):
    """Who is told what operations keep and take. `token`: what is read from tensors of integers."""

    token: int

    def keep(self, results: Any) -> None: ...

    def take(self, operation: operations.Known) -> None: ...


class Weightless(Tensor):
    """A tensor whose storage is on the meta device. `meta` is what it would be there."""

    meta: Tensor

    @staticmethod
    def __new__(cls, meta: Tensor) -> Weightless:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, meta.shape, meta.stride(), meta.storage_offset(), dtype=meta.dtype, device="cpu"
        )
        made.meta = meta
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Weightless({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {}, None)

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.meta = value.meta if isinstance(value, Weightless) else value.to("meta")

    def tolist(self) -> Any:
        return self.item() if self.dim() == 0 else [part.tolist() for part in self]

    def numpy(self, **_: Any) -> Any:
        return torch.full(self.shape, _made_up(self.dtype, 0)).numpy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied: Any = self.detach().clone()
        if isinstance(self, nn.Parameter):
            copied = nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied


def without_values(model: nn.Module) -> nn.Module:
    """Make every tensor of `model` a weightless one, in place. Shared ones stay shared."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and not isinstance(tensor, Weightless):
                    if id(tensor) not in made:
                        empty: Any = Weightless(torch.empty_like(tensor, device="meta"))
                        is_parameter = isinstance(tensor, nn.Parameter)
                        made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
                    held[name] = made[id(tensor)]  # type: ignore[assignment]
    return model


def run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], counter: Counter | None) -> Any:
    """Carry out an operation of torch without values, where one of its inputs has none."""
    if not _weightless(args) and not (kwargs and _weightless(kwargs.values())):
        return _run_real(function, args, kwargs, counter)
    special = SPECIAL.get(function)
    if special is not None and (result := special(args, counter)) is not NotImplemented:
        return result
    kind = operations.kind(function)
    key = operations.key_of(function, args, kwargs) if kind in (WRITES, MAKES) else None
    known = None if key is None else operations.known.get(key)
    if known is None:
        given, named = _to_meta(args), {name: _to_meta(value) for name, value in kwargs.items()}
        if "device" in named:
            named["device"] = META
        if kind == VIEW:
            return _to_weightless(function(*given, **named), {})
        inputs = {id(t.meta): t for t in tensors_in((args, kwargs)) if isinstance(t, Weightless)}
        results = _to_weightless(function(*given, **named), inputs)
        known = operations.measured(function, args, kwargs, results)
        if key is not None and (results is args[0] if kind == WRITES else not _shared(results, inputs)):
            operations.known[key] = known
    else:
        results = args[0] if kind == WRITES else of(known.outline)
    if counter is not None:
        counter.keep(results)
        counter.take(known)
    return results


def of(outline: Any) -> Any:
    """Weightless tensors with the shapes of an `operations.outline`."""
    return _to_weightless(operations.made(outline), {})


def _weightless(values: Iterable[Any]) -> bool:
    """Whether one of the values has a weightless tensor."""
    for value in values:
        if isinstance(value, Weightless) or (isinstance(value, list | tuple) and _weightless(value)):
            return True
    return False


def _run_real(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], counter: Counter | None) -> Any:
    """What has no weightless tensor among its inputs is computed, unless it makes a large tensor."""
    on_meta = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "meta"
    if function in MAKERS and math.prod(args[0]) > LARGEST and not on_meta:
        results = _to_weightless(function(*args, **{**kwargs, "device": META}), {})
    else:
        results = function(*args, **kwargs)
    if counter is not None:
        counter.keep([t for t in tensors_in(results) if t.is_floating_point() and not t.is_meta])
    return results


MAKERS = {
    *(aten.empty.memory_format, aten.zeros.default, aten.ones.default, aten.full.default),
    *(aten.rand.default, aten.randn.default),
}


def storage_of(tensor: Tensor) -> Any:
    return (tensor.meta if isinstance(tensor, Weightless) else tensor).untyped_storage()


def _shared(results: Any, inputs: dict[int, Weightless]) -> bool:
    """Whether a result is an input's storage seen in another way, although the operation does not say so."""
    storages = {storage_of(t)._cdata for t in inputs.values()}
    return any(storage_of(t)._cdata in storages for t in tensors_in(results))


def _to_meta(value: Any) -> Any:
    if isinstance(value, Weightless):
        return value.meta
    if isinstance(value, Tensor):
        return value.to(META)
    return type(value)([_to_meta(part) for part in value]) if isinstance(value, list | tuple) else value


def _to_weightless(value: Any, known: dict[int, Weightless]) -> Any:
    if isinstance(value, Tensor):
        return known.get(id(value)) or Weightless(value)
    return type(value)([_to_weightless(part, known) for part in value]) if isinstance(value, list | tuple) else value


def _made_up(dtype: torch.dtype, token: int) -> Any:
    """A number that is read from a weightless tensor."""
    return False if dtype == torch.bool else 1.0 if dtype.is_floating_point else token


def _read(args: Any, counter: Counter | None) -> Any:
    return _made_up(args[0].dtype, counter.token if counter else 0)


def _index(args: Any, counter: Counter | None) -> Any:
    """Indexing by a mask needs its places, which a real mask has; of a weightless one, all: the most that it may be."""
    masks = torch.bool, torch.uint8
    if not any(isinstance(index, Tensor) and index.dtype in masks for index in args[1]):
        return NotImplemented
    places: list[Any] = []
    for index in args[1]:
        if isinstance(index, Tensor) and index.dtype in masks:
            mask = torch.ones(index.shape, dtype=torch.bool) if isinstance(index, Weightless) else index
            places += mask.nonzero().unbind(1)
        else:
            places.append(index)
    return run(aten.index.Tensor, (args[0], places), {}, counter)


def _grouped_mm(args: Any, counter: Counter | None) -> Any:
    """The experts' product, which on the meta device takes bfloat16 alone, and which torch's table of operations has no
    count of. `args`: (tokens, in) by (experts, in, out); for a gradient (in, tokens) by (tokens, out). No more experts'
    weights are read than there are tokens.
    """
    a, b, offsets = args[:3]
    shape = (len(a), b.shape[2]) if b.dim() == 3 else (len(offsets), len(a), b.shape[1])
    output = Weightless(torch.empty(shape, dtype=a.dtype, device="meta"))
    if counter is not None:
        read = b.numel() * (min(1.0, len(a) / len(b)) if b.dim() == 3 else 1.0)
        moved = (a.numel() + output.numel() + read) * a.element_size()
        counter.keep(output)
        counter.take(operations.Known(None, 2.0 * a.numel() * b.shape[-1], moved, a.element_size() == 2))
    return output


SPECIAL: dict[Any, Callable[[Any, Counter | None], Any]] = {
    aten._local_scalar_dense.default: _read,
    aten.is_nonzero.default: _read,
    aten.all.default: lambda args, _: torch.tensor(True),
    aten.any.default: lambda args, _: torch.tensor(False),
    aten.equal.default: lambda args, _: False,
    aten.nonzero.default: lambda args, _: torch.ones(args[0].shape, dtype=torch.bool).nonzero(),
    aten.index.Tensor: _index,
    aten._grouped_mm.default: _grouped_mm,
    aten._fused_sdp_choice.default: lambda args, _: FLASH,
}
