"""What a step takes: the seconds of each phase, and memory, in every line of metrics."""

from __future__ import annotations

import time
from typing import Any

import psutil
import torch
from transformers import TrainerCallback

from rlhf_core import phases
from rlhf_core.training.memory import PeakMemory

GB = 1e9


class Resources(TrainerCallback):
    """Adds to the metrics of the steps since the last line, before other callbacks get them: `time/sampling`,
    `time/rewards` and `time/learning`, seconds of a step in this process, and `memory/peak_gb`, the most that the run
    took so far, and `memory/free_gb`, what is free now, of the GPU or of the machine.
    """

    def __init__(self, memory: PeakMemory) -> None:
        self.memory = memory
        self.steps = 0  # since the last line
        self.spent: dict[str, float] = {}  # in them, by phase

    def on_step_begin(self, args, state, control, **kwargs):
        self._began, self._before = time.perf_counter(), dict(phases.seconds)

    def on_step_end(self, args, state, control, **kwargs):
        step = {name: seconds - self._before[name] for name, seconds in phases.seconds.items()}
        step["learning"] = time.perf_counter() - self._began - sum(step.values())
        self.steps += 1
        self.spent = {name: self.spent.get(name, 0.0) + seconds for name, seconds in step.items()}

    def on_log(self, args, state, control, logs: dict[str, Any] | None = None, **kwargs):
        if not self.steps or logs is None or "loss" not in logs:
            return
        logs.update({f"time/{name}": seconds / self.steps for name, seconds in self.spent.items() if seconds})
        self.steps, self.spent = 0, {}
        peak = self.memory.read()
        if peak:
            logs["memory/peak_gb"] = peak["allocated" if self.memory.on_gpu else "resident"] / GB
        free = torch.cuda.mem_get_info()[0] if self.memory.on_gpu else psutil.virtual_memory().available
        logs["memory/free_gb"] = free / GB
