"""What the callbacks of a run cost: the demo, with the time of each callback and of the screen's redrawing.

    python -m benchmarks.callbacks

All together, without the writing of checkpoints and the evaluations, are to take less than 1 % of a step.
"""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from benchmarks.record import record
from rlhf_core.catalog import Catalog
from rlhf_core.config import resolve

STEPS = 12
LEFT_OUT = ("on_save", "on_evaluate", "on_train_begin", "on_train_end", "on_init_end")


def main() -> None:
    os.environ["FORCE_COLOR"] = "1"  # the screen of a terminal, wherever this is run
    from rich.live import Live

    from rlhf_core.training import callbacks, run

    spent: Counter[str] = Counter()
    steps: list[float] = []
    training: list[bool] = []  # empty before the first step, and after the last

    def timed(function: Callable[..., Any], name: str, clock: Callable[[], float]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            began = clock()
            try:
                return function(*arguments, **keywords)
            finally:
                if training:
                    spent[name] += clock() - began

        return call

    def observe(trainer: Any, ours: Any, of: Any) -> None:
        plain(trainer, ours, of)
        for callback in trainer.callback_handler.callbacks:
            for name in [name for name in dir(callback) if name.startswith("on_") and name not in LEFT_OUT]:
                setattr(callback, name, timed(getattr(callback, name), type(callback).__name__, time.perf_counter))
        step = trainer.training_step

        def observed(*arguments: Any) -> Any:
            steps.append(time.perf_counter())
            training[:] = [True] * (len(steps) < STEPS)
            return step(*arguments)

        trainer.training_step = observed

    plain, callbacks.observe = callbacks.observe, observe
    Live.refresh = timed(Live.refresh, "redrawing the screen", time.thread_time)
    values = {"method": "grpo", "reward": "medical_format", "max_steps": STEPS, "num_eval_prompts": 8}
    with tempfile.TemporaryDirectory() as folder:
        config, method = resolve({**values, "output_dir": folder}, Catalog())
        run.train(config, method, Catalog())
    step = (steps[-1] - steps[1]) / (len(steps) - 2)  # from the second on, of one forward pass each
    shares = {name: round(seconds / (STEPS - 1) / step, 6) for name, seconds in spent.most_common() if seconds > 1e-5}
    figures = {"step_seconds": round(step, 3), "shares_of_a_step": shares, "together": round(sum(shares.values()), 5)}
    print(figures)
    record("callbacks", figures)


if __name__ == "__main__":
    main()
