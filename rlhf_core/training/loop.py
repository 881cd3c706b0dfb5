"""From the built trainer to the saved model: evaluate, train, evaluate again, save."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core import environment
from rlhf_core.catalog import Catalog
from rlhf_core.errors import SamplerFailed
from rlhf_core.method import Method
from rlhf_core.training import callbacks, ending, evaluation, launch
from rlhf_core.training import resume as resuming
from rlhf_core.training.diagnosing import Diagnosing
from rlhf_core.training.memory import PeakMemory
from rlhf_core.training.pages import Pages
from rlhf_core.training.progress import ProgressCallback
from rlhf_core.training.resources import Resources
from rlhf_core.training.watch import Watch
from rlhf_core.ui.screen import Screen

if TYPE_CHECKING:
    import transformers

    from rlhf_core.training.run import Run


def is_kept(run: Run, trainer: transformers.Trainer) -> bool:
    """Whether there is something to resume. A run that failed in its first step leaves no folder, unless other
    processes go on in it.
    """
    return not run.is_new or trainer.state.global_step > 0 or run.world_size > 1


def carry_out(run: Run, method: Method, trainer: Any, catalog: Catalog, screen: Screen, memory: PeakMemory) -> int:
    """Evaluate on the held-out rows, train, evaluate again, save."""
    every = method.steps_per_rollout(trainer)
    checkpoints = callbacks.Checkpoints(run.folder, run.options.save_total_limit, every, run.described)
    held_out = evaluation.HeldOut(trainer, method, run, screen, checkpoints)
    evaluates = bool(run.held_out) and (method.generates or trainer.eval_dataset is not None)
    progress = ProgressCallback(screen.console, run.rewards, every, run.options.eval_steps)
    diagnosing = Diagnosing(run, checkpoints, progress.notes)
    ours = [Resources(memory), callbacks.Metrics(run.folder / "metrics.jsonl")]
    ours += [Watch(trainer, run, diagnosing.no_number), diagnosing, callbacks.FailureMonitor(run.rewards, checkpoints)]
    ours += [checkpoints, *([held_out] if evaluates else []), progress]
    ours += [Pages(run.folder)]
    ours += [callbacks.Schedule(run.resumed.rate_ratio)] * run.resumed.changes_schedule
    others = catalog.load_callbacks(run.config.callback, run) if run.callbacks is None else run.callbacks
    callbacks.observe(trainer, [*ours, *others], run)
    if run.resume_from:
        screen.say(f"Resuming after {run.resume_from.name}.", "bold")
    if code := _trained(trainer, run, checkpoints, progress, screen):
        return ending.note_stop(run, code, checkpoints.stop_reason) if trainer.is_world_process_zero() else code
    ending.save_and_show(run, method, trainer, held_out if evaluates else None, diagnosing, screen)
    return 0


def _train(trainer: Any, start: Path | None, checkpoints: callbacks.Checkpoints) -> None:
    try:
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    except SamplerFailed:
        checkpoints.save_last_step(trainer)
        raise


def _trained(
    trainer: Any, run: Run, checkpoints: callbacks.Checkpoints, progress: ProgressCallback, screen: Screen
) -> int:
    """Train to the end and return 0; otherwise say how to resume and return the exit code."""

    def stop(number: int, frame: Any) -> None:
        again = environment.comes_again()
        if checkpoints.stop_reason is not None:
            if again or number == signal.SIGHUP:  # a terminal that closes sends more than one
                return
            raise KeyboardInterrupt
        checkpoints.request_stop(checkpoints.INTERRUPTED)
        if launch.LAUNCHER not in os.environ:  # that process says it
            screen.say(launch.STOPPING, "bold")

    start = resuming.folder_to_load(run)
    try:
        with launch.on_signals(stop), contextlib.closing(progress):
            _train(trainer, start, checkpoints)
    except callbacks.AlreadyTrained as done:
        screen.say(str(done) or "All its steps were done already: nothing is trained.", "bold")
    except (Exception, KeyboardInterrupt) as error:
        return ending.failed(error, run, screen, loaded=checkpoints.begun, kept=is_kept(run, trainer))
    step, reason = trainer.state.global_step, checkpoints.stop_reason
    if reason is None or step >= trainer.state.max_steps:
        return 0
    interrupted = reason == checkpoints.INTERRUPTED
    if interrupted:
        screen.say(f"\nStopped after step {step}. Resume: {ending.resume_command(run)}", "bold")
    else:
        screen.say(f"\nStopped after step {step}: {reason}.", "bold")
        ending.say_failures(run, screen)
        screen.say(f"Resume when it is fixed: {ending.resume_command(run)}", "bold")
    trainer.accelerator.wait_for_everyone()  # the launcher ends all when one ends with an error
    launch.outlive_others()
    return launch.INTERRUPTED if interrupted else 1
