"""Answers to held-out prompts, sampled before and after training with one seed, and what the rewards say of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from rlhf_core.data.loading import prompt_of
from rlhf_core.prefix import Rollout, Sampling, eos_token_ids, rollout
from rlhf_core.rewards.runtime import Batch

if TYPE_CHECKING:
    from rlhf_core.training.run import Run


# What says whether a method learned; all else that a trainer measures is in metrics.jsonl.
METRICS = (
    "loss",
    "accuracy",
    "margin",
    "mean_token_accuracy",
    "rewards/accuracies",
    "rewards/margins",
    "log_odds_chosen",
)


@dataclass
class Evaluation:
    """Means over the held-out rows. `metrics` are the trainer's, without `eval_`; of the answers `length` is in tokens
    and `finished` the share that ended before the limit.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    rewards: dict[str, float | None] = field(default_factory=dict)
    length: float | None = None
    finished: float | None = None
    prompts: list[Any] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    scores: list[dict[str, float | None]] = field(default_factory=list)


class FirstLook(TrainerCallback):
    """Calls `look` when training begins. Before that, measuring would keep the trainer from preparing its model for
    several processes.
    """

    def __init__(self, look: Callable[[], None]) -> None:
        self.look = look

    def on_train_begin(self, args, state, control, **kwargs):
        self.look()


def evaluate(trainer: Any, run: Run, *, generates: bool) -> Evaluation:
    """What the trainer measures on its held-out rows, if it has any, and answers to their prompts if it `generates`.

    Every process takes part in measuring; the first one answers.
    """
    result = Evaluation()
    if trainer.eval_dataset is not None:
        measured = trainer.evaluate()
        names = {name.removeprefix("eval_"): name for name in measured}
        result.metrics = {name: measured[names[name]] for name in METRICS if name in names}
    if generates and trainer.is_world_process_zero():
        _answer(result, run.policy or trainer.accelerator.unwrap_model(trainer.model), run)
    return result


def _answer(result: Evaluation, model: Any, run: Run) -> None:
    """Answer the held-out prompts once each, as in training, and score the answers."""
    prompts = [prompt_of(row) for row in run.held_out]
    ids, finished = sample(model, run.tokenizer, prompts, run)
    texts = [run.rewards.decode(answer) for answer in ids]
    keys = [key for key in run.held_out[0] if key not in ("prompt", "messages", "chosen", "rejected")]
    columns = {key: [row.get(key) for row in run.held_out] for key in keys}
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    scored = run.rewards.evaluate(Batch(prompts, messages, ids, columns))
    result.rewards = {name: mean([s for s in column.scores if s is not None]) for name, column in scored.items()}
    result.length, result.finished = mean([len(answer) for answer in ids]), mean(finished)
    result.prompts, result.answers = prompts, texts
    result.scores = [{name: column.scores[i] for name, column in scored.items()} for i in range(len(texts))]


@torch.no_grad()
def sample(model: Any, tokenizer: Any, prompts: Sequence[Any], run: Run) -> tuple[list[list[int]], list[bool]]:
    """One answer to each prompt: (token ids without padding, whether each ended by itself).

    The random state is put back afterwards, so that looking does not change the run.
    """
    options = run.options
    sampling = Sampling(
        options.max_completion_length, eos_token_ids(model, tokenizer), options.temperature, options.top_p
    )
    size = options.per_device_train_batch_size * options.gradient_accumulation_steps
    ids = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False) for p in prompts]
    rollouts: list[Rollout] = []
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(options.seed)
        for start in range(0, len(ids), size):
            rollouts += rollout(model, ids[start : start + size], 1, sampling)
    return [one.completion for one in rollouts], [one.finished for one in rollouts]


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
