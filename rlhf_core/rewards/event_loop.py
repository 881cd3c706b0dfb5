"""An async reward's event loop, on its own thread, so that a function that blocks it delays no other."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError, Future

from rlhf_core.rewards.binding import BoundReward
from rlhf_core.rewards.guard import guarded
from rlhf_core.rewards.outcomes import Column, Inputs, check, exception, failure, out_of_time

BATCH_SECONDS = 600.0  # the time limit of a batch where an async reward or one in a worker declares no timeout
GRACE = 5.0  # seconds that the loop has to stop an overdue call before it is abandoned


class EventLoop:
    """One reward's event loop. `score` may be called from several threads, whose calls share the loop."""

    def __init__(self, reward: BoundReward) -> None:
        self.reward = reward
        self.limit = f"{reward.reward.timeout or BATCH_SECONDS:g} s"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: set[Future[Column]] = set()

    def start(self) -> asyncio.AbstractEventLoop:
        self._loop = loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, args=(loop,), name=f"rlhf-{self.reward.name}", daemon=True).start()
        return loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.run_forever()
        while loop is self._loop:  # the reward has stopped it
            loop.run_forever()
        loop.close()

    def score(self, inputs: Inputs, size: int, seconds: float) -> Column:
        """The outcome of one call, which is stopped after `seconds`: what is left of the time that its batch has."""
        call = asyncio.run_coroutine_threadsafe(self._score(inputs, size, seconds), self._loop or self.start())
        self._calls.add(call)
        try:
            return call.result(seconds + GRACE)
        except CancelledError:
            return failure("CancelledError, by the reward itself", size)
        except TimeoutError:
            self._leave()
            blocked = "and it could not be stopped: it blocks its event loop"
            return out_of_time(f"no answer within {self.limit}, {blocked}", size, stopped=False)
        finally:
            self._calls.discard(call)

    def stop(self) -> None:
        """End the calls, also for those who wait for a loop that is blocked, and the loop."""
        for call in list(self._calls):
            call.cancel()
        self._leave()

    def _leave(self) -> None:
        """Let the loop end as soon as it can. The next call gets a new one."""
        loop, self._loop = self._loop, None
        if loop is not None:
            asyncio.run_coroutine_threadsafe(_end_loop(), loop)

    async def _score(self, inputs: Inputs, size: int, seconds: float) -> Column:
        limit = asyncio.timeout(seconds)
        try:
            with guarded(self.reward.name):
                async with limit:
                    return check(await self.reward.call(*inputs), size)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # a reward may raise anything
            return out_of_time(f"no answer within {self.limit}", size) if limit.expired() else exception(error, size)


async def _end_loop() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    asyncio.get_running_loop().stop()
