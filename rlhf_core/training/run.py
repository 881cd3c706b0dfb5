"""One run from start to end: resolve and check everything, load the model, evaluate, train, evaluate again, save.

Everything that a user can get wrong is found before the weights load; nothing that was trained is lost after.
torch and its stack are imported after the first checks, so that a misspelt name is reported at once.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core import environment
from rlhf_core.catalog import Catalog
from rlhf_core.config import RunConfig
from rlhf_core.data.progress import Progress, silent
from rlhf_core.data.projecting import prompt_of
from rlhf_core.method import Method, TrainingOptions
from rlhf_core.models import loading as models
from rlhf_core.models import precision
from rlhf_core.models.adapters import new_adapter
from rlhf_core.reward import Planned
from rlhf_core.rewards.before_run import PROMPTS, said_before
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
from rlhf_core.words import language

if TYPE_CHECKING:
    import datasets
    import transformers
    from peft import LoraConfig


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
        self.at_end = contextlib.ExitStack()  # what ends with the run
        self.lost_trackers: dict[str, str] = {}  # those that failed, and what is said of each
        self.name = plan.config.name or self.folder.resolve().name
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
    language()
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
    with contextlib.closing(run.rewards):
        asked = say_before(run, method) if first else []
        encode = functools.partial(run.tokenizer.encode, add_special_tokens=False)
        tested = smoke_test(run.plan.data.train, run.rewards, encode) if first else None
        if first and estimate is not None:
            run.expected = estimate(run, method, catalog, screen)
        screen.resolved([*planning.summary(run.plan, tested, catalog), *asked, *run.expected.lines])
        if dry_run:
            building.try_to_build(run, method, screen)
            planning.dry_run(run.plan, tested, screen)
            return 0
        from rlhf_core.training import loop
        from rlhf_core.training.pages import Pages

        with run_folder.log_file(folder, screen.say), run.at_end:
            memory = PeakMemory()
            with screen.working("Loading the model …"):
                trainer = building.build(run, method, planning.plugins_used(run.plan, catalog))
            try:
                code = loop.carry_out(run, method, trainer, catalog, screen, memory)
                if first and code == 0:
                    ending.say_memory(run, memory.read(), screen)
                return code
            finally:
                if not loop.is_kept(run, trainer):
                    run_folder.discard(folder)
                elif first:
                    Pages(folder).write()


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
    run = prepare(config, method, catalog, resume_from=checkpoint, allow_changed=allow_changed)
    with contextlib.closing(run.rewards):
        say_before(run, method)


def say_before(run: Run, method: Method) -> list[tuple[str, str]]:
    """What the rewards say of the run that is planned. Raises `UserError` for one that can't work."""
    options, config = run.options, run.config
    processes = max(run.world_size, config.num_processes * config.num_machines)
    trained = method.scored_answers(options, len(run.train_rows), processes)
    asked = [prompt for row in run.held_out if (prompt := prompt_of(row))] if method.generates else []
    times = 2  # before and after
    if options.eval_steps and asked:
        of_step = options.per_device_train_batch_size * options.gradient_accumulation_steps * processes
        if trained:
            of_step = method.scored_answers(options.model_copy(update={"max_steps": 1}), 0, processes)
        rows = trained or len(run.train_rows) * options.num_train_epochs
        times += int((options.max_steps if options.max_steps > 0 else rows / of_step) // options.eval_steps)
    prompts = asked or [prompt_of(row) for row in run.train_rows[:PROMPTS]]
    group = options.model_dump().get("num_generations", 1)
    answers = trained + times * len(asked)
    return said_before(run.rewards.rewards, Planned(prompts, answers, options.max_completion_length, group))


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
    options = precision.for_device(plan.config.options, precision.frozen_dtype())
    plan = replace(plan, config=plan.config.model_copy(update={"options": options}))
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
