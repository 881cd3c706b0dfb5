"""The engine's batches as the parts of `benchmarks/gpu.py` see them: their graphs, counted, and what they warn of. On a
CPU flash attention and CUDA graphs are emulated (`tests/flash.py`, `tests/graphs.py`).
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu_kit import REAL, Scale
from rlhf_core.prefix import Sampling, decoding


@contextlib.contextmanager
def on_device(scale: Scale) -> Iterator[None]:
    """On a CPU as on CUDA."""
    if scale is REAL:
        yield
        return
    from tests import flash

    with flash.emulated():
        yield


class Warnings(logging.Handler):
    """What the engine warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())

    def __enter__(self) -> Warnings:
        logging.getLogger("rlhf").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("rlhf").removeHandler(self)


class Replayed:
    """A graph that counts."""

    def __init__(self, graph: Any) -> None:
        self.graph, self.replays = graph, 0

    def replay(self) -> None:
        self.replays += 1
        self.graph.replay()


@contextlib.contextmanager
def batches(scale: Scale, *, captures: bool) -> Iterator[list[Any]]:
    """The engine's batches, seen; steps are captured or not."""
    seen: list[Any] = []
    real = decoding.Batch

    class Seen(real):  # type: ignore[misc, valid-type]
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.captures = captures
            seen.append(self)

        def _capture(self) -> None:
            if scale is REAL:
                super()._capture()
            else:
                from tests.graphs import recorded

                recorded(self)
            self.graphs = {
                layout: one if isinstance(one, Replayed) else Replayed(one) for layout, one in self.graphs.items()
            }

    decoding.Batch = Seen  # type: ignore[misc]
    try:
        yield seen
    finally:
        decoding.Batch = real  # type: ignore[misc]


def batch_of(model: Any, prompts: Any, n: int, sampling: Sampling) -> Any:
    """A batch of the engine, whose prompts are in its cache."""
    sampler = decoding.Sampler(sampling)
    rows = sampler.rows([prompt for prompt in prompts for _ in range(n)])
    room = decoding.room_for(model, rows, sampling)
    batch = decoding.Batch(model, decoding.step_of(model, room.longest + room.tokens), sampler, room)
    batch.enter(deque(rows))
    return batch
