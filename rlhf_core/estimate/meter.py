"""The bytes that live while a step runs without values, and what it computes."""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_core.estimate.operations import Known, outline, tensors_in
from rlhf_core.estimate.weightless import of, run, storage_of

BLOCK = 512  # bytes that allocators round to
ACTIVATIONS, LOGITS = "activations", "logits"
ANSWERS = "answers"  # the phase in which a run samples
BETWEEN = ""  # the phase of what runs between the others
NOTHING = (0.0, 0.0, 0.0)  # that a phase has spent


@dataclass
class Phase:
    """What a part of a step takes: `peak` bytes at once, of each component in `parts`; `operations` launched on the
    device, `flops` in them, and `seconds` of them there.
    """

    peak: int = 0
    parts: Counter[str] = field(default_factory=Counter)
    operations: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0

    def spent(self, since: Sequence[float] = NOTHING) -> list[float]:
        """(operations, flops, seconds), without those of `since`."""
        now = self.operations, self.flops, self.seconds
        return [value - before for value, before in zip(now, since, strict=True)]

    def spend(self, more: Sequence[float]) -> None:
        operations, flops, seconds = more
        self.operations += operations
        self.flops += flops
        self.seconds += seconds

    def reach(self, peak: int, *parts: Counter[str]) -> None:
        """So many bytes live, the sum of `parts`."""
        if peak > self.peak:
            self.peak, self.parts = peak, Counter()
            for some in parts:
                self.parts.update(some)


class Meter(TorchDispatchMode):
    """Runs what is called within it without values, and adds up the bytes of all storages that live.

    `seconds(flops, bytes, half)` is how long an operation takes on the device, `half` in half precision. `vocabulary`:
    tensors with this last size are counted as logits.
    """

    def __init__(self, seconds: Callable[[float, float, bool], float] | None = None, vocabulary: int = 0) -> None:
        super().__init__()
        self.seconds, self.vocabulary = seconds, vocabulary
        self.token = 0  # what is read from a weightless tensor of integers
        self.sampling = ANSWERS  # the phase in which answers are sampled
        self.phases: dict[str, Phase] = {}
        self.live: Counter[str] = Counter()  # bytes of each component
        self.total = 0
        self.name, self.component = BETWEEN, ACTIVATIONS
        self.phase = self.phases.setdefault(BETWEEN, Phase())  # with this name
        self.repeat: float = 1  # how often what runs now is done in a run
        self._components: dict[int, tuple[str, int, Any]] = {}  # of each storage that lives
        self._done: dict[Any, tuple[Any, Phase]] = {}  # results of `once`, and what was taken beyond what lived before

    @contextmanager
    def during(self, name: str, component: str = ACTIVATIONS, repeat: float = 1) -> Iterator[None]:
        """Count what runs within as a phase, and what it keeps as a component, unless `assign` says otherwise."""
        before = self.name, self.component, self.repeat
        self._enter(name, component, self.repeat * repeat)
        try:
            yield
        finally:
            self._enter(*before)

    def _enter(self, name: str, component: str, repeat: float) -> None:
        self._look()
        self.name, self.component, self.repeat = name, component, repeat
        self.phase = self.phases.setdefault(name, Phase())
        self._look()

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """The results of `compute`, which runs at the first call with this key. Later it is counted: it takes as much
        beyond what lives then and as much time, and its results are of the same shapes. Copies of weights that autocast
        makes in a first pass and keeps are counted once more.
        """
        self._look()
        phase = self.phase
        if key in self._done:
            shapes, beyond = self._done[key]
            phase.reach(self.total + beyond.peak, self.live, beyond.parts)
            phase.spend([value * self.repeat for value in beyond.spent()])
            results = of(shapes)
            self.keep(results)
            return results
        total, live = self.total, self.live.copy()
        self.phase = inside = Phase()
        try:
            results = compute()
            self._look()
        finally:
            self.phase = phase
        phase.reach(inside.peak, inside.parts)
        phase.spend(inside.spent())
        inside.parts.subtract(live)
        one = [value / self.repeat for value in inside.spent()]
        self._done[key] = outline(results), Phase(inside.peak - total, inside.parts, *one)
        return results

    def assign(self, tensor: Tensor | None, component: str) -> None:
        """Count a tensor's storage as `component` from now on."""
        if tensor is None:
            return
        storage = storage_of(tensor)
        key = storage._cdata
        if key not in self._components:
            self._add(storage, component)
            return
        before, size, reference = self._components[key]
        self.live[before] -= size
        self.live[component] += size
        self._components[key] = component, size, reference

    def spend(self, name: str, spent: Sequence[float]) -> None:
        """Add the time of what is not run, because the same ran before."""
        self.phases.setdefault(name, Phase()).spend([value * self.repeat for value in spent])

    def keep(self, results: Any) -> None:
        """Count the storages of new tensors."""
        for tensor in tensors_in(results):
            storage = storage_of(tensor)
            if storage._cdata not in self._components:
                is_logits = tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary
                self._add(storage, LOGITS if is_logits and self.component == ACTIVATIONS else self.component)

    def take(self, operation: Known) -> None:
        """Add an operation to the phase's time."""
        phase, repeat = self.phase, self.repeat
        phase.operations += repeat
        phase.flops += operation.flops * repeat
        if self.seconds is not None:
            phase.seconds += self.seconds(operation.flops, operation.moved, operation.half) * repeat

    def _add(self, storage: Any, component: str) -> None:
        key, size = storage._cdata, -(-storage.nbytes() // BLOCK) * BLOCK
        self._components[key] = component, size, weakref.ref(storage, functools.partial(self._remove, key))
        self.live[component] += size
        self.total += size

    def _remove(self, key: int, _: Any) -> None:
        self._look()
        component, size, _reference = self._components.pop(key)
        self.live[component] -= size
        self.total -= size

    def _look(self) -> None:
        """Remember what lives now if it is the most of the phase: before it gets less, or the phase changes."""
        self.phase.reach(self.total, self.live)

    def __exit__(self, *exception: Any) -> None:
        self._look()
        super().__exit__(*exception)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {}, self)
