"""How fast an endpoint is asked: no more than its requests and tokens a minute. Waits are spread evenly."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable


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
