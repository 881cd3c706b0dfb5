"""How the policy moves: not at all, away from the reference, into one answer, into a loop."""

from __future__ import annotations

import math
from statistics import fmean, median

from rlhf_core.diagnoses.finding import (
    AGAIN,
    ERROR,
    INFO,
    SAMPLING,
    WARNING,
    Diagnosis,
    Finding,
    change,
    mean,
    series,
    spread,
)  # fmt: skip
from rlhf_core.diagnoses.reading import Summary

STILL_STEPS, STILL_KL, MOVED_KL = 50, 1e-5, 1e-3  # steps; nats a token
AWAY_KL = 2.0  # nats a token
COLLAPSED, ALIVE = 0.01, 0.05  # nats a token
LOOPING, BEFORE = 0.5, 0.2  # share of the answers, now and at the start
ANSWERS = 64
CLIPPED = 0.3  # share of the tokens
APART, RATIOS = 1.0, (0.5, 2.0)  # nats a token; importance ratios


def _entropy_key(run: Summary) -> str:
    return "policy/entropy_avg" if run.method == "ppo" else "entropy"


def rate_to_try(run: Summary, factor: float) -> str:
    """The run's peak rate times `factor`, in one digit."""
    given = run.option("learning_rate")
    known = isinstance(given, int | float) and 0 < given < 1e9  # a configuration may have been edited since
    return f"{(given if known else _last_rate(run)) * factor:.0e}".replace("e-0", "e-")


def _last_rate(run: Summary) -> float:
    return max(run.values("learning_rate"), default=1e-6)


def still(run: Summary) -> list[tuple[int, float]]:
    """The KL of a policy that has not moved although there was something to learn; [] otherwise."""
    points = run.window("kl", STILL_STEPS, 5) if run.step >= STILL_STEPS and not run.warms_up(STILL_STEPS) else []
    ties = run.values("frac_reward_zero_std")
    learns = (not ties or fmean(ties) < 0.8) and max(run.values("learning_rate"), default=1.0) > 0
    rises = change([v for _, v in run.window("reward", 10, 5, early=True)], [v for _, v in run.window("reward", 10, 5)])
    moved = not points or median(abs(value) for _, value in points[len(points) // 2 :]) >= STILL_KL
    return points if learns and not moved and rises < 2 else []


def _rounded(run: Summary) -> bool:
    return str(run.option("dtype")) in ("bfloat16", "float16") and run.option("lora") is not True


def policy_still(run: Summary) -> Finding | None:
    points = still(run)
    if not points or _rounded(run):
        return None
    # KL grows with the square of the rate.
    factor = min(1000.0, max(10.0, math.sqrt(MOVED_KL / max(abs(mean(points)), 1e-12))))
    reward = [series("reward", run.window("reward", 10))] if run.window("reward", 10) else []
    return Finding([series("kl", points), *reward], {"rate": rate_to_try(run, factor)})


def steps_rounded(run: Summary) -> Finding | None:
    points = still(run)
    if not points or not _rounded(run):
        return None
    return Finding([series("kl", points), f"dtype: {run.option('dtype')}"])


def away(run: Summary) -> Finding | None:
    """By the median: a single token can make the estimate of one step very large."""
    points = run.window("kl", 5, 3)
    if not points or median(value for _, value in points) <= AWAY_KL or points[-1][1] <= AWAY_KL / 2:
        return None
    return Finding([series("kl", points)], {"rate": rate_to_try(run, 0.1)}, _last(run))


def negative(run: Summary) -> Finding | None:
    for key, least in (("kl", 0.02), ("objective/kl", 0.5)):
        points = run.window(key, 10, 5)
        values = [value for _, value in points]
        error = spread(values) / math.sqrt(max(1, len(values) - 1))
        if points and mean(points) < -max(least, 3 * error):
            return Finding([series(key, points)], samples=_last(run))
    return None


def collapsed(run: Summary) -> Finding | None:
    key = _entropy_key(run)
    before, now = run.window(key, 3, 3, early=True), run.window(key, 5, 5)
    if not before or not now or mean(before) < ALIVE or mean(now) >= COLLAPSED:
        return None
    return Finding([series(key, before), series(key, now)], {"rate": rate_to_try(run, 0.1)}, _last(run))


def repetition(run: Summary) -> Finding | None:
    newest = list(run.late)[-ANSWERS:]
    if len(run.early) < ANSWERS or len(newest) < ANSWERS or newest[0].step <= run.early[ANSWERS - 1].step:
        return None
    before = fmean(answer.loops for answer in run.early[:ANSWERS])
    now = [answer for answer in newest if answer.loops]
    if before >= BEFORE or len(now) < LOOPING * len(newest):
        return None
    line = f"loops: {before:.0%} -> {len(now) / len(newest):.0%} (step {newest[0].step}-{newest[-1].step})"
    return Finding([line], {"rate": rate_to_try(run, 0.1)}, [answer.as_sample() for answer in now[-3:]])


def clip_fraction(run: Summary) -> Finding | None:
    for key in ("policy/clipfrac_avg", "clip_ratio/region_mean"):
        points = run.window(key, 10, 5)
        if points and mean(points) > CLIPPED:
            return Finding([series(key, points)], {"rate": rate_to_try(run, 0.1)})
    return None


def apart(run: Summary) -> Finding | None:
    difference = run.window("sampling/sampling_logp_difference/mean", 5, 3)
    ratio = run.window("sampling/importance_sampling_ratio/mean", 5, 3)
    found = [series("sampling/sampling_logp_difference/mean", difference)] if _beyond(difference, 0, APART) else []
    found += [series("sampling/importance_sampling_ratio/mean", ratio)] if _beyond(ratio, *RATIOS) else []
    return Finding(found) if found else None


def _beyond(points: list[tuple[int, float]], low: float, high: float) -> bool:
    return bool(points) and not low <= mean(points) <= high


def zero_on_policy(run: Summary) -> Finding | None:
    """A loss about 0 that is right: with one step for each batch of answers, every ratio is 1, and what is left is the
    mean of the advantages, which is 0.
    """
    loss, gradient = run.window("loss", 10, 5), run.window("grad_norm", 10, 5)
    if run.option("num_iterations", 1) != 1 or not loss or not gradient:
        return None
    if max(abs(value) for _, value in loss) > 0.05 or min(value for _, value in gradient) <= 0:
        return None
    return Finding([series("loss", loss), series("grad_norm", gradient)])


def _last(run: Summary) -> list[dict]:
    return [answer.as_sample() for answer in list(run.late)[-3:]]


_AXOLOTL = "axolotl, training_stability"

DIAGNOSES = [
    Diagnosis(
        "kl-runaway", ERROR, SAMPLING, away,
        "The policy runs away from the model that it started from, and soon writes anything that the reward likes, or "
        "nothing that makes sense.",
        "Use a smaller learning rate; a larger weight of the KL penalty (--beta, --kl-coef) holds it back, too.",
        f"{AGAIN} --learning-rate {{rate}}",
        "`kl` > 2 nats a token, median of 5 steps", f"{_AXOLOTL} (`kl` > 2.0); 0.1 at most in our clean runs",
        unless=("nan", "value-loss-explodes"),
    ),
    Diagnosis(
        "kl-negative", ERROR, SAMPLING, negative,
        "The estimated KL divergence is negative, which no true one is: answers are not sampled from the distribution "
        "whose probabilities are computed.",
        "Sample without what reshapes the distribution: no repetition penalty, top-k, top-p or min-p.",
        f"{AGAIN} --repetition-penalty 1 --top-k 0 --top-p 1 --min-p 0",
        "`kl` < -0.02 (or `objective/kl` < -0.5), mean of 10 steps, by 3 standard errors",
        "TRL, PPO: objective/kl; Huang et al., 2023 (the N implementation details of RLHF with PPO)",
        unless=("sampling-mismatch",),
    ),
    Diagnosis(
        "policy-still", WARNING, SAMPLING, policy_still,
        "The policy has not moved: the KL divergence is about 0 and the reward is flat, although scores differ.",
        "Use a larger learning rate: adapters need about ten times the rate of full fine-tuning.",
        f"{AGAIN} --learning-rate {{rate}}",
        "`kl` < 1e-5, median of the newer half of 50 steps after warm-up; reward up by less than 2 standard errors",
        "Schulman et al., 2025 (LoRA without regret): ten times the rate; our own: 1e-5 is 0.5 % of a probability",
        unless=("scores-tied", "reward-always-zero", "reward-always-full", "answers-identical", "limit-too-short"),
    ),
    Diagnosis(
        "steps-rounded-away", WARNING, SAMPLING, steps_rounded,
        "The policy has not moved, and its weights are trained in half precision, with too few digits for such "
        "small steps.",
        "Train weights in float32, or an adapter, which is float32 always.",
        f"{AGAIN} --dtype float32",
        "as policy-still, with all weights trained in bfloat16 or float16",
        "Zamirai et al., 2020 (https://arxiv.org/abs/2010.06192): updates that round to nothing",
        unless=("scores-tied", "reward-always-zero", "reward-always-full", "answers-identical", "limit-too-short"),
    ),
    Diagnosis(
        "entropy-collapse", ERROR, SAMPLING, collapsed,
        "The policy has become certain of every token, so that all answers to a prompt become the same and learning "
        "ends.",
        "Use a smaller learning rate, or hold it back by the KL penalty, from a checkpoint before.",
        f"{AGAIN} --learning-rate {{rate}}",
        "entropy < 0.01 nats a token over 5 steps, after 0.05 or more in the first 3",
        f"{_AXOLOTL} (< 0.01); DAPO (https://arxiv.org/abs/2503.14476)",
        unless=("nan", "kl-runaway", "repetition"),
    ),
    Diagnosis(
        "repetition", ERROR, SAMPLING, repetition,
        "Answers have begun to go round in a loop, which they did not at the start.",
        "Look at what the reward sees in them, and use a smaller learning rate from a checkpoint before.",
        f"{AGAIN} --learning-rate {{rate}}",
        "half of the newest 64 answers repeat 60 % of their second half, under 20 % of the first 64 did",
        "Holtzman et al., 2020 (https://arxiv.org/abs/1904.09751); 0.2 % in our clean runs",
        unless=("feature-explains-reward", "length-explains-reward", "kl-runaway"),
    ),
    Diagnosis(
        "clip-fraction", WARNING, SAMPLING, clip_fraction,
        "A large part of what is learned is clipped: steps on one batch of answers change too much.",
        "Use a smaller learning rate, or fewer steps for each batch of answers.",
        f"{AGAIN} --learning-rate {{rate}}",
        "`policy/clipfrac_avg` or `clip_ratio/region_mean` > 0.3, mean of 10 steps", f"{_AXOLOTL} (> 0.3)",
        unless=("nan", "kl-runaway", "entropy-collapse"),
    ),
    Diagnosis(
        "sampling-mismatch", ERROR, SAMPLING, apart,
        "Sampling and training disagree on the probabilities of the same tokens: answers come from another policy than "
        "the one that is trained.",
        "Sample with the engine that trains, and without a repetition penalty; with vLLM, in the same precision.",
        f"{AGAIN} --rollouts shared --repetition-penalty 1",
        "`sampling/sampling_logp_difference/mean` > 1, or `importance_sampling_ratio/mean` outside 0.5 to 2, 5 steps",
        f"{_AXOLOTL} (> 1.0); TRL, GRPO: importance sampling",
    ),
    Diagnosis(
        "loss-zero-on-policy", INFO, ("grpo",), zero_on_policy,
        "The loss is about 0, and that is no fault: with one step for each batch of answers it is the mean of the "
        "advantages, and the gradient is what counts.",
        "Watch the reward instead.",
        "tensorboard --logdir {run}/tensorboard",
        "loss within 0.05 of 0 and a gradient above 0, 10 steps, with one iteration",
        "TRL, GRPO: why the loss begins at 0 (issues 2703, 3452, 3857)",
        unless=("scores-tied", "reward-always-zero", "reward-always-full", "answers-identical"),
    ),
]  # fmt: skip
