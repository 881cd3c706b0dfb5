"""What can go wrong in any run: no numbers, losses that mean nothing, memory, the order of the data."""

from __future__ import annotations

from statistics import linear_regression, median

from rlhf_core.diagnoses.finding import (
    AGAIN,
    ALL,
    ERROR,
    SAMPLING,
    WARNING,
    Diagnosis,
    Finding,
    correlation,
    mean,
    series,
)
from rlhf_core.diagnoses.policy import rate_to_try
from rlhf_core.diagnoses.reading import Summary

SUPERVISED = ("sft", "dpo", "orpo", "reward_model")
SPIKE, LARGE, SPIKES = 10.0, 10.0, 3  # times the median; a norm from which it counts; in the newest 20 lines
HALVED = 16  # times, from 2^16 to 1
ZERO, ZERO_STEPS = 1e-4, 10
DIVERGED, MORE = 1.5, 0.5  # times the loss at the start; and as much more
PROMPTS, AGAIN_AND_AGAIN = 64, 0.25  # answered prompts; share of them that are different ones
MEMORY_LINES, STEADY, OURS = 20, -0.95, 0.5  # rank correlation; share of the fall that this run takes


def no_number(run: Summary) -> Finding | None:
    """`null` in metrics.jsonl, NaN in trainer_state.json. Rewards have it where none applies."""
    line = run.newest[-1] if run.newest else {}
    seen = {"loss": line, "kl": line, "grad_norm": line if _no_gradient(run) else {}}
    wrong = [key for key, where in seen.items() if key in where and not _finite(line[key])]
    return Finding([f"{', '.join(wrong)}: NaN (step {run.step})"], {"rate": rate_to_try(run, 0.1)}) if wrong else None


def _no_gradient(run: Summary) -> bool:
    """In float16 the gradients' scale, 2^16 at first, is halved until none overflows: those steps are no fault. Where
    the type is not known, it may be that.
    """
    scaled = str(run.option("dtype", "float16")) == "float16"
    steps, lines = 0, 0
    for line in reversed(run.newest):
        if "grad_norm" not in line or _finite(line["grad_norm"]):
            break
        steps, lines = steps + line["step"] - line["from"], lines + 1
    return lines > 0 if not scaled else steps > HALVED and lines > 1


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < float("inf")


def spikes(run: Summary) -> Finding | None:
    points = run.window("grad_norm", 20, 20)
    usual = median(value for _, value in points) if points and not run.ended else 0.0
    high = [(step, value) for step, value in points if value > max(LARGE, SPIKE * usual)]
    if not points or run.ended or len(high) < SPIKES:
        return None
    return Finding([series("grad_norm", high), f"median: {usual:.3g}"], {"rate": rate_to_try(run, 0.3)})


def loss_zero(run: Summary) -> Finding | None:
    loss, gradient = run.window("loss", ZERO_STEPS, 3), run.window("grad_norm", ZERO_STEPS, 3)
    if not loss or run.step < ZERO_STEPS:
        return None
    if run.method == "grpo":
        wrong = bool(gradient) and all(value == 0 for _, value in (*loss, *gradient))
    else:
        saturates = run.option("loss_type", "sigmoid") == "hinge"  # whose loss is 0 where it is done
        wrong = not saturates and all(abs(value) < ZERO for _, value in loss)
    return Finding([series("loss", loss), *([series("grad_norm", gradient)] if gradient else [])]) if wrong else None


def diverges(run: Summary) -> Finding | None:
    before, now = run.window("loss", 1, 3, early=True), run.window("loss", 10, 3)
    if not before or not now or now[-3][0] <= before[-1][0]:
        return None
    usual = median(value for _, value in before)
    least = min(max(DIVERGED * usual, usual + MORE), 1e9)
    if min(value for _, value in now[-3:]) < least or mean(now) < least:
        return None
    return Finding([series("loss", before), series("loss", now)], {"rate": rate_to_try(run, 0.1)})


def same_rows(run: Summary) -> Finding | None:
    if run.rows is None:
        return None
    asked: list[int] = [row for _, row in dict.fromkeys((answer.step, answer.row) for answer in run.late)]
    asked = asked or [pair.row for pair in run.late_pairs]
    different = len(set(asked))
    if len(asked) < PROMPTS or different > AGAIN_AND_AGAIN * min(len(asked), run.rows):
        return None
    line = f"{different} / {len(asked)} (rows: {run.rows:,}; step {run.late[0].step if run.late else 0}-{run.step})"
    return Finding([line], samples=[answer.as_sample() for answer in list(run.late)[-3:]])


def memory_soon(run: Summary) -> Finding | None:
    """Free memory falls steadily, by what this run takes, and would be gone before its end."""
    free, peak = run.window("memory/free_gb", 1, MEMORY_LINES), run.window("memory/peak_gb", 1, MEMORY_LINES)
    if len(free) < MEMORY_LINES or len(peak) < MEMORY_LINES or run.max_steps is None:
        return None
    steps, values = [float(step) for step, _ in free], [value for _, value in free]
    slope, _ = linear_regression(steps, values)  # GB a step
    ours = peak[-1][1] - peak[0][1] >= OURS * (values[0] - values[-1])  # others may take it, too
    if correlation(steps, values) > STEADY or slope >= 0 or not ours:
        return None
    left = values[-1] / -slope
    if run.step + left > run.max_steps:
        return None
    lines = [series("memory/free_gb", free), series("memory/peak_gb", peak), f"0 GB: step {run.step + left:.0f}"]
    return Finding(lines)


_AXOLOTL = "axolotl, training_stability"

FIRST = [
    Diagnosis(
        "nan", ERROR, ALL, no_number,
        "The loss or the gradient is no number (NaN or infinite): from here on nothing can be learned.",
        "Use a smaller learning rate, and bfloat16 or float32 where it is float16.",
        f"{AGAIN} --learning-rate {{rate}}",
        "`loss`, `grad_norm` or `kl` is NaN or infinite, once; in float16 `grad_norm` in more than 16 steps in a row",
        f"{_AXOLOTL}, NaN and Inf; PyTorch, GradScaler: its scale of 2^16 is halved 16 times",
    ),
]  # fmt: skip
DIAGNOSES = [
    Diagnosis(
        "loss-diverges", ERROR, SUPERVISED, diverges,
        "The loss is far above where it began: steps are too large, and the model forgets what it knew.",
        "Use a smaller learning rate, or more steps of warm-up.",
        f"{AGAIN} --learning-rate {{rate}}",
        "`loss` above 1.5 times the median of the first 3 lines, and 0.5 more: mean of 10 steps, and each of 3",
        f"{_AXOLOTL}, loss spikes",
        unless=("nan",),
    ),
    Diagnosis(
        "loss-zero", ERROR, (*SUPERVISED, "grpo"), loss_zero,
        "The loss is 0, and so is what can be learned: the answers are known by heart, or nothing of them is learned.",
        "Look at what is learned of each row, and whether all answers are the same.",
        "rlhf data inspect {data}",
        "`loss` within 0.0001 of 0 over 10 steps; in GRPO `loss` and `grad_norm` exactly 0 although scores differ",
        "TRL, issues 3452 and 3857; ms-swift, issue 4547",
        unless=(
            "nan", "scores-tied", "reward-always-zero", "reward-always-full", "answers-identical", "limit-too-short",
            "reward-not-applicable", "reward-fails", "end-token-not-learned", "answers-cut", "scores-saturated",
            "margins-from-length",
        ),
    ),
    Diagnosis(
        "gradient-spikes", WARNING, ALL, spikes,
        "The gradient norm jumps again and again to many times its usual size.",
        "Use a smaller learning rate or larger batches, and look at the rows of those steps.",
        f"{AGAIN} --learning-rate {{rate}}",
        "`grad_norm` above 10 and above 10 times its median, in 3 of the newest 20 lines",
        f"{_AXOLOTL} (GRPO: > 10 is unstable)",
        unless=("nan", "loss-diverges", "kl-runaway", "value-loss-explodes"),
    ),
    Diagnosis(
        "same-rows", WARNING, (*SAMPLING, "dpo", "orpo", "reward_model"), same_rows,
        "The same few rows come again and again, although the data has many more.",
        "Look for duplicates in the data, and for sources with too much weight.",
        "rlhf data stats {data}",
        "of the newest 64 prompts or more, a quarter or fewer are different ones, and the data has four times as many",
        "Lee et al., 2022 (https://arxiv.org/abs/2107.06499): duplicates in training data",
    ),
    Diagnosis(
        "memory-soon", WARNING, ALL, memory_soon,
        "Free memory shrinks steadily and will be gone before the run ends.",
        "Look for a reward or a callback that keeps what it was given; save checkpoints more often meanwhile.",
        f"{AGAIN} --save-steps 20",
        "`memory/free_gb` falls over 20 lines, `memory/peak_gb` rises half as much or more, and 0 comes before the end",
        "our own: no trend in the clean runs",
    ),
]  # fmt: skip
