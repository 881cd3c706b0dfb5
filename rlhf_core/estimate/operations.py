"""What a torch operation makes of inputs of some shapes, remembered: layers repeat, and finding shapes out takes longer
than remembering them. Also what it computes and moves.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

VIEW, WRITES, MAKES, OTHER = "view", "writes", "makes", "other"
Key = tuple[Any, ...] | None


class Known(NamedTuple):
    """Of an operation on inputs of some shapes: its results' outline, floating-point operations, bytes that it reads
    and writes, and whether an input is in half precision.
    """

    outline: Any
    flops: float
    moved: float
    half: bool


known: dict[Key, Known] = {}
META = torch.device("meta")


@functools.cache
def kind(function: Any) -> str:
    """Whether an operation looks at its input in another way (which launches nothing), writes into it, or makes new."""
    schema = function._schema
    aliases = [r.alias_info for r in schema.returns if r.alias_info is not None]
    if schema.is_mutable:
        return WRITES if len(aliases) == len(schema.returns) == 1 else OTHER
    return VIEW if aliases else MAKES


def key_of(function: Any, args: Any, kwargs: Any) -> Key:
    """What decides the shapes of an operation's results; None if it can't be compared."""
    parts: list[Any] = [id(function)]
    _collect(args, parts)
    if kwargs:
        for name, value in kwargs.items():
            parts.append(name)
            _collect((value,), parts)
    key = tuple(parts)
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _collect(values: Any, parts: list[Any]) -> None:
    for value in values:
        if isinstance(value, Tensor):
            parts += (value.shape, value.stride(), value.dtype)
        elif isinstance(value, list | tuple):
            parts.append(len(value))
            _collect(value, parts)
        else:
            parts += (type(value), value)


def measured(function: Any, args: Any, kwargs: Any, results: Any) -> Known:
    count = flop_registry.get(function._overloadpacket)
    flops = float(count(*args, **kwargs, out_val=results)) if count is not None else 0.0
    moved = sum(t.numel() * t.element_size() for t in tensors_in((args, kwargs, results)))
    half = any(t.dtype in (torch.bfloat16, torch.float16) for t in tensors_in(args))
    return Known(outline(results), flops, moved, half)


def outline(results: Any) -> Any:
    """Shapes, strides and types of tensors, from which `made` makes others."""
    if isinstance(results, Tensor):
        return results.shape, results.stride(), results.dtype
    return [outline(part) for part in results] if isinstance(results, list | tuple) else results


def made(outline: Any) -> Any:
    """New tensors on the meta device."""
    if isinstance(outline, tuple):
        shape, stride, dtype = outline
        return torch.empty_strided(shape, stride, dtype=dtype, device=META)
    return tuple(map(made, outline)) if isinstance(outline, list) else outline


def tensors_in(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors_in(value)
    elif isinstance(values, dict):
        for value in values.values():
            yield from tensors_in(value)
