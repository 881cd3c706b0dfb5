"""The seconds that this process has spent in each phase of training. Code of a phase says so; what is left of a step is
learning.

    @phase("sampling")
    def rollout(…): …
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Phase = Literal["sampling", "rewards"]
seconds: dict[Phase, float] = {"sampling": 0.0, "rewards": 0.0}
interrupted: set[Phase] = set()  # those that an error left, and that have not begun since
_open: set[Phase] = set()


@contextmanager
def phase(name: Phase) -> Iterator[None]:
    """Count the time within as `name`; within itself, once. It must end by reading from the device what it computed."""
    if name in _open:
        yield
        return
    _open.add(name)
    interrupted.discard(name)
    began = time.perf_counter()
    try:
        yield
    except BaseException:
        interrupted.add(name)
        raise
    finally:
        seconds[name] += time.perf_counter() - began
        _open.remove(name)
