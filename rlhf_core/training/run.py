"""One run from start to end: resolve and check everything, load the model, train, compare, save.

Nothing that the user got wrong survives the checks before the weights load; nothing that was trained is lost after.
torch and its stack are imported after the first checks, so that a misspelt name is reported at once.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core.catalog import Catalog
from rlhf_core.config import BUILTIN, RunConfig
from rlhf_core.method import Method, TrainingOptions
from rlhf_core.rewards.spec import bind_all
from rlhf_core.training import environment, launch

if TYPE_CHECKING:
    import datasets
    import transformers
    from peft import LoraConfig

    from rlhf_core.models.loading import ModelInfo
    from rlhf_core.rewards.runtime import RewardRuntime
    from rlhf_core.training.callbacks import Checkpoints
    from rlhf_core.training.plan import Plan
    from rlhf_core.training.progress import ProgressCallback
    from rlhf_core.ui.screen import Screen


@dataclass
class Run:
    """What a method builds its trainer from.

    `model` is loaded when it is first asked for, so a method makes its training arguments before. `held_out` are
    projected rows that are not trained on; `eval_dataset` is the same for a trainer that measures on them.
    `steps_per_rollout` is set by a method that samples: the optimizer steps from one new batch of answers to the next,
    where checkpoints may be taken. `policy` is set by a method whose trainer has the model inside another module.
    """

    config: RunConfig
    folder: Path
    info: ModelInfo
    train_dataset: datasets.Dataset
    held_out: list[dict[str, Any]]
    rewards: RewardRuntime
    resume_from: Path | None = None
    eval_dataset: datasets.Dataset | None = None
    steps_per_rollout: int = field(default=1, init=False)
    policy: Any = field(default=None, init=False)

    @property
    def options(self) -> TrainingOptions:
        return self.config.options

    @property
    def tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        return self.info.tokenizer

    @functools.cached_property
    def model(self) -> transformers.PreTrainedModel:
        """The model with its weights, and with its adapter where the run starts from one."""
        from rlhf_core.models import loading as models

        return models.load(self.info, self.options)

    @functools.cached_property
    def peft_config(self) -> LoraConfig | None:
        """The adapter to add to the model, if one is to be added."""
        from rlhf_core.models import loading as models

        return models.new_adapter(self.info, self.options)

    @property
    def world_size(self) -> int:
        """Processes of this run."""
        return int(os.environ.get("WORLD_SIZE", 1))

    @property
    def epochs_done(self) -> int:
        """Whole passes over the data that the checkpoint to resume from has behind it."""
        if self.resume_from is None:
            return 0
        return int(json.loads((self.resume_from / "trainer_state.json").read_text(encoding="utf-8"))["epoch"])

    def arguments(self, cls: type, **fields: Any) -> Any:
        """Training arguments of class `cls` from the shared options, `fields`, and the user's `--set`, which wins."""
        from rlhf_core.training.arguments import make_arguments

        return make_arguments(cls, self.config, self.folder, fields)


def train(config: RunConfig, method: Method, catalog: Catalog, *, resume: bool = False, dry_run: bool = False) -> int:
    """Carry out a run. Raises `UserError` for mistakes; returns the exit code otherwise.

    0: done. 1: it had to stop, and said how to go on. 130: it was interrupted. `launch.OUT_OF_MEMORY`: it is to be
    started again, with what it left in its folder.
    """
    environment.prepare()
    launch.end_with_launcher()
    launch.check_distributed(config)
    rewards = bind_all(config.reward_specs, catalog)

    from rlhf_core.training import plan as planning
    from rlhf_core.ui.screen import Screen

    screen = Screen(quiet=not _first_process())
    with screen.working("Reading data and model configuration …"):
        plan = planning.make_plan(config, method, catalog, rewards)
        plan.tried = planning.try_rewards(plan) if _first_process() else None
    try:
        return _train_planned(config, method, catalog, plan, screen, resume=resume, dry_run=dry_run)
    finally:
        plan.rewards.close()


def check(config: RunConfig, method: Method, catalog: Catalog, *, resume: bool) -> None:
    """Raise `UserError` for what `train` would, before the processes that carry out the run are started."""
    environment.prepare()
    launch.check_distributed(config)
    rewards = bind_all(config.reward_specs, catalog)

    from rlhf_core.training import plan as planning
    from rlhf_core.training import run_folder

    run_folder.choose(config, resume)
    planning.make_plan(config, method, catalog, rewards).rewards.close()


def _train_planned(
    config: RunConfig, method: Method, catalog: Catalog, plan: Plan, screen: Screen, *, resume: bool, dry_run: bool
) -> int:
    import transformers

    from rlhf_core.training import plan as planning
    from rlhf_core.training import run_folder

    folder = run_folder.choose(config, resume)
    screen.resolved(planning.summary(config, catalog, plan))
    if dry_run:
        planning.dry_run(plan, screen)
        return 0
    with run_folder.log_file(folder):
        run = Run(
            config=config,
            folder=folder,
            info=plan.info,
            train_dataset=planning.dataset(plan.data.train),
            eval_dataset=planning.dataset(plan.data.held_out) if plan.data.held_out else None,
            held_out=plan.data.held_out,
            rewards=plan.rewards,
            resume_from=run_folder.latest_checkpoint(folder) if resume else None,
        )
        with screen.working("Loading the model …"):
            transformers.set_seed(config.options.seed)
            trainer = method.trainer(run)
        launch.check(config, trainer)
        if trainer.is_world_process_zero():
            run_folder.prepare(run)
            run_folder.write_manifest(run, planning.plugins_used(config, catalog, plan))
        trainer.accelerator.wait_for_everyone()
        plan.rewards.folder = folder
        return _carry_out(run, method, trainer, catalog, screen)


def _carry_out(run: Run, method: Method, trainer: transformers.Trainer, catalog: Catalog, screen: Screen) -> int:
    """Look at the held-out prompts, train, look again, save."""
    from rlhf_core.training import callbacks, evaluation, run_folder
    from rlhf_core.training.progress import ProgressCallback

    looks = bool(run.held_out) and (method.generates or trainer.eval_dataset is not None)
    before = run_folder.remembered(run.folder) if looks and run.resume_from else None

    def look() -> None:
        nonlocal before
        if looks and before is None:
            with screen.working("Looking at the held-out rows …"):
                before = evaluation.evaluate(trainer, run, generates=method.generates)
            if trainer.is_world_process_zero():
                run_folder.remember(run.folder, before, None)

    keeper = callbacks.Checkpoints(
        run.folder / "checkpoints", run.options.save_total_limit, run.steps_per_rollout, run.folder / launch.STOP
    )
    progress = ProgressCallback(screen.console, run.rewards)
    metrics = callbacks.Metrics(run.folder / "metrics.jsonl")
    ours = [callbacks.Breaker(run.rewards, keeper), keeper, metrics, evaluation.FirstLook(look), progress]
    others = [callback for name in run.config.callback for callback in catalog.load_callbacks(name, run)]
    _observe(trainer, [*ours, *others], run)
    if run.resume_from:
        screen.say(f"Going on after {run.resume_from.name}.", "bold")
    stopped = _train(trainer, run, method, keeper, progress, screen)
    if stopped is not None:
        return stopped
    trainer.save_model(str(run.folder / "model"))
    if trainer.is_world_process_zero():
        run_folder.finish_model(run)
    if looks:
        with screen.working("Looking at the held-out rows again …"):
            after = evaluation.evaluate(trainer, run, generates=method.generates)
        if trainer.is_world_process_zero():
            run_folder.remember(run.folder, before, after)
        screen.results(before, after)
    _say_goodbye(run, method, screen)
    return 0


def _train(
    trainer: Any, run: Run, method: Method, keeper: Checkpoints, progress: ProgressCallback, screen: Screen
) -> int | None:
    """Train to the end: None. Otherwise the exit code, after saying how to go on."""
    import torch

    from rlhf_core.training import callbacks

    resume = f"rlhf run --resume {run.folder}"
    try:
        with _interruptible(keeper, screen):
            trainer.train(resume_from_checkpoint=str(run.resume_from) if run.resume_from else None)
    except callbacks.AlreadyTrained:
        progress.close()
    except KeyboardInterrupt:
        progress.close()
        screen.say(f"\nStopped at once. Go on from the last checkpoint: {resume}", "bold")
        return launch.INTERRUPTED
    except torch.OutOfMemoryError as error:
        progress.close()
        logging.getLogger(__name__).error("out of memory", exc_info=error)
        if settings := launch.smaller(run.options):
            launch.leave_smaller(run.folder, settings)
            if launch.LAUNCHER not in os.environ:  # otherwise that process says so, once for all
                print(launch.restart_message(settings), flush=True)
            return launch.OUT_OF_MEMORY
        screen.say(
            f"\nThe device ran out of memory: {str(error).splitlines()[0]}\n"
            f"Try a smaller --max-completion-length or --max-prompt-length, or --load-in-4bit.\nGo on: {resume}",
            "bold",
        )
        return 1
    except Exception:
        progress.close()
        logging.getLogger(__name__).exception("the run failed")
        if (run.folder / launch.SMALLER).exists():  # another process ran out of memory and is gone
            return launch.OUT_OF_MEMORY
        traceback.print_exc()
        screen.say(f"\nA bug, or a fault of the machine. The log: {run.folder / 'run.log'}\nGo on: {resume}", "bold")
        return 1
    if keeper.stop_reason is None or trainer.state.global_step >= trainer.state.max_steps:
        return None
    interrupted = keeper.stop_reason == keeper.INTERRUPTED
    if interrupted:
        screen.say(f"\nStopped after step {trainer.state.global_step}. Go on: {resume}", "bold")
    else:
        screen.say(f"\nStopped after step {trainer.state.global_step}: {keeper.stop_reason}.", "bold")
        _say_failures(run, screen)
        screen.say(f"Go on when it is mended: {resume}", "bold")
    trainer.accelerator.wait_for_everyone()  # the first process to end with an error code has the others killed
    return launch.INTERRUPTED if interrupted else 1


def _observe(trainer: Any, callbacks: list[Any], run: Run) -> None:
    """Our callbacks instead of the ones that print, and TensorBoard in the run's folder."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers import PrinterCallback
    from transformers import ProgressCallback as TqdmCallback
    from transformers.integrations import TensorBoardCallback

    for unwanted in (PrinterCallback, TqdmCallback):
        trainer.remove_callback(unwanted)
    for callback in callbacks:
        trainer.add_callback(callback)
    if trainer.is_world_process_zero():
        trainer.add_callback(TensorBoardCallback(SummaryWriter(log_dir=str(run.folder / "tensorboard"))))


@contextmanager
def _interruptible(keeper: Checkpoints, screen: Screen) -> Iterator[None]:
    """Ctrl-C (or SIGTERM) asks for a checkpoint and a stop; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: Any) -> None:
        if keeper.stop_reason is not None:
            raise KeyboardInterrupt
        keeper.request_stop(keeper.INTERRUPTED)
        if launch.LAUNCHER not in os.environ:  # that process says it
            screen.say("Stopping with a checkpoint after this step. Ctrl-C again stops at once.", "bold")

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _say_goodbye(run: Run, method: Method, screen: Screen) -> None:
    _say_failures(run, screen)
    screen.say(f"\nModel    {run.folder / 'model'}\nCurves   tensorboard --logdir {run.folder / 'tensorboard'}")
    screen.say(f"Go on    {_next_command(run, method)}", "bold")


def _say_failures(run: Run, screen: Screen) -> None:
    """A line for each reward that failed, and where its rows are."""
    from rlhf_core.rewards.outcomes import failures

    file = run.folder / "reward_errors.jsonl"
    if lines := failures(file, run.folder / "samples.jsonl"):
        screen.say("\n" + "\n".join(lines), "yellow")
        screen.say(f"A failed row counts neither for nor against its answer. The rows: {file}", "yellow")


def _next_command(run: Run, method: Method) -> str:
    config = run.config
    if method.task == "sequence_classification":
        return f"rlhf run --method ppo --reward-model {run.folder / 'model'} --model {config.model}"
    data = "" if config.data == [BUILTIN] else "".join(f" --data {spec}" for spec in config.data_specs)
    rewards = "".join(f" --reward '{spec}'" if spec.parameters else f" --reward {spec}" for spec in config.reward_specs)
    return f"rlhf run --method {config.method}{rewards} --model {run.folder / 'model'}{data}"


def _first_process() -> bool:
    return int(os.environ.get("RANK", 0)) == 0
