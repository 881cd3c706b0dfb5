"""`rlhf` in one of several processes, made comparable with `rlhf` in one; on CPUs, too.

    python -m torch.distributed.run --nproc-per-node 2 -m benchmarks.sharded_process run --distributed fsdp …
    python -m benchmarks.sharded_process run --num-processes 2 --distributed fsdp …

accelerate 1.15 makes plain data parallelism of FSDP on CPUs: it looks for FSDP only where processes have devices of
their own. Here it takes CPUs for one of those kinds, of which none is called; all else (`fully_shard`, checkpoints,
saving) is its own code, on gloo. DeepSpeed runs on CPUs by itself. `rlhf` refuses both without GPUs, since nobody
should train so.

Answers that GRPO samples from the same weights are the same however prompts are divided between processes: the number
that decides on a token belongs to the step, to the token's place and to the answer's place in its group. Held-out
prompts are answered by `generate` in one process, too, and all by the same numbers.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Any

import torch
from accelerate.state import DistributedType, PartialState
from trl import GRPOTrainer

from rlhf_core.cli import main
from rlhf_core.environment import end_with_starter
from rlhf_core.training import answering, launch

GROUP = 4  # answers of a prompt
PROCESS = "benchmarks.sharded_process"


def shard_on_cpus() -> None:
    begin = PartialState.__init__

    def begin_as_on_devices(self: PartialState, cpu: bool = False, **kwargs: Any) -> None:
        begin(self, cpu, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_NEURON

    PartialState.__init__ = begin_as_on_devices
    launch.check_distributed = lambda config: None
    if importlib.util.find_spec("deepspeed"):
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # faster on CPUs, and compiled first


def start_these() -> None:
    """Let a command that starts several processes, or itself again, start this module."""
    launch.launch = functools.partial(launch.launch, program=(PROCESS, "run"))
    replace = os.execv
    os.execv = lambda path, line: replace(path, [PROCESS if word == "rlhf_core" else word for word in line])


def sample_alike(group: int) -> None:
    """Let answers be the same in any number of processes, each of which has whole groups of `group` answers."""
    turn, draw, rollout = GRPOTrainer._generate_single_turn, torch.multinomial, answering.rollout
    now: list[tuple[torch.Generator, int]] = []  # the numbers of what is sampled now, and for how many answers they are

    def generate_single_turn(self: Any, *args: Any, **kwargs: Any) -> Any:
        now.append((torch.Generator().manual_seed(self.state.global_step), group))
        try:
            return turn(self, *args, **kwargs)
        finally:
            now.clear()

    def answer(model: Any, prompts: Any, n: int, sampling: Any) -> Any:
        now.append((torch.Generator().manual_seed(0), 1))
        try:
            return rollout(model, prompts, n, sampling, "transformers")
        finally:
            now.clear()

    def multinomial(probs: torch.Tensor, num_samples: int, **kwargs: Any) -> torch.Tensor:
        if not now:
            return draw(probs, num_samples, **kwargs)
        numbers, size = now[0]
        uniform = torch.rand(size, generator=numbers).repeat(len(probs) // size).to(probs)
        return torch.searchsorted(probs.cumsum(-1), uniform[:, None]).clamp(max=probs.shape[-1] - 1)

    GRPOTrainer._generate_single_turn, torch.multinomial, answering.rollout = generate_single_turn, multinomial, answer


if __name__ == "__main__":
    end_with_starter()
    if not torch.accelerator.is_available():
        shard_on_cpus()
    start_these()
    sample_alike(GROUP)
    main()
