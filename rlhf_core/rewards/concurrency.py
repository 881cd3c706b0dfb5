"""How this process scores a batch: ordinary rewards run on the main thread, the rows of concurrent ones on threads, and
each async reward on its own event loop.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace

from rlhf_core.rewards.binding import BoundReward
from rlhf_core.rewards.outcomes import Column, Inputs, OutOfTime, RewardFailed, attempt, check, failure, join, only_row
from rlhf_core.rewards.outcomes import score as score_batch
from rlhf_core.rewards.worker import BATCH_SECONDS

AT_ONCE = 64  # rows that are scored at the same time
SLOW_ROW = 0.005  # seconds a row from which scoring rows at the same time is worth the effort
GRACE = 5.0  # seconds that an event loop has to stop an overdue reward before it is abandoned


class AsyncRunner:
    """An async reward's event loop, on its own thread, so that a function that blocks it delays no other."""

    def __init__(self, reward: BoundReward) -> None:
        self.reward = reward
        self.seconds = reward.reward.timeout or BATCH_SECONDS
        self._loop: asyncio.AbstractEventLoop | None = None

    def submit(self, fresh: Callable[[], Inputs], size: int) -> Callable[[], Column]:
        """Start to score a batch. Returns a function that waits for its column."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name=f"rlhf-{self.reward.name}", daemon=True).start()
        started = time.perf_counter()
        future = asyncio.run_coroutine_threadsafe(self._score(fresh, size), self._loop)

        def column() -> Column:
            try:
                return future.result(2 * self.seconds + GRACE)
            except CancelledError:
                found = failure(RewardFailed("CancelledError, by the reward itself"), size)
            except TimeoutError:
                self.close()
                blocked = f"no answer within {self.seconds:g} s, and it could not be stopped: it blocks its event loop"
                found = failure(OutOfTime(blocked), size)
            found.seconds = time.perf_counter() - started
            return found

        return column

    def close(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    async def _score(self, fresh: Callable[[], Inputs], size: int) -> Column:
        started = time.perf_counter()
        clock = asyncio.get_running_loop().time
        column = await self._attempt(fresh(), size, clock() + self.seconds)
        if column.raised and size > 1 and not self.reward.reward.batchwise:
            gate, deadline, inputs = asyncio.Semaphore(AT_ONCE), clock() + self.seconds, fresh()

            async def row(i: int) -> Column:
                async with gate:
                    return await self._attempt(only_row(inputs, i), 1, deadline)

            column = join(await asyncio.gather(*map(row, range(size))))
        column.seconds = time.perf_counter() - started
        return column

    async def _attempt(self, inputs: Inputs, size: int, deadline: float) -> Column:
        limit = asyncio.timeout_at(deadline)
        try:
            async with limit:
                return check(await self.reward.call(*inputs), size)
        except (Exception, SystemExit) as error:  # a reward may raise anything
            return failure(OutOfTime(f"no answer within {self.seconds:g} s") if limit.expired() else error, size)


def score_here(reward: BoundReward, fresh: Callable[[], Inputs], size: int) -> Column:
    """Score the batch on this thread."""
    processor = time.process_time()
    column = score_batch(reward.call, fresh, size, batchwise=reward.reward.batchwise)
    processor = time.process_time() - processor
    column.waited = size > 1 and column.seconds > SLOW_ROW * size and processor < column.seconds / 2
    return column


def score_rows(
    reward: BoundReward, fresh: Callable[[], Inputs], size: int, pool: ThreadPoolExecutor
) -> Callable[[], Column]:
    """Start to score each row in its own call on a thread. Returns a function that waits for their column."""
    started = time.perf_counter()
    columns, trl = fresh()
    # Logging is for full batches, in the order of their rows.
    inputs = columns, {name: value for name, value in trl.items() if name not in ("log_extra", "log_metric")}
    futures = [pool.submit(attempt, reward.call, only_row(inputs, i), 1) for i in range(size)]

    def column() -> Column:
        joined = join([future.result() for future in futures])
        joined.seconds = time.perf_counter() - started
        return joined

    return column


def advice(reward: BoundReward, column: Column) -> str | None:
    """A hint for an ordinary reward that mostly waited, where the user has not set `concurrent`."""
    logs = reward.signature.trl & {"log_extra", "log_metric"}
    if not column.waited or reward.reward.batchwise or logs or reward.spec.concurrent is not None:
        return None
    return (
        f"reward {reward.name!r} took {column.seconds:.2g} s for {len(column.scores)} rows and mostly waited. If the "
        "score of a row depends on that row alone, score the rows at the same time with "
        f"--reward '{replace(reward.spec, concurrent=True)}'"
    )
