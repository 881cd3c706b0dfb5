"""Observers of the trainer: whole checkpoints, metrics on disk, and the breaker for rewards that keep failing."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from rlhf_core.rewards.runtime import RewardRuntime

WRITING = ".writing"
BREAKER_STEPS = 20
BREAKER_SHARE = 0.2


class AlreadyTrained(Exception):
    """The checkpoint that a run went on from is that of its last step."""


class Checkpoints(TrainerCallback):
    """Checkpoints that are either whole or not there, at steps where a new batch of answers begins.

    The trainer writes to `checkpoints/.writing/checkpoint-N`; when that is complete it is renamed to
    `checkpoints/checkpoint-N`, and all but the newest `keep` are removed. A stop that was asked for waits for the next
    step that is a multiple of `every`, because a checkpoint between two batches of answers is what a resumed run can
    start from as if it had never stopped. `stop_file` asks for one, too, while it is there.
    """

    INTERRUPTED = "interrupted"

    def __init__(self, folder: Path, keep: int, every: int, stop_file: Path | None = None) -> None:
        self.folder = folder
        self.keep = keep
        self.every = every
        self.stop_file = stop_file
        self.stop_reason: str | None = None
        self._due = False

    def request_stop(self, reason: str) -> None:
        """Save and stop at the next step that allows it."""
        self.stop_reason = self.stop_reason or reason

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:  # killed while its model was saved: the trainer would do one step more
            raise AlreadyTrained

    def on_step_end(self, args, state, control, **kwargs):
        if self.stop_file is not None and self.stop_file.exists():
            self.request_stop(self.INTERRUPTED)
        stop = any_process(self.stop_reason is not None, args.device)
        self._due = self._due or control.should_save or stop
        if state.global_step >= state.max_steps:
            return control
        here = state.global_step % self.every == 0
        control.should_save = self._due and here
        if here:
            self._due = False
            control.should_training_stop = control.should_training_stop or stop
            if stop:
                self.stop_reason = self.stop_reason or self.INTERRUPTED  # in another process
        return control

    def on_save(self, args, state, control, **kwargs):
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every process has written its part
        if not args.should_save:
            return
        name = f"checkpoint-{state.global_step}"
        shutil.rmtree(self.folder / name, ignore_errors=True)
        os.replace(self.folder / WRITING / name, self.folder / name)
        for old in list_checkpoints(self.folder)[: -self.keep]:
            going = self.folder / WRITING / f"old-{old.name}"
            os.replace(old, going)  # first, so that one that is half deleted when we are killed is not found
            shutil.rmtree(going, ignore_errors=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in `folder`, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


class Metrics(TrainerCallback):
    """Writes metrics.jsonl: one flat object a logged step, under the trainer's own keys."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        values = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in (logs or {}).items()}
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": state.global_step, "time": round(time.time(), 2), **values}) + "\n")


class Breaker(TrainerCallback):
    """Stops the run, with a checkpoint, when over a fifth of a reward's rows failed in the last twenty steps.

    Counts are summed over all processes at every step, so that they decide alike.
    """

    def __init__(self, rewards: RewardRuntime, checkpoints: Checkpoints) -> None:
        self.rewards = rewards
        self.checkpoints = checkpoints
        self.tripped: str | None = None
        self._window: deque[torch.Tensor] = deque(maxlen=BREAKER_STEPS)

    def on_step_end(self, args, state, control, **kwargs):
        counts = self.rewards.counts
        if not counts:
            return
        step = torch.tensor([counts[name] for name in counts], dtype=torch.float32, device=args.device)
        for name in counts:
            counts[name] = [0, 0]
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(step)
        self._window.append(step)
        total = torch.stack(list(self._window)).sum(0)  # rewards x (failed, seen)
        if len(self._window) < BREAKER_STEPS or self.tripped:
            return
        for name, (failed, seen) in zip(counts, total.tolist(), strict=True):
            if seen and failed / seen > BREAKER_SHARE:
                self.tripped = (
                    f"reward {name!r} failed on {failed / seen:.0%} of its rows in the last {BREAKER_STEPS} steps"
                )
                self.checkpoints.request_stop(self.tripped)


def any_process(flag: bool, device: Any) -> bool:
    """Whether `flag` is set in any process of the run."""
    if not torch.distributed.is_initialized():
        return flag
    tensor = torch.tensor(float(flag), device=device)
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return bool(tensor.item())
