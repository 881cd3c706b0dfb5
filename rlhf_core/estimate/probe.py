"""Three real steps of a run, on the device that is there: `rlhf estimate --probe`.

The run's model, rows, rewards and trainer are used. Nothing is evaluated, saved or reported.
"""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from rlhf_core.catalog import Catalog
from rlhf_core.config import RunConfig
from rlhf_core.estimate.hardware import here
from rlhf_core.method import Method
from rlhf_core.models.resolve import quiet_libraries
from rlhf_core.models.trainable import use_float32
from rlhf_core.training.memory import PeakMemory
from rlhf_core.training.run import Run, prepare

STEPS = 3  # that are timed, after one that warms up; where several steps share their answers, as many times that number


@dataclass(frozen=True)
class Probe:
    """`seconds` of an optimizer step, in each of the timed ones on `device`; `memory`: bytes at most, as `PeakMemory`
    reads them.
    """

    device: str
    seconds: list[float]
    memory: dict[str, int]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        memory = {f"{name}_bytes": size for name, size in self.memory.items()}
        return {"device": self.device, "step_seconds": self.mean, "seconds": self.seconds, **memory}


class RunOfFewSteps(Run):
    """A run that writes and reports nothing while it trains."""

    def arguments(self, cls: type, **fields: Any) -> Any:
        arguments = super().arguments(cls, **fields)
        arguments.save_strategy = arguments.logging_strategy = arguments.eval_strategy = "no"
        arguments.report_to = []
        return arguments


def silence(trainer: Any) -> None:
    """Without the lines and bars that transformers shows."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)


def probe(config: RunConfig, method: Method, catalog: Catalog, folder: Path) -> Probe:
    """Carry out a few steps. What they write goes to `folder`. Raises `UserError` as the run would, and
    `torch.OutOfMemoryError`.
    """
    prepared = prepare(config.model_copy(update={"output_dir": str(folder), "callback": []}), method, catalog)
    run = RunOfFewSteps(prepared.plan, prepared.rewards)
    memory = PeakMemory()
    try:
        with quiet_libraries():
            transformers.set_seed(run.options.seed)
            trainer: Any = method.trainer(run)
            use_float32(trainer, run)
            silence(trainer)
            every = method.steps_per_rollout(trainer)
            trainer.args.max_steps = (1 + STEPS) * every
            clock = _Clock()
            trainer.add_callback(clock)
            trainer.train()
    finally:
        run.rewards.close()
    ends = clock.ends[every - 1 :: every]
    seconds = [(end - start) / every for start, end in itertools.pairwise(ends)]
    return Probe(here().name, seconds, memory.read())


class _Clock(TrainerCallback):
    """When each step ended on the device."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
