"""How long the rest of a run takes, and how much it does a second, by the steps that are done. Pure.

Steps are uneven: the first one is slow, a step that samples is followed by others that only learn from the same
answers, some are followed by an evaluation. So the time of a step is estimated by its place between two batches of
answers, from the latest steps in that place, and evaluations are counted apart. `benchmarks/time_left.py` tries it.
"""

from __future__ import annotations

from collections import deque
from statistics import fmean

LATEST = 12  # steps in one place that are remembered
RECENT = 30.0  # seconds over which rates are told, or of more if a step takes longer


class Pace:
    """`period`: steps from one new batch of answers to the next. `eval_steps`: of evaluations in training, or None."""

    def __init__(self, step: int, total: int, period: int = 1, eval_steps: int | None = None) -> None:
        self.step, self.total, self.period, self.eval_steps = step, total, period, eval_steps
        self.first: float | None = None  # seconds of the first step
        self.places: dict[int, deque[float]] = {}  # by step modulo period
        self.evaluations: list[float] = []

    def add(self, seconds: float) -> None:
        """One more step is done."""
        if self.first is None:
            self.first = seconds
        else:
            self.places.setdefault(self.step % self.period, deque(maxlen=LATEST)).append(seconds)
        self.step += 1

    def evaluated(self, seconds: float) -> None:
        """An evaluation on the held-out rows took so long."""
        self.evaluations.append(seconds)

    def left(self) -> float | None:
        """Seconds until the last step is done; None before the first one is."""
        if self.first is None:
            return None
        known = {place: fmean(times) for place, times in self.places.items()}
        if self.period > 1 and 0 not in known:  # where a batch of answers is sampled, the first step is the only one
            known[0] = self.first
        others = fmean([seconds for place, seconds in known.items() if place or self.period == 1] or [self.first])
        whole, part = divmod(self.total - self.step, self.period)
        seconds = whole * sum(known.get(place, others) for place in range(self.period))
        seconds += sum(known.get((self.step + i) % self.period, others) for i in range(part))
        if self.eval_steps and self.evaluations:  # the last one is after the last step
            every = self.eval_steps
            seconds += fmean(self.evaluations) * ((self.total - 1) // every - self.step // every + 1)
        return seconds


class Rates:
    """How much is done a second, by name, over the latest steps."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, dict[str, float]]] = deque()

    def add(self, seconds: float, **done: float) -> None:
        """A step that took `seconds` did so much of each."""
        self._steps.append((seconds, done))
        while len(self._steps) > 1 and sum(each for each, _ in self._steps) - self._steps[0][0] >= RECENT:
            self._steps.popleft()

    def by_name(self) -> dict[str, float]:
        seconds = sum(each for each, _ in self._steps)
        names = dict.fromkeys(name for _, done in self._steps for name in done)
        return (
            {name: sum(done.get(name, 0.0) for _, done in self._steps) / seconds for name in names} if seconds else {}
        )
