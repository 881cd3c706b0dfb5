"""Which evaluation of a run is its best: the metrics that it may be told by, and their directions. Needs no torch.

rlhf run --eval-steps 20 --keep-best reward --early-stop 3
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rlhf_core.errors import UserError, did_you_mean
from rlhf_core.method import Method, TrainingOptions
from rlhf_core.models.checkpoints import Best

REWARD, FINISHED = "reward", "finished"
# Short names, and what they are called by the trainers that measure it.
ALSO = {"accuracy": ("rewards/accuracies", "mean_token_accuracy"), "margin": ("rewards/margins",)}

History = Mapping[int, Mapping[str, float | None]]  # the values of each evaluation, by its step


def check(options: TrainingOptions, method: Method, rewards: Sequence[str], *, rows: int, prompts: bool) -> None:
    """Raise `UserError` if evaluations between steps have nothing to evaluate, or don't measure `--keep-best`.

    `rows` are held out, of which some have `prompts` or none.
    """
    if options.eval_steps is None:
        return
    if not rows:
        raise UserError(
            f"--eval-steps {options.eval_steps} needs held-out rows, and there are none: give --num-eval-prompts a "
            "number above 0 and ten rows of data for each, or --eval-data FILE"
        )
    answered = [REWARD, *rewards, FINISHED] if rewards else [FINISHED]
    names = [*measured(method), *(answered if method.generates and prompts else [])]
    if not names:
        raise UserError(f"--eval-steps {options.eval_steps}: no held-out row has a prompt that could be answered")
    if options.keep_best is not None and name_of(options.keep_best, names) is None:
        raise UserError(
            f"--keep-best {options.keep_best}: this run does not measure that.{did_you_mean(options.keep_best, names)} "
            f"It measures {', '.join(names)}"
        )


def measured(method: Method) -> list[str]:
    """What the method's trainer measures on held-out rows."""
    return [] if method.data == "prompts" else ["loss", *method.measures]


def name_of(metric: str, names: Collection[str]) -> str | None:
    """The name among `names` that `metric` means; None if there is none."""
    return next((name for name in (metric, *ALSO.get(metric, ())) if name in names), None)


def find(history: History, metric: str, steps: Iterable[int], rewards: Collection[str] = ()) -> Best | None:
    """The first evaluation, among those after `steps`, than which none has a better value: a higher one, or a lower
    one of a loss. `rewards` are names of the run's rewards, of which one may be called weight_loss.
    """
    lower = metric.endswith("loss") and metric not in rewards
    found: Best | None = None
    for step in sorted(steps):
        values = history.get(step, {})
        value = values.get(name_of(metric, values) or "")
        if (
            value is not None
            and math.isfinite(value)
            and (found is None or (value < found.value if lower else value > found.value))
        ):
            found = Best(step=step, metric=metric, value=float(value))
    return found


def without_better(history: History, best: Best | None) -> int:
    """How many evaluations came after the best one; all after training began, if none has a value."""
    return sum(step > (best.step if best else 0) for step in history)


def values_of(line: Mapping[str, Any]) -> dict[str, float | None]:
    """The values of a line of evaluations.jsonl by the names that `--keep-best` takes."""
    return {
        **(line.get("rewards") or {}),
        **{name: line[name] for name in (REWARD, FINISHED) if line.get(name) is not None},
        **(line.get("metrics") or {}),
    }
