"""What a run says when it ends: why it ended early, how to resume it, which rewards failed, and what to do next."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rlhf_core import phases, runs
from rlhf_core.catalog import Catalog
from rlhf_core.config import BUILTIN
from rlhf_core.credentials import masked
from rlhf_core.errors import RunStopped, first_line
from rlhf_core.method import Method
from rlhf_core.report.page import FILE as REPORT
from rlhf_core.rewards.outcomes import failures
from rlhf_core.training import launch, manifest, ranks, run_folder
from rlhf_core.ui.screen import Screen, number
from rlhf_core.ui.streams import OF_DISKS
from rlhf_core.ui.text import gb

if TYPE_CHECKING:
    from rlhf_core.training.diagnosing import Diagnosing
    from rlhf_core.training.evaluation import HeldOut
    from rlhf_core.training.run import Run

SPACE = 1 << 20  # bytes: less is a full disk
NOTHING_KEPT = "It had not done a step, so its folder is removed: run the same command, corrected where it needs to be."


def save_and_show(
    run: Run, method: Method, trainer: Any, held_out: HeldOut | None, diagnosing: Diagnosing, screen: Screen
) -> None:
    """Write the run's model, evaluate it on the held-out rows, and say what came of the run."""
    from rlhf_core.training import evaluation

    model = str(run.folder / "model")
    trainer.save_model(str(run.folder / "model"))
    if trainer.is_world_process_zero():
        run_folder.finish_model(run)
    if held_out is not None:
        if held_out.stopped_early:
            screen.say(held_out.stopped_early, "bold")
        if best := held_out.checkpoints.best:
            takes, last = run.options.final_model == "best", trainer.state.global_step
            model += f", of step {best.step if takes else last}. Best {best.metric}: {number(best.value)} after step "
            model += f"{best.step}, {run.folder}@best"
            if takes and trainer.is_world_process_zero():
                evaluation.use_best(run, best)
        elif metric := run.options.keep_best:
            model += f", of the last step: no evaluation had a value of {metric}"
        screen.results(held_out.before, held_out.after())
    diagnosing.at_the_end()
    say_failures(run, screen)
    screen.say(f"\nModel    {model}\nPage     {run.folder / REPORT}")
    if "tensorboard" in run.config.trackers:
        screen.say(f"Curves   tensorboard --logdir {run_folder.tensorboard_folder(run.folder)}")
    screen.say(f"Next     {next_command(run, method)}", "bold")


def failed(error: BaseException, run: Run, screen: Screen, *, loaded: bool, kept: bool) -> int:
    """Say why training ended early and how to resume; returns the exit code. `loaded`: the checkpoint was, if any.
    `kept`: the run's folder stays.
    """
    import torch

    log = f" The log: {run.folder / 'run.log'}" if kept else ""
    resume = f"Resume: {resume_command(run)}" if kept else NOTHING_KEPT
    if isinstance(error, KeyboardInterrupt):
        again = f"Resume from the last checkpoint: {resume_command(run)}" if kept else NOTHING_KEPT
        screen.say(f"\nStopped at once. {again}", "bold")
        return launch.INTERRUPTED
    logging.getLogger(__name__).error("the run failed", exc_info=error)
    ranks.wait_to_be_ended(error)
    if isinstance(error, RunStopped):
        if not run_folder.first_to_stop(run.folder):  # another process has said it
            return 1
        screen, what = Screen(), str(error)
    elif isinstance(error, torch.OutOfMemoryError):
        sampled = "sampling" in phases.interrupted  # which a smaller micro-batch would not change
        if not sampled and launch.ask_for_smaller(run.folder, run.options):
            return launch.OUT_OF_MEMORY
        if not run_folder.first_to_stop(run.folder):
            return 1
        screen, what = Screen(), _of_memory(error, run, sampled)
    elif (run.folder / launch.SMALLER).exists():  # another process ran out of memory and is gone
        return launch.OUT_OF_MEMORY
    elif problem := _of_the_disk(error, run):
        what = problem
    elif run.resume_from is not None and not loaded:
        what = (
            f"{run.resume_from} can't be loaded: it is damaged, or another version wrote it ({first_line(error)}). "
            f"To go on from the checkpoint before it, remove it.{log}"
        )
    else:
        with suppress(OSError):
            sys.stderr.write("".join(traceback.format_exception(error)))
        callback = callback_of(error, run.config.callback)
        what = f"{callback or 'This is a bug, or a fault of the machine.'}{log}"
    screen.say(f"\n{masked(what)}\n{resume}", "bold")
    return 1


def _of_memory(error: BaseException, run: Run, sampled: bool) -> str:
    """What the device had no memory for, and what to try."""
    while_sampling = " while it sampled answers" if sampled else ""
    fewer = ["--num-generations"] * (sampled and "num_generations" in type(run.options).model_fields)
    fewer += ["--gradient-accumulation-steps", "--per-device-train-batch-size"] * sampled
    fewer_answers = f", fewer answers at a time ({', '.join(fewer)})" if fewer else ""
    return (
        f"The device ran out of memory{while_sampling}: {first_line(error)}\n"
        f"Try a smaller --max-completion-length or --max-prompt-length{fewer_answers}, or --load-in-4bit."
    )


def _of_the_disk(error: BaseException, run: Run) -> str | None:
    """What is wrong with the run's folder or its disk, if that is why it failed: libraries have words of their own."""
    if isinstance(error, OSError) and error.errno in OF_DISKS:
        return f"{run.folder} can't be written to: {error.strerror}. Its disk needs space, and to be writable."
    if any(f"(os error {number})" in str(error) for number in OF_DISKS):  # so says safetensors, which is no OSError
        return f"{run.folder} can't be written to: {first_line(error)}. Its disk needs space, and to be writable."
    if not (run.folder / "config.yaml").exists():
        return f"{run.folder} is not there any more: it was renamed or removed while the run wrote to it."
    with suppress(OSError):
        if shutil.disk_usage(run.folder).free < SPACE:
            return f"The disk of {run.folder} is full: {first_line(error)}"
    return None


def callback_of(error: BaseException, names: Sequence[str]) -> str | None:
    """Which of the plugins called `names` raised in a callback, by the modules in the traceback."""
    entries = [Catalog().find("callbacks", name) for name in names]
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = f"{frame.f_globals.get('__name__')}."
        for entry in entries:
            if module.startswith(f"{entry.module}."):
                called = f"Callback {entry.name!r} of {entry.distribution} {entry.version}"
                return f"{called} failed: {type(error).__name__}: {first_line(error)}."
    return None


def note_stop(run: Run, code: int, reason: str | None) -> int:
    """Write to manifest.json that the run stopped, for the `reason` given, or failed; returns its exit code."""
    if code != launch.OUT_OF_MEMORY:
        with suppress(OSError, ValueError):  # the disk may be why it ended
            state = runs.STOPPED if reason or code == launch.INTERRUPTED else runs.FAILED
            manifest.note(run.folder, ended={"state": state, "reason": reason})
    return code


def say_memory(run: Run, measured: Mapping[str, int], screen: Screen) -> None:
    """Say how much memory the run took at most, beside the estimate, and write both to manifest.json: also that it is
    done, and its means on held-out rows.
    """
    manifest.note(run.folder, ended={"state": runs.DONE, "reason": None}, results=runs.results(run.folder))
    most = measured.get("allocated", measured.get("resident"))
    if most is None:
        return
    estimated = run.expected.peak
    beside = f"; estimated were {gb(estimated)} ({most / estimated - 1:+.0%})" if estimated else ""
    what = "of the GPU" if "allocated" in measured else "beyond what the process had before"
    screen.say(f"Memory   {gb(most)} {what} at most{beside}")
    manifest.note(run.folder, memory={"estimated_bytes": estimated, **{f"{k}_bytes": v for k, v in measured.items()}})


def say_failures(run: Run, screen: Screen) -> None:
    file = run.folder / "reward_errors.jsonl"
    if lines := failures(file, run.folder / "samples.jsonl"):
        lines.append(f"A failed row counts neither for nor against its answer. The rows: {file}")
        screen.say("\n" + "\n".join(lines), "yellow")
    for each in run.lost_trackers.values():
        screen.say(f"\n{masked(each)}", "yellow")


def resume_command(run: Run) -> str:
    return shlex.join(["rlhf", "run", "--resume", str(run.folder)])


def next_command(run: Run, method: Method) -> str:
    """A command that uses the model."""
    config = run.config
    model = str(run.folder / "model")
    if method.task == "sequence_classification":
        return shlex.join(["rlhf", "run", "--method", "ppo", "--reward-model", model, "--model", config.model])
    data = [] if config.data == [BUILTIN] else config.data_specs
    given: dict[str, list[Any]] = {"--reward": [*config.reward_specs], "--model": [model], "--data": [*data]}
    given["--eval-data"] = [*config.eval_specs]
    given["--chat-template-kwargs"] = [json.dumps(run.template.kwargs)] if run.template.kwargs else []
    flags = [word for flag, values in given.items() for value in values for word in (flag, str(value))]
    return shlex.join(["rlhf", "run", "--method", config.method, *flags])
