"""PPO's value head."""

from __future__ import annotations

from statistics import median

from rlhf_core.diagnoses.finding import AGAIN, ERROR, WARNING, Diagnosis, Finding, mean, series
from rlhf_core.diagnoses.policy import rate_to_try
from rlhf_core.diagnoses.reading import Summary

STEPS = 40
UNEXPLAINED = -1.0
EXPLODED, LARGE = 20.0, 1.0  # times the loss of the first lines; a loss from which it counts


def unexplained(run: Summary) -> Finding | None:
    points = run.window("val/explained_variance", 20, 8)
    if run.step < STEPS or not points or median(value for _, value in points) >= UNEXPLAINED:
        return None
    return Finding([series("val/explained_variance", points)])


def exploding(run: Summary) -> Finding | None:
    before, now = run.window("loss/value_avg", 4, 2, early=True), run.window("loss/value_avg", 5, 3)
    if not before or not now or median(value for _, value in now) < max(LARGE, EXPLODED * mean(before)):
        return None
    lines = [series("loss/value_avg", before), series("loss/value_avg", now)]
    return Finding(lines, {"rate": rate_to_try(run, 0.1)})


DIAGNOSES = [
    Diagnosis(
        "value-unexplained", WARNING, ("ppo",), unexplained,
        "The value head predicts worse than a constant: its errors vary over twice as much as the returns, so "
        "advantages are mostly noise.",
        "Give it a model of its own (--value-model separate), more weight (--vf-coef), or longer to learn.",
        f"{AGAIN} --value-model separate",
        "from step 40 on: `val/explained_variance` < -1, median of 20 steps",
        "Huang et al., 2022 (37 implementation details of PPO); in our clean runs, medians of 20 steps: -0.46 to -0.04",
        unless=("nan", "value-loss-explodes", "kl-runaway"),
    ),
    Diagnosis(
        "value-loss-explodes", ERROR, ("ppo",), exploding,
        "The value loss explodes: rewards are on too large a scale for the value head, or the rate is too high.",
        "Bring the rewards to about 1 (a weight below 1, or --whiten-rewards), or use a smaller learning rate.",
        f"{AGAIN} --whiten-rewards",
        "`loss/value_avg` > 1 and > 20 times that of the first 4 steps, median of 5 steps",
        "Zheng et al., 2023 (https://arxiv.org/abs/2307.04964): scale and clip rewards; 5 times in our clean runs",
        unless=("nan", "kl-runaway"),
    ),
]  # fmt: skip
