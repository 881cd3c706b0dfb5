"""Tensors without values, and a meter of the memory that they would take: a step of any model runs on any machine.

    with Meter() as meter:
        model = without_values(model)          # its parameters have shapes and types, and no storage
        meter.begin("loss")
        model(input_ids=ids).logits.sum().backward()
    meter.phases["loss"].peak

A `Weightless` tensor calls itself one of the CPU, so that autograd and autocast treat it as any other; each operation on
one runs on the meta device, which computes shapes alone. What does not come of weights (token ids, masks, positions,
rewards) stays a real tensor with real numbers, so that code that decides by them decides as in a run. Numbers that are
read from weightless tensors are made up: 1.0, `False`, or `Meter.token`.

The only place that touches torch's dispatch below its public surface: `_make_wrapper_subclass`, `TorchDispatchMode`.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
BLOCK = 512  # bytes that allocators round to
LARGEST = 1 << 22  # numbers that a tensor that does not come of weights may have, and be real
FLASH = 1  # torch's number of the kernel that never holds all scores of an attention
LOGITS = "logits"


class Weightless(Tensor):
    """A tensor whose storage is on the meta device. `meta` is what it would be there."""

    meta: Tensor

    @staticmethod
    def __new__(cls, meta: Tensor, requires_grad: bool = False) -> Weightless:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            meta.shape,
            meta.stride(),
            meta.storage_offset(),
            dtype=meta.dtype,
            device="cpu",
            requires_grad=requires_grad,
        )
        made.meta = meta
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Weightless({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {}, None)

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

    def __deepcopy__(self, memo: dict[int, Any]) -> Weightless:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, nn.Parameter):
            copied._is_param = True  # type: ignore[attr-defined]
        memo[id(self)] = copied
        return copied  # type: ignore[return-value]


def without_values(model: nn.Module) -> nn.Module:
    """Make every tensor of `model`, which is on the meta device, a weightless one, in place. Shared ones stay shared."""
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


NOTHING = (0, 0.0, 0.0, 0.0)  # that a phase has spent


@dataclass
class Phase:
    """What a part of a step takes: `peak` bytes at once, of each component in `parts`; `operations` launched on the
    device, `flops` in them, and `seconds` of them on the meter's card.
    """

    peak: int = 0
    parts: Counter[str] = field(default_factory=Counter)
    operations: int = 0
    flops: float = 0.0
    moved: float = 0.0
    seconds: float = 0.0

    def spent(self, since: Sequence[float] = NOTHING) -> list[float]:
        """(operations, flops, bytes moved, seconds), without those of `since`."""
        now = self.operations, self.flops, self.moved, self.seconds
        return [value - before for value, before in zip(now, since, strict=True)]

    def spend(self, more: Sequence[float]) -> None:
        operations, flops, moved, seconds = more
        self.operations += int(operations)
        self.flops += flops
        self.moved += moved
        self.seconds += seconds


class Meter(TorchDispatchMode):
    """Runs what is called within it without values, and adds up the bytes of all storages that live.

    `seconds(flops, bytes, in half precision)` is how long an operation takes on the card. `vocabulary`: the last size of tensors
    that are counted as logits.
    """

    def __init__(self, seconds: Callable[[float, float, bool], float] | None = None, vocabulary: int = 0) -> None:
        super().__init__()
        self.seconds, self.vocabulary = seconds, vocabulary
        self.token = 0  # what is read from a weightless tensor of integers
        self.sampling = "answers"  # the phase in which answers are sampled
        self.phases: dict[str, Phase] = {}
        self.live: Counter[str] = Counter()  # bytes of each component
        self.total = 0
        self.name, self.component = "", "activations"
        self.repeat = 1  # how often what runs now is done in a run
        self._components: dict[int, tuple[str, int, Any]] = {}  # of each storage that lives

    @property
    def phase(self) -> Phase:
        return self.phases.setdefault(self.name, Phase())

    @contextmanager
    def during(self, name: str, component: str = "activations", repeat: float = 1) -> Iterator[None]:
        """Count what runs within as a phase, and what it keeps as a component, unless `assign` says otherwise."""
        before = self.name, self.component, self.repeat
        self.name, self.component, self.repeat = name, component, self.repeat * repeat
        self._look()
        try:
            yield
        finally:
            self.name, self.component, self.repeat = before
            self._look()

    def spend(self, name: str, spent: Sequence[float]) -> None:
        """Add the time of what is not run, because the same ran before."""
        self.phases.setdefault(name, Phase()).spend([value * self.repeat for value in spent])

    def assign(self, tensor: Tensor | None, component: str) -> None:
        """Count a tensor's storage as `component` from now on."""
        storage = _storage(tensor)
        if storage is None:
            return
        key = storage._cdata
        if key not in self._components:
            self._add(storage, component)
            return
        before, size, reference = self._components[key]
        self.live[before] -= size
        self.live[component] += size
        self._components[key] = component, size, reference

    def _add(self, storage: Any, component: str) -> None:
        key, size = storage._cdata, -(-storage.nbytes() // BLOCK) * BLOCK
        self._components[key] = component, size, weakref.ref(storage, functools.partial(self._remove, key))
        self.live[component] += size
        self.total += size
        self._look()

    def _remove(self, key: int, _: Any) -> None:
        component, size, _reference = self._components.pop(key)
        self.live[component] -= size
        self.total -= size

    def _look(self) -> None:
        phase = self.phase
        if self.total > phase.peak:
            phase.peak, phase.parts = self.total, self.live.copy()

    def _count(self, results: Any) -> None:
        for tensor in results if isinstance(results, Iterator) else _tensors(results):
            storage = _storage(tensor)
            if storage is not None and storage._cdata not in self._components:
                is_logits = self.vocabulary and tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary
                is_logits = is_logits and self.component == "activations"
                self._add(storage, LOGITS if is_logits else self.component)

    def _spend(self, flops: float, moved: float, inputs: Any) -> None:
        """Add an operation to the phase's time."""
        phase, repeat = self.phase, self.repeat
        phase.operations += repeat
        phase.flops += flops * repeat
        phase.moved += moved * repeat
        if self.seconds is not None:
            half = any(t.dtype in (torch.bfloat16, torch.float16) for t in _tensors(inputs))
            phase.seconds += self.seconds(flops, moved, half) * repeat

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {}, self)


def _run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], meter: Meter | None) -> Any:
    weightless = {id(t.meta): t for t in _tensors((args, kwargs)) if isinstance(t, Weightless)}
    if not weightless:
        return _run_real(function, args, kwargs, meter)
    special = SPECIAL.get(function)
    if special is not None:
        made_up = special(args, kwargs, meter)
        if made_up is not NotImplemented:
            return made_up
    kind = _kind(function)
    key = _key(function, args, kwargs) if kind in (WRITES, MAKES) else None
    known = None if key is None else _known.get(key)
    if known is not None and kind == WRITES:
        results: Any = args[0]
    elif known is not None:
        results = _made(known[0])
    else:
        given, named = _to_meta(args), {name: _to_meta(value) for name, value in kwargs.items()}
        if "device" in named:
            named["device"] = torch.device("meta")
        results = _to_weightless(function(*given, **named), weightless)
    if kind == VIEW:
        return results
    if known is None:
        known = _outline(results), _flops(function, args, kwargs, results), _moved(args, kwargs, results)
        if key is not None and (results is args[0] if kind == WRITES else not _shared(results, weightless)):
            _known[key] = known
    if meter is not None:
        meter._count(results)
        meter._spend(known[1], known[2], args)
    return results


# What an operation makes of inputs of some shapes: layers repeat, and shapes take longer to compute than to remember.
_known: dict[Any, tuple[Any, float, float]] = {}
VIEW, WRITES, MAKES, OTHER = "view", "writes", "makes", "other"


@functools.cache
def _kind(function: Any) -> str:
    """Whether an operation looks at its input in another way, which launches nothing, writes into it, or makes new ones."""
    schema = function._schema
    aliases = [r.alias_info for r in schema.returns if r.alias_info is not None]
    if schema.is_mutable:
        return WRITES if len(aliases) == len(schema.returns) == 1 else OTHER
    return VIEW if aliases else MAKES


def _shared(results: Any, inputs: dict[int, Weightless]) -> bool:
    """Whether a result is an input's storage seen in another way, although the operation does not say so."""
    storages = {t.meta.untyped_storage()._cdata for t in inputs.values()}
    return any(t.meta.untyped_storage()._cdata in storages for t in _tensors(results) if isinstance(t, Weightless))


def _key(*values: Any) -> Any:
    """What decides the shapes of an operation's results; None if it can't be compared."""
    parts: list[Any] = []
    try:
        for value in values:
            _collect(value, parts)
        return tuple(parts)
    except TypeError:
        return None


def _collect(value: Any, parts: list[Any]) -> None:
    if isinstance(value, Tensor):
        parts += (value.shape, value.stride(), value.dtype)
    elif isinstance(value, list | tuple):
        parts.append(len(value))
        for part in value:
            _collect(part, parts)
    elif isinstance(value, dict):
        for name, part in value.items():
            parts.append(name)
            _collect(part, parts)
    else:
        hash(value)
        parts += (type(value), value)


def _outline(results: Any) -> Any:
    if isinstance(results, Tensor):
        return results.shape, results.stride(), results.dtype
    if isinstance(results, list | tuple):
        return [_outline(part) for part in results]
    return results


def _made(outline: Any) -> Any:
    """New tensors of an outline."""
    if isinstance(outline, tuple):
        shape, stride, dtype = outline
        return Weightless(torch.empty_strided(shape, stride, dtype=dtype, device="meta"))
    return tuple(map(_made, outline)) if isinstance(outline, list) else outline


def _flops(function: Any, args: Any, kwargs: Any, results: Any) -> float:
    count = flop_registry.get(function._overloadpacket)
    return float(count(*args, **kwargs, out_val=results)) if count is not None else 0.0


def _moved(args: Any, kwargs: Any, results: Any) -> float:
    """Bytes that it reads and writes."""
    return sum(t.numel() * t.element_size() for t in _tensors((args, kwargs, results)))


def _run_real(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], meter: Meter | None) -> Any:
    """What has no weightless tensor among its inputs is computed, unless it is a large tensor that is made anew."""
    on_meta = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "meta"
    if function in MADE and math.prod(args[0]) > LARGEST and not on_meta:
        results = _to_weightless(function(*args, **{**kwargs, "device": torch.device("meta")}), {})
        if meter is not None:
            meter._count(results)
        return results
    results = function(*args, **kwargs)
    if meter is not None:
        meter._count(t for t in _tensors(results) if t.is_floating_point() and not t.is_meta)
    return results


MADE = {
    *(aten.empty.memory_format, aten.zeros.default, aten.ones.default, aten.full.default),
    *(aten.rand.default, aten.randn.default),
}


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        for value in values.values():
            yield from _tensors(value)


def _storage(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    return (tensor.meta if isinstance(tensor, Weightless) else tensor).untyped_storage()


def _to_meta(value: Any) -> Any:
    if isinstance(value, Weightless):
        return value.meta
    if isinstance(value, Tensor):
        # A number that was made a tensor promotes types as a number does, also on the meta device.
        return value.to("meta") if value.dim() else torch.empty((), dtype=value.dtype, device="meta")
    if isinstance(value, list | tuple):
        return type(value)(map(_to_meta, value))
    return value


def _to_weightless(value: Any, known: dict[int, Weightless]) -> Any:
    if isinstance(value, Tensor):
        return known.get(id(value)) or Weightless(value)
    if isinstance(value, list | tuple):
        return type(value)(_to_weightless(part, known) for part in value)
    return value


def _made_up(dtype: torch.dtype, token: int) -> Any:
    """A number that is read from a weightless tensor."""
    return False if dtype == torch.bool else 1.0 if dtype.is_floating_point else token


def _read(args: Any, kwargs: Any, meter: Meter | None) -> Any:
    return _made_up(args[0].dtype, meter.token if meter else 0)


def _all(args: Any, kwargs: Any, meter: Meter | None) -> Any:
    """Every place, as if all were true: the most that it may be."""
    return torch.ones(args[0].shape, dtype=torch.bool).nonzero()


def _index(args: Any, kwargs: Any, meter: Meter | None) -> Any:
    """Indexing by a mask needs its places, which a real mask has; of a weightless one, all."""
    if not any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
        return NotImplemented
    places: list[Any] = []
    for index in args[1]:
        if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
            real = torch.ones(index.shape, dtype=torch.bool) if isinstance(index, Weightless) else index
            places += real.nonzero().unbind(1)
        else:
            places.append(index)
    return meter_call(meter, aten.index.Tensor, (args[0], places), kwargs)


def _index_put(function: Any) -> Callable[..., Any]:
    def put(args: Any, kwargs: Any, meter: Meter | None) -> Any:
        if isinstance(args[0], Weightless) or function is not aten.index_put_.default:
            return NotImplemented
        raise TypeError("a weightless value can't be put into a real tensor")

    return put


def meter_call(meter: Meter | None, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _run(function, args, kwargs, meter)


def _to_copy(args: Any, kwargs: Any, meter: Meter | None) -> Any:
    return NotImplemented


SPECIAL: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: _read,
    aten.is_nonzero.default: _read,
    aten.all.default: lambda args, kwargs, meter: torch.tensor(True),
    aten.any.default: lambda args, kwargs, meter: torch.tensor(False),
    aten.equal.default: lambda args, kwargs, meter: False,
    aten.nonzero.default: _all,
    aten.index.Tensor: _index,
    aten._fused_sdp_choice.default: lambda args, kwargs, meter: FLASH,
}
