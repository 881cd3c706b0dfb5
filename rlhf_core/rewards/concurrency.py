"""Rewards that wait for something run beside each other: async ones on event loops, slow ordinary ones on threads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor

from rlhf_core.reward import CALLBACK_NAMES
from rlhf_core.rewards.outcomes import Column, Inputs, OutOfTime, RewardFailed, attempt, check, failure, join, only_row
from rlhf_core.rewards.spec import BoundReward
from rlhf_core.rewards.worker import BATCH_SECONDS

AT_ONCE = 64  # rows that are scored at the same time
SLOW_ROW = 0.005  # seconds a row from which threads are worth trying
TRIES = 3  # on a busy machine threads may be no quicker the first time
GRACE = 5.0  # seconds after which an event loop that did not stop an overdue reward is given up


class AsyncRunner:
    """An async reward's event loop, on a thread of its own, so that a function that blocks it holds up no other."""

    def __init__(self, reward: BoundReward) -> None:
        self.reward = reward
        self.seconds = reward.reward.timeout or BATCH_SECONDS
        self._loop: asyncio.AbstractEventLoop | None = None

    def submit(self, fresh: Callable[[], Inputs], size: int) -> Callable[[], Column]:
        """Start to score a batch; the function returned waits for its column."""
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
                said = f"no answer within {self.seconds:g} s, and it could not be stopped: it blocks its event loop"
                found = failure(OutOfTime(said), size)
            found.seconds = time.perf_counter() - started
            return found

        return column

    def close(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    async def _score(self, fresh: Callable[[], Inputs], size: int) -> Column:
        started = time.perf_counter()
        column = await self._attempt(fresh(), size, _in(self.seconds))
        if column.raised and size > 1 and not self.reward.reward.batchwise:
            gate, deadline, inputs = asyncio.Semaphore(AT_ONCE), _in(self.seconds), fresh()

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


def _in(seconds: float) -> float:
    """The running event loop's time in `seconds`."""
    return asyncio.get_running_loop().time() + seconds


class RowThreads:
    """An ordinary reward, on the main thread until it proved that its rows may be scored side by side.

    Proof is a batch that took long while the processor was idle and that gave the same scores, in under half the time,
    when its rows were scored again on threads. Of a function given by path, which can't declare `batchwise`, the scores
    must also differ among each other: equal ones don't show whether a row's score depends on the others.
    A row that then fails on a thread but not on the main thread sends the reward back there for good.
    """

    def __init__(self, reward: BoundReward, pool: ThreadPoolExecutor) -> None:
        self.reward, self.pool = reward, pool
        self.proved = False
        self.tries = TRIES
        # What a reward logs by TRL's callbacks belongs to a batch, in its rows' order.
        self.possible = not (reward.reward.batchwise or reward.signature.trl & {"log_extra", "log_metric"})

    def score(self, fresh: Callable[[], Inputs], size: int) -> Column:
        """The batch on this thread, row by row if it raised."""
        started, processor = time.perf_counter(), time.thread_time()
        column = attempt(self.reward.call, fresh(), size)
        if column.raised and size > 1 and not self.reward.reward.batchwise:
            inputs = fresh()
            column = join([attempt(self.reward.call, only_row(inputs, i), 1) for i in range(size)])
        column.seconds = time.perf_counter() - started
        processor = time.thread_time() - processor
        if self.possible and column.seconds > SLOW_ROW * size and processor < column.seconds / 2:
            self._try(column, fresh, size)
        return column

    def _try(self, column: Column, fresh: Callable[[], Inputs], size: int) -> None:
        if size == 1 or column.failed or (self.reward.by_path and len(set(column.scores)) == 1):
            return  # the next batch may tell
        started = time.perf_counter()
        again = self._rows(fresh, size)()
        same = again == [Column([score], [None]) for score in column.scores]
        self.proved = same and time.perf_counter() - started < column.seconds / 2
        self.tries -= 1
        self.possible = same and (self.proved or self.tries > 0)

    def submit(self, fresh: Callable[[], Inputs], size: int) -> Callable[[], Column]:
        """Start scoring the rows on threads; the function returned waits for their column."""
        started = time.perf_counter()
        wait = self._rows(fresh, size)

        def column() -> Column:
            rows = wait()
            if any(row.raised for row in rows):
                inputs = fresh()
                for i, row in enumerate(rows):
                    if row.raised:
                        rows[i] = attempt(self.reward.call, only_row(inputs, i), 1)
                        if not rows[i].raised:
                            self.possible = self.proved = False
            joined = join(rows)
            joined.seconds = time.perf_counter() - started
            return joined

        return column

    def _rows(self, fresh: Callable[[], Inputs], size: int) -> Callable[[], list[Column]]:
        columns, trl = fresh()
        inputs = columns, {name: value for name, value in trl.items() if name not in CALLBACK_NAMES - {"trainer_state"}}
        futures = [self.pool.submit(attempt, self.reward.call, only_row(inputs, i), 1) for i in range(size)]
        return lambda: [future.result() for future in futures]
