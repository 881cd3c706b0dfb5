"""Preferences (dpo, orpo) and reward models: nothing learned, both answers forgotten, length learned instead."""

from __future__ import annotations

import math
from statistics import fmean

from rlhf_core.diagnoses.finding import (
    AGAIN,
    ERROR,
    PAIRS,
    WARNING,
    Diagnosis,
    Finding,
    change,
    correlation,
    mean,
    series,
)  # fmt: skip
from rlhf_core.diagnoses.policy import rate_to_try
from rlhf_core.diagnoses.reading import Summary

STEPS = 30
LN2 = math.log(2)  # the loss of a pair with margin 0
STUCK_LOSS, STUCK_MARGIN = 0.01, 0.02
CHANCE, CHANCE_STEPS = (0.4, 0.6), 50  # of the pairs ordered rightly
FALLEN, SURE = 1.5, 3.0  # times the log-probability at the start; standard errors
LENGTH, LEAST_PAIRS = 0.8, 100
SATURATED = 15.0  # difference of two scores: sigmoid(15) is 1 - 3e-7


def stuck(run: Summary) -> Finding | None:
    if run.option("loss_type", "sigmoid") != "sigmoid" or run.option("sft_weight", 0) or run.step < STEPS:
        return None
    loss, margins = run.window("loss", 10, 3), run.window("rewards/margins", 10, 3)
    if not loss or not margins or max(run.values("learning_rate"), default=1.0) <= 0:
        return None
    moved = abs(mean(loss) - LN2) > STUCK_LOSS or max(abs(value) for _, value in margins) > STUCK_MARGIN
    if moved or run.warms_up(STEPS):
        return None
    factor = min(1000.0, max(10.0, 0.1 / max(abs(mean(margins)), 1e-12)))
    return Finding([series("loss", loss), series("rewards/margins", margins)], {"rate": rate_to_try(run, factor)})


def _half_done(run: Summary) -> bool:
    return run.step >= max(CHANCE_STEPS, (run.max_steps or 0) / 2)


def contradict(run: Summary) -> Finding | None:
    """The policy moves, and orders no more pairs rightly than by chance."""
    if run.option("loss_type", "sigmoid") != "sigmoid" or not _half_done(run):
        return None
    loss, right = run.window("loss", 30, 5), run.window("rewards/accuracies", 30, 5)
    margins = [abs(pair.margin) for pair in run.late_pairs if pair.margin is not None]
    moved = fmean(margins) > 5 * STUCK_MARGIN if margins else bool(loss) and mean(loss) > LN2 + STUCK_LOSS
    if not loss or not right or mean(loss) < LN2 - STUCK_LOSS or not CHANCE[0] < mean(right) < CHANCE[1] or not moved:
        return None
    samples = [pair.as_sample() for pair in list(run.late_pairs)[-3:]]
    return Finding([series("loss", loss), series("rewards/accuracies", right)], samples=samples)


def chosen_falls(run: Summary) -> Finding | None:
    """A sum over tokens: in small batches it varies with the length of the answers, so that standard errors count."""
    before, now = run.window("logps/chosen", 5, 3, early=True), run.window("logps/chosen", 10, 3)
    if not before or not now or mean(before) >= 0 or now[0][0] <= before[-1][0]:
        return None
    falls = change([FALLEN * value for _, value in before], [value for _, value in now]) <= -SURE
    if not falls or max(value for _, value in now[-3:]) > FALLEN * mean(before):
        return None
    samples = [pair.as_sample() for pair in list(run.late_pairs)[-3:]]
    rejected = [series("logps/rejected", run.window("logps/rejected", 5, 3))]
    lines = [series("logps/chosen", before), series("logps/chosen", now), *(rejected if all(rejected) else [])]
    return Finding(lines, {"rate": rate_to_try(run, 0.1)}, samples)


def margins_from_length(run: Summary) -> Finding | None:
    pairs = [pair for pair in run.late_pairs if pair.margin is not None and pair.tokens[0] != pair.tokens[1]]
    if len(pairs) < LEAST_PAIRS or fmean(pair.margin or 0.0 for pair in pairs) <= STUCK_MARGIN:
        return None
    lengths = [float(pair.tokens[0] - pair.tokens[1]) for pair in pairs]
    found = correlation(lengths, [pair.margin or 0.0 for pair in pairs])
    if abs(found) < LENGTH:
        return None
    longer = fmean(length > 0 for length in lengths)
    line = f"r = {found:.2f} (n = {len(pairs)}, step {pairs[0].step}-{pairs[-1].step}); chosen longer: {longer:.0%}"
    return Finding([line], samples=[pair.as_sample() for pair in pairs[-3:]])


def at_chance(run: Summary) -> Finding | None:
    loss, right = run.window("loss", 20, 5), run.window("accuracy", 20, 5)
    if not _half_done(run) or not loss or not right:
        return None
    if mean(loss) < LN2 - STUCK_LOSS or not CHANCE[0] < mean(right) < CHANCE[1]:
        return None
    samples = [pair.as_sample() for pair in list(run.late_pairs)[-3:]]
    return Finding(
        [series("accuracy", right), series("loss", loss)], {"rate": rate_to_try(run, 10)}, samples
    )  # fmt: skip


def saturated(run: Summary) -> Finding | None:
    margin, right = run.window("margin", 10, 3), run.window("accuracy", 10, 3)
    if not margin or not right or mean(margin) < SATURATED or mean(right) < 0.9:
        return None
    return Finding([series("margin", margin), series("accuracy", right)], {"rate": rate_to_try(run, 0.1)})


DIAGNOSES = [
    Diagnosis(
        "preference-stuck", WARNING, ("dpo",), stuck,
        "The loss stays at 0.693, that of a model which prefers neither answer: the policy has not moved.",
        "Use a larger learning rate: adapters need about ten times the rate of full fine-tuning.",
        f"{AGAIN} --learning-rate {{rate}}",
        "from step 30 and 30 steps after warm-up on: `loss` within 0.01 of ln 2 over 10 steps, margins within 0.02",
        "Rafailov et al., 2023 (https://arxiv.org/abs/2305.18290), equation 7 at margin 0",
        unless=("nan", "loss-zero"),
    ),
    Diagnosis(
        "preferences-contradict", WARNING, ("dpo",), contradict,
        "The policy moves, and yet prefers the chosen answer no more often than by chance: the pairs contradict each "
        "other, or chosen and rejected are mixed up.",
        "Read some pairs; --label-smoothing helps where a known share of them is wrong.",
        "rlhf data inspect {data}",
        "from half of the run on: `loss` not below 0.683, `rewards/accuracies` in 0.4 to 0.6, 30 steps; margins > 0.1",
        "Chowdhury et al., 2024 (https://arxiv.org/abs/2403.00409): flipped pairs",
        unless=("nan", "loss-diverges", "preference-stuck", "chosen-falls"),
    ),
    Diagnosis(
        "chosen-falls", WARNING, PAIRS, chosen_falls,
        "The chosen answers become much less likely, too: the policy forgets both answers and writes others instead.",
        "Use a smaller learning rate, a larger --beta, or --sft-weight, which keeps the chosen answers likely (DPO).",
        f"{AGAIN} --learning-rate {{rate}}",
        "`logps/chosen` below 1.5 times that of the first 5 steps, mean of 10 steps, by 3 standard errors",
        "Razin et al., 2024 (https://arxiv.org/abs/2410.08847); Pal et al., 2024 (https://arxiv.org/abs/2402.13228)",
        unless=("nan", "loss-diverges"),
    ),
    Diagnosis(
        "margins-from-length", WARNING, (*PAIRS, "reward_model"), margins_from_length,
        "The difference in length explains the margins: what is learned is to tell long answers from short ones.",
        "Balance the lengths of chosen and rejected answers in the data.",
        "rlhf data stats {data}",
        "rank correlation of a pair's margin with its difference in tokens beyond 0.8, in 100 pairs or more",
        "Park et al., 2024 (https://arxiv.org/abs/2403.19159); Singhal et al., 2023 (https://arxiv.org/abs/2310.03716)",
        unless=("nan", "loss-diverges"),
    ),
    Diagnosis(
        "reward-model-at-chance", ERROR, ("reward_model",), at_chance,
        "The reward model orders pairs no better than by chance: it has learned nothing.",
        "Read some pairs, whether a person could tell; if so, use a larger learning rate.",
        f"{AGAIN} --learning-rate {{rate}}",
        "from step 50 and half of the run on: `loss` not below 0.683, `accuracy` in 0.4 to 0.6, 20 steps",
        "ln 2 is the loss of a coin; Wang et al., 2024 (https://arxiv.org/abs/2401.06080)",
        unless=("nan", "loss-diverges", "margins-from-length"),
    ),
    Diagnosis(
        "scores-saturated", WARNING, ("reward_model",), saturated,
        "Scores are so far apart that the loss has no gradient left: the reward model is overconfident, and what is "
        "trained with it sees only extremes.",
        "Train for fewer steps or with a smaller rate; --center-rewards-coefficient 0.01 holds scores near 0.",
        f"{AGAIN} --learning-rate {{rate}}",
        "`margin` > 15 over 10 steps (sigmoid(15) = 1 - 3e-7)",
        "Eisenstein et al., 2023 (https://arxiv.org/abs/2312.09244); our own: float32 rounds the rest away",
        unless=("margins-from-length",),
    ),
]  # fmt: skip
