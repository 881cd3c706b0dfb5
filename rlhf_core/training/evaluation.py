"""Answers to held-out prompts, sampled before, in and after training with one seed, and their scores.

Each evaluation is a line of evaluations.jsonl; its means go to the trainer's log. The best one is found in these lines,
so that a resumed run, which keeps those up to its checkpoint, finds the same.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerCallback

from rlhf_core.method import Method
from rlhf_core.models.checkpoints import Best, list_checkpoints, step, write_best
from rlhf_core.outputs import write_whole
from rlhf_core.prefix import Rollout
from rlhf_core.training import best
from rlhf_core.training.answering import answers, asked
from rlhf_core.training.callbacks import AlreadyTrained, Checkpoints
from rlhf_core.ui.screen import Screen, number
from rlhf_core.unused import SPLIT

if TYPE_CHECKING:
    from rlhf_core.training.run import Run


log = logging.getLogger("rlhf")
FILE = "evaluations.jsonl"
# What shows whether a method learned; everything else that a trainer measures is in metrics.jsonl.
METRICS = (
    *("loss", "accuracy", "margin", "mean_token_accuracy"),
    *("rewards/accuracies", "rewards/margins", "log_odds_chosen"),
)


@dataclass
class Evaluation:
    """Means over the held-out rows, and the answers. `metrics` are the trainer's, without `eval_`; `length`
    is in tokens, `finished` the share of answers that ended before the limit, `reward` the mean of the answers'
    weighted sums of rewards.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    rewards: dict[str, float | None] = field(default_factory=dict)
    length: float | None = None
    finished: float | None = None
    prompts: list[Any] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    scores: list[dict[str, float | None]] = field(default_factory=list)
    reward: float | None = None
    tokens: list[int] = field(default_factory=list)

    def logged(self) -> dict[str, float]:
        """The means over answers, under the names that they have in training, with `eval_`."""
        cut = None if self.finished is None else 1 - self.finished
        values = {"reward": self.reward, **{f"rewards/{name}/mean": mean for name, mean in self.rewards.items()}}
        values |= {"completions/mean_length": self.length, "completions/clipped_ratio": cut}
        return {f"eval_{name}": value for name, value in values.items() if value is not None}


class HeldOut(TrainerCallback):
    """Evaluates on the held-out rows when training begins, every `eval_steps`, and when `after` is called.

    Before training begins, the trainer has not prepared its model for several processes. `before` is the first result,
    which a resumed run has from its start. Between steps the trainer's own `evaluate` is this one, so that schedules
    that follow its loss get it; evaluations that fall within a batch of answers wait for its end, as checkpoints do.
    All processes know the values, and decide alike.
    """

    def __init__(self, trainer: Any, method: Method, run: Run, screen: Screen, checkpoints: Checkpoints) -> None:
        self.trainer, self.method, self.run, self.screen, self.checkpoints = trainer, method, run, screen, checkpoints
        self.file, self.lines = run.folder / "evaluation.json", run.folder / FILE
        self.before: Evaluation | None = None
        self.history: dict[int, dict[str, float | None]] = {}  # the values of each line
        self.measured: dict[str, Any] = {}  # what the trainer measured last
        self._due = False
        self._measure = trainer.evaluate
        trainer.evaluate = self._between_steps
        if run.resume_from:
            with suppress(OSError, ValueError, TypeError, KeyError):  # missing or damaged: see below
                self.before = Evaluation(**json.loads(self.file.read_text(encoding="utf-8"))["before"])

    def on_train_begin(self, args, state, control, **kwargs):
        if self.before is None:
            if since := self.run.resume_from:
                log.warning("%s is missing or damaged: the model is compared with that of %s", self.file, since.name)
            self.before = self.evaluate()
        if self.run.resume_from:
            self._read_history()

    def on_step_begin(self, args, state, control, **kwargs):
        if self._patience_is_over:
            raise AlreadyTrained("It had stopped early already: nothing is trained.")

    def on_step_end(self, args, state, control, **kwargs):
        every, at = self.run.options.eval_steps, state.global_step
        if every is None:
            return
        self._due = self._due or at % every == 0
        if at >= state.max_steps or (self._due and at % self.checkpoints.every == 0):
            self._due, control.should_evaluate = False, True

    def _between_steps(self, eval_dataset: Any = None, **keywords: Any) -> dict[str, Any]:
        """The trainer's `evaluate`: of the held-out rows, after which the run goes on as it would have without."""
        trainer, metric = self.trainer, self.run.options.keep_best
        if eval_dataset is not None or not trainer.is_in_train:
            measured: dict[str, Any] = self._measure(eval_dataset, **keywords)
            return measured
        with random_state_kept():
            result = self.evaluate(shown=False)
        values = {**self.measured, **result.logged()}
        if trainer.eval_dataset is None:
            handler = trainer.callback_handler
            trainer.control = handler.on_evaluate(trainer.args, trainer.state, trainer.control, values)
        if metric is not None:
            at, kept = trainer.state.global_step, self.checkpoints.best
            found = self._find_best(metric, [*([kept.step] if kept else []), at])
            if found != kept:
                self.checkpoints.best = found
                self.checkpoints.save(trainer.args, trainer.control)
            if self._patience_is_over and at < trainer.state.max_steps:
                trainer.control.should_training_stop = True
                self.checkpoints.save(trainer.args, trainer.control)
        return values

    def _find_best(self, metric: str, steps: list[int]) -> Best | None:
        return best.find(self.history, metric, steps, [reward.name for reward in self.run.rewards.rewards])

    @property
    def _patience_is_over(self) -> bool:
        patience = self.run.options.early_stop
        return 0 < patience <= best.without_better(self.history, self.checkpoints.best)

    @property
    def stopped_early(self) -> str:
        """Why the run stopped before its last step; an empty string if it did not."""
        at, kept, options = self.trainer.state.global_step, self.checkpoints.best, self.run.options
        if not self._patience_is_over or at >= self.trainer.state.max_steps:
            return ""
        than = f" than {number(kept.value)} after step {kept.step}" if kept else ""
        count = f"{options.early_stop} evaluation{'s' * (options.early_stop > 1)}"
        return (
            f"Stopped early after step {at}: {count} without a better {options.keep_best}{than}. To go on: "
            f"rlhf run --resume {self.run.folder} --early-stop 0"
        )

    def after(self) -> Evaluation:
        """The evaluation of the run's model: the one there is of its step, or a new one."""
        kept = self.checkpoints.best if self.run.options.final_model == "best" else None
        at = kept.step if kept else self.trainer.state.global_step
        if at == 0 or at not in self.history:
            return self.evaluate()
        result = Evaluation()
        if self.trainer.is_world_process_zero():
            fields = {name: value for name, value in self._line(at).items() if name in vars(result)}
            result = Evaluation(**fields, prompts=self.before.prompts if self.before else [])
            self._write(result)
        return result

    def evaluate(self, *, shown: bool = True) -> Evaluation:
        """What the trainer measures on its held-out rows, if it has any, and the model's answers to their prompts.

        Every process takes part in measuring; the first one answers, scores and writes. Where parameters are split
        between processes they answer together, since none has the model alone.
        """
        result, trainer = Evaluation(), self.trainer
        doing = f"Evaluating on the held-out rows{' again' if self.before else ''} …"
        with self.screen.working(doing) if shown else nullcontext():  # the live view is there
            if trainer.eval_dataset is not None:
                self.measured = self._measure()
                measured = {name.removeprefix("eval_"): value for name, value in self.measured.items()}
                result.metrics = {name: measured[name] for name in METRICS if name in measured}
            first = trainer.is_world_process_zero()
            if self.method.generates and asked(self.run) and (first or self.run.config.distributed in SPLIT):
                rollouts = answers(trainer, self.method, self.run)
                if first:
                    _score(result, rollouts, self.run)
        values = {name: value for name, value in asdict(result).items() if name not in ("prompts", "answers", "scores")}
        values, logged = broadcast_object_list([values, result.logged()])
        if logged:
            Trainer.log(trainer, logged)  # methods' own add what they measured in training since the last line
        at = trainer.state.global_step
        if at not in self.history and trainer.is_world_process_zero():
            line = {"step": at, **{name: value for name, value in asdict(result).items() if name != "prompts"}}
            with self.lines.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.history[at] = best.values_of(values)
        if trainer.is_world_process_zero():
            self._write(result)
        return result

    def _write(self, result: Evaluation) -> None:
        """evaluation.json: the first evaluation, and the one since."""
        values = {"before": asdict(self.before or result), "after": asdict(result) if self.before else None}
        write_whole(self.file, json.dumps(values, ensure_ascii=False))

    def _line(self, at: int) -> dict[str, Any]:
        """The line of evaluations.jsonl of a step."""
        with self.lines.open(encoding="utf-8") as stream:
            lines = (json.loads(line) for line in stream)
            return next(line for line in lines if line["step"] == at)

    def _read_history(self) -> None:
        """Of a resumed run, from its lines, and of those that have a checkpoint the best, which is said in its file."""
        found: list[Any] = [{}, None]
        metric, folder = self.run.options.keep_best, self.checkpoints.folder
        if self.trainer.is_world_process_zero():
            with self.lines.open(encoding="utf-8") as stream:
                history = {line["step"]: best.values_of(line) for line in map(json.loads, stream)}
            there = [step(path) for path in list_checkpoints(folder)]
            self.history = history
            found = [history, self._find_best(metric, there) if metric else None]
            write_best(folder, found[1])
        self.history, self.checkpoints.best = broadcast_object_list(found)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Python's, numpy's and torch's random numbers go on as they were before."""
    python, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpys)


def use_best(run: Run, kept: Best) -> None:
    """Put the weights of the best checkpoint into the run's model, whose files, of the last step, are there."""
    folder = run.folder / "checkpoints" / f"checkpoint-{kept.step}"
    for file in [file for file in (run.folder / "model").rglob("*") if file.is_file()]:
        name = file.relative_to(run.folder / "model")
        if (folder / name).is_file():
            shutil.copyfile(folder / name, file)


def _score(result: Evaluation, rollouts: Sequence[Rollout], run: Run) -> None:
    """Score the answers to the held-out prompts, as in training."""
    batch = run.rewards.batch(asked(run), [answer.completion for answer in rollouts])
    scored = run.rewards.evaluate(batch)
    applicable = {name: [s for s in column.scores if s is not None] for name, column in scored.items()}
    result.rewards = {name: fmean(scores) if scores else None for name, scores in applicable.items()}
    totals = [total for total in run.rewards.totals(scored) if total is not None]
    result.reward = fmean(totals) if totals else None
    result.tokens = [len(ids) for ids in batch.completion_ids]
    result.length, result.finished = fmean(result.tokens), fmean(answer.finished for answer in rollouts)
    result.prompts, result.answers = list(batch.prompts), list(batch.texts)
    result.scores = [{name: column.scores[i] for name, column in scored.items()} for i in range(len(batch))]
