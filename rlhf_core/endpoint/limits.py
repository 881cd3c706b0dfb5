"""How fast an endpoint is asked: no more than its requests and tokens a minute. Waits are spread evenly."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping

from rlhf_core.errors import UserError

LEAST = {"concurrency": 1, "retries": 0, "timeout": 0.01, "max_calls": 1, "max_cost": 0, "max_tokens": 1}
LEAST |= {"requests_per_minute": 0.01, "tokens_per_minute": 1}
MOST = 1_000_000_000


def check_bounds(given: Mapping[str, float | None]) -> None:
    """Raise `UserError` for a number of an endpoint's that can't be meant; None is no limit."""
    for name, value in given.items():
        if value is not None and not LEAST[name] <= value <= MOST:
            raise UserError(f"{name}={value:g}: a number from {LEAST[name]:g} to {MOST:,} is needed")


class Rate:
    """At most `per_minute` units a minute, after a burst of a second's worth."""

    def __init__(self, per_minute: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second = None if per_minute is None else per_minute / 60
        self.clock = clock
        self._free_at = -math.inf  # when all units that were taken have been given
        self._lock = threading.Lock()

    def take(self, units: float) -> float:
        """The seconds to wait before these units may be used."""
        if self.per_second is None:
            return 0.0
        with self._lock:
            now = self.clock()
            start = max(self._free_at, now - 1)
            self._free_at = start + units / self.per_second
            return max(0.0, start - now)
