"""One run from start to end: resolve and check everything, load the model, evaluate, train, evaluate again, save.

Everything that a user can get wrong is found before the weights load; nothing that was trained is lost after.
torch and its stack are imported after the first checks, so that a misspelt name is reported at once.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core import environment
from rlhf_core.catalog import Catalog
from rlhf_core.config import RunConfig
from rlhf_core.data.progress import Progress, silent
from rlhf_core.method import Method, TrainingOptions
from rlhf_core.models import loading as models
from rlhf_core.models.adapters import new_adapter
from rlhf_core.rewards.binding import bind_all
from rlhf_core.rewards.runtime import RewardRuntime
from rlhf_core.rewards.smoke_test import smoke_test
from rlhf_core.training import arguments as training_arguments
from rlhf_core.training import build as building
from rlhf_core.training import ending, launch, ranks, run_folder
from rlhf_core.training import plan as planning
from rlhf_core.training import resume as resuming
from rlhf_core.training.memory import Expected, PeakMemory
from rlhf_core.training.plan import Plan
from rlhf_core.ui.screen import Screen

if TYPE_CHECKING:
    import datasets
    import transformers
    from peft import LoraConfig

    from rlhf_core.training.callbacks import Checkpoints
    from rlhf_core.training.progress import ProgressCallback


class Run:
    """What a method builds its trainer from.

    `model` is loaded when it is first asked for, so a method makes its training arguments before. `train_rows` are
    projected rows to train on, `held_out` others; `train_dataset` and `eval_dataset` (or None) are the same as data
    sets, with a number by which `rewards` finds a row's other columns.
    """

    loads_weights = True  # False in a dry run, and before the method's trainer is built
    expected = Expected()  # the memory that it will take
    callbacks: list[transformers.TrainerCallback] | None = None  # of `--callback`; None: they need the model
    is_new = True  # its folder is not that of a run to resume

    def __init__(self, plan: Plan, rewards: RewardRuntime, resume_from: Path | None = None) -> None:
        self.plan, self.rewards = plan, rewards
        self.config, self.info, self.held_out = plan.config, plan.info, plan.data.held_out
        self.options: TrainingOptions = plan.config.options
        self.tokenizer: transformers.PreTrainedTokenizerBase = plan.info.tokenizer
        self.template = plan.template
        self.folder = Path(str(plan.config.output_dir))
        self.train_rows = plan.data.train
        self.resume_from = resume_from
        self.resumed = resuming.Resumed()  # what is otherwise than at the checkpoint
        self.described: dict[str, Any] = {}  # what it is made of: its configuration and its manifest
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))  # processes of this run

    @functools.cached_property
    def train_dataset(self) -> datasets.Dataset:
        return planning.dataset(self.train_rows, self.plan.data.need)

    @functools.cached_property
    def eval_dataset(self) -> datasets.Dataset | None:
        first = len(self.plan.data.train)
        return planning.dataset(self.held_out, self.plan.data.need, first) if self.held_out else None

    @functools.cached_property
    def model(self) -> transformers.PreTrainedModel:
        """The model with its weights, and with its adapter where the run starts from one."""
        if not self.loads_weights:
            raise building.ModelNeeded
        return models.load(self.info, self.options)

    @functools.cached_property
    def peft_config(self) -> LoraConfig | None:
        """The adapter to add to the model, if one is to be added."""
        return new_adapter(self.info, self.options)

    @property
    def epochs_done(self) -> int:
        """Complete passes over the data before the checkpoint that is resumed from."""
        if self.resume_from is None:
            return 0
        return int(json.loads((self.resume_from / "trainer_state.json").read_text(encoding="utf-8"))["epoch"])

    def arguments(self, cls: type, **fields: Any) -> Any:
        """Training arguments of class `cls` from the shared options, `fields`, and the user's `--set`, which wins.

        Raises `UserError` for what a library refuses.
        """
        return training_arguments.build(self, cls, fields)


Estimator = Callable[[Run, Method, Catalog, Screen], Expected]


def train(
    config: RunConfig,
    method: Method,
    catalog: Catalog,
    *,
    resume: bool = False,
    dry_run: bool = False,
    allow_changed: Sequence[str] = (),
    estimate: Estimator | None = None,
) -> int:
    """Carry out a run. Raises `UserError` for mistakes; returns the exit code otherwise. `estimate` says what memory it
    will take, before weights load.

    `allow_changed`: names of what a resumed run may have otherwise than it began.
    0: done. 1: it had to stop, and said how to resume. 130: it was interrupted. `launch.OUT_OF_MEMORY`: start it again,
    with the settings that it wrote to its folder.
    """
    environment.prepare()
    if launch.LAUNCHER in os.environ:
        environment.end_with(int(os.environ[launch.LAUNCHER]))
        ranks.report(threading.get_ident())
    launch.check_distributed(config)
    with run_folder.claimed(config, resume) as folder:
        how: dict[str, Any] = {"resume": resume, "allow_changed": allow_changed, "dry_run": dry_run}
        return _train(config, method, catalog, folder, **how, estimate=estimate)


def _train(
    config: RunConfig,
    method: Method,
    catalog: Catalog,
    folder: Path,
    *,
    resume: bool,
    allow_changed: Sequence[str],
    dry_run: bool,
    estimate: Estimator | None,
) -> int:
    first = int(os.environ.get("RANK", 0)) == 0  # of several processes: the one that prints and writes for the run
    screen = Screen(quiet=not first)
    checkpoint = resuming.whole_checkpoint(folder, screen, allow_changed) if resume else None
    if resume and first and not dry_run and launch.LAUNCHER not in os.environ:  # or the file is for this run
        run_folder.remove_stop_file(folder, screen.say)
    with screen.working("Reading data and model configuration …") as progress:
        run = prepare(config, method, catalog, folder, checkpoint, allow_changed, progress)
    run.is_new = not resume
    try:
        encode = functools.partial(run.tokenizer.encode, add_special_tokens=False)
        tested = smoke_test(run.plan.data.train, run.rewards, encode) if first else None
        if first and estimate is not None:
            run.expected = estimate(run, method, catalog, screen)
        screen.resolved([*planning.summary(run.plan, tested, catalog), *run.expected.lines])
        if dry_run:
            building.try_to_build(run, method, screen)
            planning.dry_run(run.plan, tested, screen)
            return 0
        with run_folder.log_file(folder, screen.say):
            memory = PeakMemory()
            with screen.working("Loading the model …"):
                trainer = building.build(run, method, planning.plugins_used(run.plan, catalog))
            try:
                code = _carry_out(run, method, trainer, catalog, screen, memory)
                if first and code == 0:
                    ending.say_memory(run, memory.read(), screen)
                return code
            finally:
                if not _is_kept(run, trainer):
                    run_folder.discard(folder)
    finally:
        run.rewards.close()


def _is_kept(run: Run, trainer: transformers.Trainer) -> bool:
    """Whether there is something to resume. A run that failed in its first step leaves no folder, unless other
    processes go on in it.
    """
    return not run.is_new or trainer.state.global_step > 0 or run.world_size > 1


def check(
    config: RunConfig, method: Method, catalog: Catalog, *, resume: bool, allow_changed: Sequence[str] = ()
) -> None:
    """Raise `UserError` for what `train` would, before the processes that carry out the run are started."""
    environment.prepare()
    launch.check_distributed(config)
    checkpoint = None
    if resume:
        checkpoint = resuming.whole_checkpoint(Path(str(config.output_dir)), Screen(), allow_changed)
        os.environ[resuming.CHECKED] = checkpoint.name if checkpoint else ""
    prepare(config, method, catalog, resume_from=checkpoint, allow_changed=allow_changed).rewards.close()


def prepare(
    config: RunConfig,
    method: Method,
    catalog: Catalog,
    folder: Path | None = None,
    resume_from: Path | None = None,
    allow_changed: Sequence[str] = (),
    progress: Progress = silent,
) -> Run:
    """Resolve and check all but the weights, and start the rewards' workers. Raises `UserError`.

    Answers and failed rewards will be written to `folder`, if there is one. `progress` is told what is being read.
    """
    rewards = bind_all(config.reward_specs, catalog)
    plan = planning.make_plan(config, method, catalog, rewards, progress)
    data, template = plan.data, plan.template
    more: dict[str, Any] = {"rows": data.rows, "text_prompts": data.text_prompts}
    more |= {"opening": template.opening, "finished": template.finished}
    runtime = RewardRuntime(rewards, template.decode, folder, **more)
    run = Run(plan, runtime, resume_from)
    if resume_from is not None:
        run.resumed = resuming.check(run, resume_from, planning.plugins_used(plan, catalog), allow_changed)
        plan.data.warnings.extend(run.resumed.told)
    run.loads_weights = False
    with contextlib.suppress(building.ModelNeeded):
        run.callbacks = catalog.load_callbacks(config.callback, run)
    run.loads_weights = True
    run.rewards.start()
    return run


def _carry_out(run: Run, method: Method, trainer: Any, catalog: Catalog, screen: Screen, memory: PeakMemory) -> int:
    """Evaluate on the held-out rows, train, evaluate again, save."""
    from rlhf_core.training import callbacks, evaluation
    from rlhf_core.training.progress import ProgressCallback
    from rlhf_core.training.resources import Resources
    from rlhf_core.training.watch import Watch

    every = method.steps_per_rollout(trainer)
    checkpoints = callbacks.Checkpoints(run.folder, run.options.save_total_limit, every, run.described)
    held_out = evaluation.HeldOut(trainer, method, run, screen, checkpoints)
    evaluates = bool(run.held_out) and (method.generates or trainer.eval_dataset is not None)
    progress = ProgressCallback(screen.console, run.rewards)
    ours = [Resources(memory), Watch(trainer, run), callbacks.FailureMonitor(run.rewards, checkpoints), checkpoints]
    ours += [callbacks.Metrics(run.folder / "metrics.jsonl"), *([held_out] if evaluates else []), progress]
    ours += [callbacks.Schedule(run.resumed.rate_ratio)] * run.resumed.changes_schedule
    others = catalog.load_callbacks(run.config.callback, run) if run.callbacks is None else run.callbacks
    callbacks.observe(trainer, [*ours, *others], run.folder)
    if run.resume_from:
        screen.say(f"Resuming after {run.resume_from.name}.", "bold")
    if code := _trained(trainer, run, checkpoints, progress, screen):
        return ending.note_stop(run, code, checkpoints.stop_reason) if trainer.is_world_process_zero() else code
    ending.save_and_show(run, method, trainer, held_out if evaluates else None, screen)
    return 0


def _trained(trainer: Any, run: Run, checkpoints: Checkpoints, progress: ProgressCallback, screen: Screen) -> int:
    """Train to the end and return 0; otherwise say how to resume and return the exit code."""
    from rlhf_core.training import callbacks

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
            trainer.train(resume_from_checkpoint=str(start) if start else None)
    except callbacks.AlreadyTrained as done:
        screen.say(str(done) or "All its steps were done already: nothing is trained.", "bold")
    except (Exception, KeyboardInterrupt) as error:
        return ending.failed(error, run, screen, loaded=checkpoints.begun, kept=_is_kept(run, trainer))
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
    trainer.accelerator.wait_for_everyone()  # the launcher kills all when one ends with an error
    return launch.INTERRUPTED if interrupted else 1
