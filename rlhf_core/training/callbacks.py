"""Trainer callbacks: checkpoints, metrics on disk, and a monitor for rewards that keep failing."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer import TRAINING_ARGS_NAME

from rlhf_core.models.checkpoints import Best, step, write_best
from rlhf_core.models.reference import REFERENCE_ADAPTER
from rlhf_core.rewards.runtime import RewardRuntime
from rlhf_core.training import manifest
from rlhf_core.training.checkpoint import WRITING, discard, list_checkpoints, seal
from rlhf_core.training.run_folder import STOP

if TYPE_CHECKING:
    from rlhf_core.training.run import Run

WINDOW_STEPS = 20
FAILURE_SHARE = 0.2
KEPT_LOGS = 1000


class AlreadyTrained(Exception):
    """The checkpoint that a run was resumed from is that of its last step, or of the one where it had stopped early."""


class Checkpoints(TrainerCallback):
    """Saves complete checkpoints only, at multiples of `every` steps, and stops the run there when it is asked to.

    Only from a checkpoint between two batches of answers can a resumed run continue as if it had never stopped. The
    trainer writes to `checkpoints/.writing/checkpoint-N`; when that is complete it is sealed by a record of its files
    and of what the run is made of (`described`), renamed to `checkpoints/checkpoint-N`, and all but the newest `keep`
    are removed, but for the `best`, which a file names. The file `stop` in the run's folder requests a stop, too.
    """

    INTERRUPTED = "interrupted"

    def __init__(self, run_folder: Path, keep: int, every: int, described: Mapping[str, Any] | None = None) -> None:
        self.folder, self.stop_file = run_folder / "checkpoints", run_folder / STOP
        self.keep, self.every, self.described = keep, every, described or {}
        self.stop_reason: str | None = None
        self.best: Best | None = None
        self.begun = False  # whether a step began, after all of the checkpoint to resume from was loaded
        self._due = False

    def save(self, args: Any, control: Any) -> None:
        """Save at this step, which is one between two batches of answers, or the last."""
        if args.should_save and not self.folder.is_dir():  # the trainer would make a new one
            raise FileNotFoundError(errno.ENOENT, "the run's folder was renamed or removed", str(self.folder))
        control.should_save = True

    def save_last_step(self, trainer: Any) -> None:
        """Save what is there after the last step, of which the next has changed nothing yet. With several processes the
        others may be anywhere.
        """
        step = trainer.state.global_step
        saved = (self.folder / f"checkpoint-{step}").exists()
        if step and step % self.every == 0 and not saved and trainer.args.world_size == 1:
            trainer._save_checkpoint(trainer.model, trial=None)
            trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)

    def request_stop(self, reason: str) -> None:
        """Save and stop at the next step that allows it."""
        self.stop_reason = self.stop_reason or reason

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun = True
        if state.global_step >= state.max_steps:  # killed while its model was saved: the trainer would do one step more
            raise AlreadyTrained

    def on_step_end(self, args, state, control, **kwargs):
        if self.stop_file.exists():
            self.request_stop(self.INTERRUPTED)
        asked = torch.tensor(float(self.stop_reason is not None), device=args.device)
        stop = bool(reduce(asked, "sum"))  # all stop when one is asked to
        self._due = self._due or control.should_save or stop
        if state.global_step >= state.max_steps:
            return
        here = state.global_step % self.every == 0
        control.should_save = False
        if self._due and here:
            self.save(args, control)
        if here:
            self._due = False
            if stop:
                control.should_training_stop = True
                reasons = [reason for reason in gather_object([self.stop_reason]) if reason is not None]
                # The same one for all, whose exit code it decides: a fault that one of them found rather than Ctrl-C.
                self.stop_reason = next((each for each in reasons if each != self.INTERRUPTED), self.INTERRUPTED)

    def on_save(self, args, state, control, **kwargs):
        PartialState().wait_for_everyone()  # every process has written its part
        if not args.should_save:
            return
        name = f"checkpoint-{state.global_step}"
        # Every start makes it anew, and transformers before 5.23 loads no other adapter where it is.
        shutil.rmtree(self.folder / WRITING / name / REFERENCE_ADAPTER, ignore_errors=True)
        (self.folder / WRITING / name / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle that nothing reads
        between = {"between_batches": state.global_step % self.every == 0}
        seal(self.folder / WRITING / name, state.global_step, {**self.described, **between})
        discard(self.folder / name)
        os.replace(self.folder / WRITING / name, self.folder / name)
        if self.best is not None:
            write_best(self.folder, self.best)  # before the one that was the best is removed
        for old in list_checkpoints(self.folder)[: -self.keep]:
            if self.best is None or step(old) != self.best.step:
                discard(old)


class Schedule(TrainerCallback):
    """Puts a resumed run whose schedule was changed at the place in the new one that it has reached.

    The trainer loads the rate of the checkpoint's last step, which the optimizer would use once more. `ratio`: the peak
    rate now, divided by that in the checkpoint.
    """

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio

    def on_train_begin(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
        if not isinstance(lr_scheduler, torch.optim.lr_scheduler.LambdaLR):
            return  # it follows a metric
        if lr_scheduler.last_epoch == 0:  # begun anew, with the optimizer's state
            lr_scheduler.last_epoch = state.global_step
        else:
            lr_scheduler.base_lrs = [rate * self.ratio for rate in lr_scheduler.base_lrs]
        factors = [factor(lr_scheduler.last_epoch) for factor in lr_scheduler.lr_lambdas]
        rates = [rate * factor for rate, factor in zip(lr_scheduler.base_lrs, factors, strict=True)]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        lr_scheduler._last_lr = rates


class Metrics(TrainerCallback):
    """Writes metrics.jsonl: one flat object a logged step, under the trainer's own keys; and how many steps there will
    be to manifest.json.

    The trainer keeps what it logs, too, and writes it to every checkpoint: of that the newest `KEPT_LOGS` are left, so
    that a checkpoint of a long run is no larger than an early one.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            manifest.note(self.file.parent, max_steps=state.max_steps, ended=None)

    def on_log(self, args, state, control, logs=None, **kwargs):
        del state.log_history[:-KEPT_LOGS]
        if not state.is_world_process_zero:
            return
        values = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in (logs or {}).items()}
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": state.global_step, "time": round(time.time(), 2), **values}) + "\n")


class FailureMonitor(TrainerCallback):
    """Requests a stop when a reward asks for it, and when more than a fifth of a reward's rows failed in the last
    twenty steps, in all processes.
    """

    def __init__(self, rewards: RewardRuntime, checkpoints: Checkpoints) -> None:
        self.rewards = rewards
        self.checkpoints = checkpoints
        self._window: deque[torch.Tensor] = deque(maxlen=WINDOW_STEPS)

    def on_step_end(self, args, state, control, **kwargs):
        counts = self.rewards.counts
        if not counts:
            return
        if self.rewards.stop_reason:
            self.checkpoints.request_stop(self.rewards.stop_reason)
        step = torch.tensor(list(counts.values()), dtype=torch.float32, device=args.device)
        counts.update({name: [0, 0] for name in counts})
        self._window.append(reduce(step, "sum"))
        total = torch.stack(list(self._window)).sum(0)  # rewards x (failed, seen)
        if len(self._window) < WINDOW_STEPS:
            return
        for name, (failed, seen) in zip(counts, total.tolist(), strict=True):
            if seen and failed / seen > FAILURE_SHARE:
                reason = f"failed on {failed / seen:.0%} of its rows in the last {WINDOW_STEPS} steps"
                self.checkpoints.request_stop(f"reward {name!r} {reason}")


def observe(trainer: Any, callbacks: Sequence[TrainerCallback], run: Run) -> None:
    """Add `callbacks` in place of the ones that print, and those of the run's trackers. Raises `UserError`."""
    for unwanted in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(unwanted)
    from rlhf_core.training import trackers

    reporting = trackers.begin(run) if trainer.is_world_process_zero() else []
    for callback in (*callbacks, *reporting):
        trainer.add_callback(callback)
