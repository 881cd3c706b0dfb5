"""What calling rewards costs beside the rewards themselves, and what a reward that waits costs.

    python -m benchmarks.reward_runtime

`share_of_step` is the time that a GRPO step of the demo (32 answers) spends in the reward runtime beside the reward
functions: copying, checking, logging, writing samples.jsonl. `share_of_serial` is the time that a reward which sleeps
50 ms a row takes for 64 rows with `concurrent=true`, as a share of calling it alone.
Both sides of a ratio are measured in one run. About a minute on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.record import record
from rlhf_core.catalog import Catalog
from rlhf_core.grammar import RewardSpec
from rlhf_core.rewards.batch import RewardBatch
from rlhf_core.rewards.binding import BoundReward, bind, bind_all
from rlhf_core.rewards.runtime import RewardRuntime

STEPS, ROWS, BATCHES = 8, 64, 5


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """`function`, which adds the time of each call to `seconds`."""

    def call(*values: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*values, **named)
        finally:
            seconds.append(time.perf_counter() - started)

    call.__name__ = getattr(function, "__name__", "call")
    return call


def demo_steps(names: list[str], folder: Path) -> dict[str, float]:
    """Medians of the demo's steps with these rewards, without the first step, in milliseconds."""
    from transformers import TrainerCallback

    from rlhf_core.config import resolve
    from rlhf_core.rewards.runtime import RewardRuntime
    from rlhf_core.training.run import prepare

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            self.started = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            steps.append(time.perf_counter() - self.started)

    steps: list[float] = []
    in_rewards: dict[str, list[float]] = {name: [] for name in names}
    in_runtime: dict[str, list[float]] = {name: [] for name in names}
    values = {"method": "grpo", "reward": names, "max_steps": STEPS, "num_eval_prompts": 0, "save_steps": 1000}
    config, method = resolve({**values, "output_dir": str(folder)}, Catalog())
    rewards = [
        dataclasses.replace(reward, function=timed(reward.function, in_rewards[reward.name]))
        for reward in bind_all(config.reward_specs, Catalog())
        if reward.function is not None
    ]
    run = prepare(config, method, Catalog())
    run.rewards = RewardRuntime(rewards, run.rewards.decode, folder)
    trainer = method.trainer(run)
    folder.mkdir(exist_ok=True)
    trainer.reward_funcs = [
        timed(function, in_runtime[name]) for name, function in zip(names, trainer.reward_funcs, strict=True)
    ]
    trainer.add_callback(Clock())
    trainer.train()
    run.rewards.close()
    both = (zip(*part.values(), strict=True) for part in (in_runtime, in_rewards))
    runtime, functions = ([sum(calls) for calls in part] for part in both)
    ours = [total - inside for total, inside in zip(runtime, functions, strict=True)]
    shares = [inside / step for inside, step in zip(ours, steps, strict=True)]
    return {
        "share_of_step": round(statistics.median(shares[1:]), 5),
        "runtime_ms": round(statistics.median(ours[1:]) * 1000, 2),
        "reward_functions_ms": round(statistics.median(functions[1:]) * 1000, 2),
        "step_ms": round(statistics.median(steps[1:]) * 1000, 1),
    }


def sleeps(completions: list[Any], row: list[int], **_: Any) -> list[float]:
    time.sleep(0.05 * len(completions))
    return [float(number) for number in row]


def sleeping() -> dict[str, float]:
    """Seconds of one batch of a reward that sleeps: called alone, and its rows at once in the runtime."""
    reward: BoundReward = bind(RewardSpec.read("benchmarks.reward_runtime:sleeps:concurrent=true"), Catalog())
    messages = [[{"role": "assistant", "content": "answer"}]] * ROWS
    batch = RewardBatch(messages, messages, [[1]] * ROWS, {"row": list(range(ROWS))})
    runtime = RewardRuntime([reward], lambda ids: "answer")
    alone: list[float] = []
    calls: list[float] = []
    call, evaluate = timed(reward.call, alone), timed(runtime.evaluate, calls)
    call(batch.columns, {"completions": messages})
    for _ in range(BATCHES):
        scores = evaluate(batch)["sleeps"].scores
        if scores != list(range(ROWS)):
            raise RuntimeError(f"wrong scores: {scores}")
    runtime.close()
    at_once = statistics.median(calls)
    return {
        "share_of_serial": round(at_once / alone[0], 4),
        "serial_s": round(alone[0], 3),
        "at_once_s": round(at_once, 3),
    }


def main() -> None:
    figures: dict[str, dict[str, float]] = {"sleeping": sleeping()}
    print("sleeping", figures["sleeping"], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for names in (["medical_format"], ["medical_format", "length", "medical_keyword"]):
            title = " + ".join(names)
            figures[title] = demo_steps(names, Path(folder) / str(len(names)))
            print(title, figures[title], flush=True)
    record("reward_runtime", figures)


if __name__ == "__main__":
    main()
