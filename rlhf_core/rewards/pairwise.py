"""Two answers to each prompt compared by a reward's `pairwise`, in both orders: a judge may prefer what it reads first.

Needs no torch.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlhf_core.credentials import masked
from rlhf_core.errors import RunStopped, UserError, describe
from rlhf_core.rewards.binding import BoundReward
from rlhf_core.rewards.guard import guarded

AT_ONCE = 256  # pairs that a reward is given at once, after which the progress is told

Verdict = Literal[-1, 0, 1]


@dataclass(frozen=True)
class Comparison:
    """`verdict`: 1 where the first answer is better, -1 where the second is, 0 for a tie and where both orders
    disagree, None where one of them failed (`error`). `orders`: what was said with the first answer read first, and
    with it read second, both above 0 for the first answer.
    """

    verdict: Verdict | None
    orders: tuple[float | None, float | None]
    error: str | None = None

    @property
    def agree(self) -> bool | None:
        """Whether both orders say the same; None where one failed."""
        first, second = self.orders
        return None if first is None or second is None else _sign(first) == _sign(second)


def check_pairwise(reward: BoundReward) -> None:
    """Raise `UserError` for a reward that can't compare two answers."""
    if reward.reward.pairwise is None:
        raise UserError(f"reward {reward.name!r} scores answers one by one, and can't compare two of them")


def compare_answers(
    reward: BoundReward,
    prompts: Sequence[Any],
    first: Sequence[str],
    second: Sequence[str],
    progress: Callable[[int], None] = lambda done: None,
    log_metric: Callable[[str, float], None] = lambda name, value: None,
) -> list[Comparison]:
    """Each pair in both orders. `progress` is told how many are done, `log_metric` what a reward logs that takes it.
    Raises `UserError` for a reward that can't compare, and `RunStopped` as the reward does, after which nothing further
    is asked.
    """
    check_pairwise(reward)
    assert reward.reward.pairwise is not None
    logs = {"log_metric": log_metric} if "log_metric" in inspect.signature(reward.reward.pairwise).parameters else {}
    call = functools.partial(reward.reward.pairwise, reward.function, **logs)
    found: list[Comparison] = []
    with asyncio.Runner() as runner, guarded(reward.name):
        for start in range(0, len(prompts), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            found += runner.run(_both_orders(call, prompts[part], first[part], second[part]))
            progress(len(found))
    return found


async def _both_orders(
    call: Callable[..., Any], prompts: Sequence[Any], first: Sequence[str], second: Sequence[str]
) -> list[Comparison]:
    both = (_ask(call, prompts, first, second), _ask(call, prompts, second, first))
    there, back = await asyncio.gather(*both, return_exceptions=True)  # so that none is left under way
    for found in (there, back):
        if isinstance(found, BaseException):
            raise found
    assert isinstance(there, list)
    assert isinstance(back, list)
    return [_comparison(one, other) for one, other in zip(there, back, strict=True)]


async def _ask(
    call: Callable[..., Any], prompts: Sequence[Any], first: Sequence[str], second: Sequence[str]
) -> list[float | Exception]:
    try:
        said = list(await call(prompts, list(first), list(second)))
    except RunStopped:
        raise
    except Exception as error:  # a reward may raise anything
        return [error] * len(prompts)
    if len(said) != len(prompts):
        return [ValueError(f"returned {len(said)} verdicts for {len(prompts)} pairs")] * len(prompts)
    for value in said:
        if isinstance(value, RunStopped):
            raise value
    return [_checked(value) for value in said]


def _checked(value: Any) -> float | Exception:
    if isinstance(value, Exception):
        return value
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return ValueError(f"{value!r:.80} is not a finite number")


def _comparison(there: float | Exception, back: float | Exception) -> Comparison:
    errors = [masked(describe(value)) for value in (there, back) if isinstance(value, Exception)]
    one = None if isinstance(there, Exception) else there
    other = None if isinstance(back, Exception) else -back + 0.0
    if one is None or other is None:
        return Comparison(None, (one, other), errors[0])
    return Comparison(_sign(one) if _sign(one) == _sign(other) else 0, (one, other))


def _sign(value: float) -> Verdict:
    return 1 if value > 0 else -1 if value < 0 else 0
