"""What a run will take: memory by phase and component, whether that fits into a device, and how long a step is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_core.catalog import Catalog
from rlhf_core.config import RunConfig
from rlhf_core.estimate import vllm
from rlhf_core.estimate.hardware import Device
from rlhf_core.estimate.meter import BETWEEN, Phase
from rlhf_core.estimate.synthetic import Lengths
from rlhf_core.method import Method
from rlhf_core.models.loading import ModelInfo
from rlhf_core.models.precision import for_device

# What a caching allocator holds beyond what lives, and what CUDA takes for itself: measured, see docs/benchmarks.md.
HELD, CONTEXT = 1.06, 800_000_000
CODE = 60_000_000  # bytes: modules that are imported in the first step, which grow the process of a run on CPUs


@dataclass(frozen=True)
class Estimate:
    """`phases` in the order of a step, each with its peak in bytes by component; `seconds` of each phase in a step.

    `steps_per_row`: optimizer steps for each row of an epoch.
    """

    phases: dict[str, Phase]
    device: Device
    rows: Lengths
    seconds: dict[str, float] = field(default_factory=dict)
    steps_per_row: float = 0.0

    @property
    def phase(self) -> str:
        """The one with the highest peak."""
        return max(self.phases, key=lambda name: self.phases[name].peak)

    @property
    def peak(self) -> int:
        return self.phases[self.phase].peak

    @property
    def needed(self) -> int:
        """Bytes of the device, with what its allocator, CUDA or code hold beyond tensors."""
        return round(self.peak * HELD) + CONTEXT if self.device.is_gpu else self.peak + CODE

    @property
    def expected(self) -> int:
        """What a run will measure: bytes of tensors on a GPU, on a CPU those that its process grows by."""
        return self.peak if self.device.is_gpu else self.needed

    @property
    def fits(self) -> bool:
        return self.needed <= self.device.memory

    @property
    def step_seconds(self) -> float:
        return sum(self.seconds.values())

    def to_dict(self) -> dict[str, Any]:
        return {
            "device": self.device.name,
            "memory_bytes": self.device.memory,
            "peak_bytes": self.peak,
            "needed_bytes": self.needed,
            "fits": self.fits,
            "peak_phase": self.phase,
            "prompt_tokens": self.rows.prompt,
            "completion_tokens": self.rows.completion,
            "steps_per_row": self.steps_per_row,
            "phases": {
                name: {"peak_bytes": phase.peak, "components": dict(phase.parts), "operations": phase.operations}
                | {"flops": phase.flops}
                | ({"seconds": self.seconds[name]} if name in self.seconds else {})
                for name, phase in self.phases.items()
            },
        }


def estimate(
    config: RunConfig,
    method: Method,
    info: ModelInfo,
    catalog: Catalog,
    rows: Lengths,
    device: Device,
    scorers: Sequence[ModelInfo] = (),
) -> Estimate:
    """Measure a step on rows of these lengths. `config` has the options that the run really uses, `scorers` are the
    models of its rewards.
    """
    from rlhf_core.estimate.step import measure

    asked = config
    config, beside = vllm.without(config)
    config = config.model_copy(update={"options": for_device(config.options, device.frozen_dtype)})
    measured = measure(config, method, info, catalog, rows, device, scorers)
    phases = {name: _per_device(phase, config) for name, phase in measured.phases.items() if phase.peak}
    if beside:
        phases = vllm.beside(phases, asked, info, device.memory)
    between = phases.pop(BETWEEN, Phase())
    largest = max(phases, key=lambda name: phases[name].peak)
    if between.peak > phases[largest].peak:
        phases[largest] = between
    seconds = measured.seconds() if device.flops else {}
    steps_per_row = measured.steps_per_row / (config.num_processes * config.num_machines)
    return Estimate(phases, device, rows, seconds, steps_per_row)


def _per_device(phase: Phase, config: RunConfig) -> Phase:
    """What each of several devices holds, by arithmetic: the same step, with what is split divided by their number.

    ddp: gradients a second time, in the buckets that are averaged. zero2: gradients and optimizer states are split.
    fsdp, zero3: weights and the reference, too; two of their layers are whole at a time, which is counted as a tenth.
    """
    devices = config.num_processes * config.num_machines
    if devices == 1:
        return phase
    parts = Counter(phase.parts)
    split = {"ddp": (), "zero2": ("gradients", "optimizer states")}.get(
        config.distributed, ("gradients", "optimizer states", "weights", "reference", "value model")
    )
    if config.distributed == "ddp":
        parts["buckets"] = parts["gradients"]
    for name in split:
        whole = parts[name] // 10 if name in ("weights", "reference") else 0
        parts[name] = parts[name] // devices + whole
    return Phase(sum(parts.values()), parts, phase.operations, phase.flops, phase.seconds)


def steps_of(estimate: Estimate, options: Any, rows: int | None) -> int | None:
    """Optimizer steps of the run; None if neither rows nor steps are known."""
    if options.max_steps > 0:
        return options.max_steps
    return None if rows is None else math.ceil(estimate.steps_per_row * rows * options.num_train_epochs)
