"""Answers to held-out prompts, sampled before and after training with one seed, and their scores."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from rlhf_core.data.encoding import tools_of
from rlhf_core.data.projecting import prompt_of
from rlhf_core.method import SAMPLING, Method
from rlhf_core.outputs import write_whole
from rlhf_core.prefix import Rollout, Sampling, eos_token_ids, rollout
from rlhf_core.ui.screen import Screen

if TYPE_CHECKING:
    from rlhf_core.training.run import Run


log = logging.getLogger("rlhf")
# What shows whether a method learned; everything else that a trainer measures is in metrics.jsonl.
METRICS = (
    *("loss", "accuracy", "margin", "mean_token_accuracy"),
    *("rewards/accuracies", "rewards/margins", "log_odds_chosen"),
)


@dataclass
class Evaluation:
    """Means over the held-out rows, and the answers. `metrics` are the trainer's, without `eval_`; `length`
    is in tokens, `finished` the share of answers that ended before the limit.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    rewards: dict[str, float | None] = field(default_factory=dict)
    length: float | None = None
    finished: float | None = None
    prompts: list[Any] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    scores: list[dict[str, float | None]] = field(default_factory=list)


class HeldOut(TrainerCallback):
    """Evaluates on the held-out rows when training begins, and when `evaluate` is called after it.

    Before training begins, the trainer has not prepared its model for several processes. `before` is the first result,
    which a resumed run has from its start.
    """

    def __init__(self, trainer: Any, method: Method, run: Run, screen: Screen) -> None:
        self.trainer, self.method, self.run, self.screen = trainer, method, run, screen
        self.file = run.folder / "evaluation.json"
        self.before: Evaluation | None = None
        if run.resume_from:
            with suppress(OSError, ValueError, TypeError, KeyError):  # missing or damaged: see below
                self.before = Evaluation(**json.loads(self.file.read_text(encoding="utf-8"))["before"])

    def on_train_begin(self, args, state, control, **kwargs):
        if self.before is None:
            if since := self.run.resume_from:
                log.warning("%s is missing or damaged: the model is compared with that of %s", self.file, since.name)
            self.before = self.evaluate()

    def evaluate(self) -> Evaluation:
        """What the trainer measures on its held-out rows, if it has any, and the model's answers to their prompts.

        Every process takes part in measuring; only the first one answers, and writes evaluation.json.
        """
        result = Evaluation()
        with self.screen.working(f"Evaluating on the held-out rows{' again' if self.before else ''} …"):
            if self.trainer.eval_dataset is not None:
                measured = {name.removeprefix("eval_"): value for name, value in self.trainer.evaluate().items()}
                result.metrics = {name: measured[name] for name in METRICS if name in measured}
            if self.method.generates and self.trainer.is_world_process_zero():
                with self.trainer.accelerator.autocast():
                    _answer(result, self.method.policy(self.trainer), self.run)
        if self.trainer.is_world_process_zero():
            values = {"before": asdict(self.before or result), "after": asdict(result) if self.before else None}
            write_whole(self.file, json.dumps(values, ensure_ascii=False))
        return result


def _answer(result: Evaluation, model: Any, run: Run) -> None:
    """Answer the held-out prompts once each, as in training, and score the answers."""
    rows = asked(run)
    if not rows:
        return
    rollouts = sample(model, run)
    batch = run.rewards.batch(rows, [answer.completion for answer in rollouts])
    scored = run.rewards.evaluate(batch)
    applicable = {name: [s for s in column.scores if s is not None] for name, column in scored.items()}
    result.rewards = {name: fmean(scores) if scores else None for name, scores in applicable.items()}
    result.length, result.finished = (
        fmean(map(len, batch.completion_ids)),
        fmean(answer.finished for answer in rollouts),
    )
    result.prompts, result.answers = list(batch.prompts), list(batch.texts)
    result.scores = [{name: column.scores[i] for name, column in scored.items()} for i in range(len(batch))]


def asked(run: Run) -> list[dict[str, Any]]:
    """The held-out rows that have a prompt: plain text has none."""
    return [row for row in run.held_out if prompt_of(row)]


@torch.no_grad()
def sample(model: Any, run: Run) -> list[Rollout]:
    """One answer to each prompt. The random state is restored, so that the evaluation does not change the run."""
    options, tokenizer = run.options, run.tokenizer
    settings = options.model_dump(include=set(SAMPLING))
    sampling = Sampling(options.max_completion_length, eos_token_ids(model, tokenizer), **settings)
    size = options.per_device_train_batch_size * options.gradient_accumulation_steps
    ids = [run.template.prompt_ids(prompt_of(row), tools_of(row)) for row in asked(run)]
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(options.seed)
        starts = range(0, len(ids), size)
        return [answer for start in starts for answer in rollout(model, ids[start : start + size], 1, sampling)]
