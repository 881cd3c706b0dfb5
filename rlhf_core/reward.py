"""Rewards: functions that score completions.

A reward is a TRL reward function:

    def f(prompts, completions, <columns>, <parameters=defaults>, **_) -> Sequence[float | None]

Its named arguments without a default are columns of the data, those with a default are parameters that a user can
set. A class whose instances are called, a partial, a factory that returns the function and an async function are
rewards too. `None` for a row means that the reward does not apply to it, an exception in the place of a score that it
failed for that row; a `RunStopped` there ends the run, with a checkpoint.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rlhf_core.formatter import Messages


@dataclass(frozen=True)
class Planned:
    """What a reward will be asked: `answers` to `prompts`, of which these are some, `group` to each; an answer has
    `tokens` at most. `comparisons`: of two answers each, instead of scores.
    """

    prompts: Sequence[Messages]
    answers: int
    tokens: int
    group: int = 1
    comparisons: int = 0


@dataclass(frozen=True)
class Reward:
    """A reward function and what its signature can't say.

    `range`: lowest and highest score, for reports and checks.
    `view`: `"text"` passes completions as strings, with what the prompt has opened of them (`<think>`), `"messages"` as
    TRL passes chat data, `[{"role": "assistant", "content": …}]` each.
    `isolation`: `"process"` runs the function in its own worker process, killed after `timeout` seconds a batch.
    `timeout`: seconds a batch may take; needs a worker process or an async function.
    `memory_gb`: gigabytes of the machine's memory that the worker may take after the reward is built (Linux only).
    Above it a `MemoryError` fails the batch, and the worker is restarted. A GPU's memory is not limited.
    `system_prompt`: used where the data and the user give none. (`instruction` is its old name.)
    `optional`: columns that may be missing from the data although the function declares them with a default.
    `deterministic`: the same input gets the same scores.
    `batchwise`: scores depend on the full batch, so its rows are never scored one by one, not even after an error.
    `concurrent`: each row is scored in its own call, many at the same time on threads: for functions that wait, such as
    for an API. A run can set it for any reward: `--reward NAME:concurrent=true`.
    `before_run`: called with the reward as it is built and with what it will be asked, before weights load. It returns
    a line to show, such as what the run will cost, and raises `UserError` if it can't work.
    `pairwise`: an async function of the reward as it is built, prompts, and two answers to each, as text. Above 0 the
    first is better, below 0 the second, 0 is a tie, an exception means that it failed for this pair. Whoever calls it
    asks in both orders. It may take `log_metric`, too, as a reward may.
    `describe`: called with the reward as it is built: what a run's manifest notes of it, such as the hash of a file.
    `name`: needed where it differs from the function's name, or where there is none (partials, instances).
    """

    function: Callable[..., Any]
    range: tuple[float, float] | None = None
    view: Literal["text", "messages"] = "text"
    isolation: Literal["inline", "process"] = "inline"
    timeout: float | None = None
    memory_gb: float | None = None
    system_prompt: str | None = None
    optional: tuple[str, ...] = ()
    deterministic: bool = True
    batchwise: bool = False
    name: str | None = None
    concurrent: bool = False
    before_run: Callable[[Any, Planned], str] | None = None
    pairwise: Callable[..., Awaitable[Sequence[float | Exception]]] | None = None
    describe: Callable[[Any], Mapping[str, str]] | None = None
    instruction: InitVar[str | None] = None

    def __post_init__(self, instruction: str | None) -> None:
        if instruction is not None:
            warnings.warn("Reward(instruction=) is now called system_prompt=", DeprecationWarning, stacklevel=3)
            object.__setattr__(self, "system_prompt", instruction)
        if not callable(self.function):
            raise TypeError(f"Reward needs a function, not {self.function!r}")
        if self.view not in ("text", "messages"):
            raise ValueError(f"view must be 'text' or 'messages', not {self.view!r}")
        if self.isolation not in ("inline", "process"):
            raise ValueError(f"isolation must be 'inline' or 'process', not {self.isolation!r}")
        if self.timeout is not None and self.isolation == "inline" and not is_async(self.function):
            raise ValueError("timeout needs isolation='process' or an async function: a thread can't be stopped")
        for name in ("before_run", "pairwise", "describe"):
            if getattr(self, name) is not None and self.isolation == "process":
                raise ValueError(f"{name} needs isolation='inline': a reward in a worker process is not built here")
        if self.memory_gb is not None and self.isolation == "inline":
            raise ValueError("memory_gb needs isolation='process': the trainer's memory can't be limited")
        if self.concurrent and self.batchwise:
            raise ValueError("batchwise rewards score full batches, concurrent ones single rows: choose one of them")
        if self.concurrent and self.isolation == "process":
            raise ValueError("concurrent needs isolation='inline': a worker process has one thread for its reward")
        if self.concurrent and is_async(self.function):
            raise ValueError("concurrent is for ordinary functions: an async one already awaits its rows together")
        for limit, value in (("timeout", self.timeout), ("memory_gb", self.memory_gb)):
            if value is not None and value <= 0:
                raise ValueError(f"{limit} must be a number above 0, not {value!r}")

    @property
    def label(self) -> str | None:
        """The given name, else the function's; None for partials and instances, which have none."""
        named = inspect.isroutine(self.function) or inspect.isclass(self.function)
        return self.name or (self.function.__name__ if named else None)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a call returns a coroutine: for functions, partials, classes and instances with an async `__call__`."""
    target: Any = function
    while isinstance(target, functools.partial):
        target = target.func
    call = target.__call__  # of an instance, its method; of a class, the one its instances have
    return inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(call)
