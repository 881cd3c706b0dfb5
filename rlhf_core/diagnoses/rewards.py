"""The rewards: hacked, at odds with each other or with what is held out, failing, slow."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean

from rlhf_core.diagnoses import texts
from rlhf_core.diagnoses.finding import (
    AGAIN,
    ERROR,
    SAMPLING,
    WARNING,
    Diagnosis,
    Finding,
    change,
    correlation,
    mean,
    number,
    series,
    spread,
)  # fmt: skip
from rlhf_core.diagnoses.reading import Answer, Summary

EXPLAINS = 0.8  # rank correlation
LONGER = 1.3  # times the length at the start
MANY, MORE = 3.0, 2.0  # of one thing in an answer; times as many as at the start
LEAST = 64  # answers, early and late
SURE, SURER = 3.0, 4.0  # standard errors
FALL = 0.2  # of a reward's standard deviation
FAILS, SLOW, SECONDS = 0.05, 0.5, 1.0  # share of the rows, of a step; seconds of a step


def _both(run: Summary, scored: Callable[[Answer], bool] = lambda answer: answer.total is not None):
    """(the first answers, the newest), of different steps; two empty lists for too few."""
    now = [answer for answer in run.late if scored(answer)][-2 * LEAST :]
    before = [answer for answer in run.early if scored(answer) and now and answer.step < now[0].step][: 2 * LEAST]
    return (before, now) if len(before) >= LEAST and len(now) >= LEAST else ([], [])


def _rises(before: Sequence[Answer], now: Sequence[Answer]) -> bool:
    return change([a.total or 0.0 for a in before], [a.total or 0.0 for a in now]) >= SURE


def _best(answers: Sequence[Answer]) -> list[dict]:
    return [answer.as_sample() for answer in sorted(answers, key=lambda answer: answer.total or 0.0)[-3:]]


def length_explains(run: Summary) -> Finding | None:
    before, now = _both(run)
    if not before or not _rises(before, now) or all(name.startswith("length") for name in run.weights or {"": 1}):
        return None
    size = [float(answer.tokens or len(answer.text)) for answer in (*before, *now)]
    found = correlation(size, [answer.total or 0.0 for answer in (*before, *now)])
    first, last = fmean(size[: len(before)]), fmean(size[len(before) :])
    grown = last > LONGER * first if found > 0 else first > LONGER * last
    if abs(found) < EXPLAINS or not grown:
        return None
    steps = f"step {before[0].step}-{now[-1].step}"
    line = f"length: {first:.0f} -> {last:.0f}, r = {found:.2f} with the reward (n = {len(size)}, {steps})"
    return Finding([line], samples=_best(now))


def feature_explains(run: Summary) -> Finding | None:
    before, now = _both(run)
    if not before or not _rises(before, now):
        return None
    first, last = ([texts.features(answer.text) for answer in answers] for answers in (before, now))
    totals = [answer.total or 0.0 for answer in (*before, *now)]
    sums = Counter[str](), Counter[str]()
    for total, counted in zip(sums, (first, last), strict=True):
        for one in counted:
            total.update(one)
    counts = {name: (sums[0][name] / len(before), many / len(now)) for name, many in sums[1].most_common(12)}
    grown = [name for name, (was, is_now) in counts.items() if is_now >= MANY and is_now >= MORE * was]
    found = {name: correlation([float(one[name]) for one in (*first, *last)], totals) for name in grown}
    name = max(found, key=lambda one: found[one], default="")
    if found.get(name, 0.0) < EXPLAINS:
        return None
    was, is_now = counts[name]
    steps = f"step {before[0].step}-{now[-1].step}"
    line = f"{name!r}: {was:.1f} -> {is_now:.1f} an answer, r = {found[name]:.2f} with the reward ({steps})"
    return Finding([line], samples=_best(now))


def other_falls(run: Summary) -> Finding | None:
    """One reward falls while the sum of all rises."""
    before, now = _both(run)
    names = {name for answer in now for name in answer.scores}
    if len(names) < 2 or not _rises(before, now):
        return None
    for name in sorted(names):
        was, is_now = ([a.scores[name] for a in answers if name in a.scores] for answers in (before, now))
        if change(was, is_now) > -SURER or fmean(was) - fmean(is_now) < FALL * spread(was):
            continue
        line = f"{name}: {number(fmean(was))} -> {number(fmean(is_now))} (step {before[0].step}-{now[-1].step})"
        totals = [fmean(a.total or 0.0 for a in answers) for answers in (before, now)]
        return Finding([line, f"reward: {number(totals[0])} -> {number(totals[1])}"], samples=_best(now))
    return None


def held_out_falls(run: Summary) -> Finding | None:
    """The reward rises in training while that of the held-out prompts falls, prompt by prompt."""
    if len(run.evaluations) < 2:
        return None
    scores = [[_total(run, row) for row in one["scores"]] for one in run.evaluations]
    both = [(a, b) for a, b in zip(*scores, strict=False) if a is not None and b is not None]
    differences = [b - a for a, b in both]
    rises = change(_logged(run, early=True), _logged(run, early=False)) >= SURE
    if len(differences) < 16 or not rises:
        return None
    error = spread(differences) / math.sqrt(len(differences) - 1)
    if fmean(differences) > -SURE * error or fmean(differences) >= 0:
        return None
    was, now = fmean(a for a, _ in both), fmean(b for _, b in both)
    line = f"held-out: {number(was)} -> {number(now)} (n = {len(both)}, step {run.evaluations[-1]['step']})"
    return Finding([line, series("reward", run.window("reward", 5))], samples=_best(list(run.late)[-LEAST:]))


def _logged(run: Summary, *, early: bool) -> list[float]:
    return [value for _, value in run.window("reward", 10, 5, early=early)]


def _total(run: Summary, row: object) -> float | None:
    if not isinstance(row, dict):
        return None
    found = [run.weights.get(name, 1.0) * score for name, score in row.items() if isinstance(score, int | float)]
    return sum(found) if found else None


def fails(run: Summary) -> Finding | None:
    for key in [key for key in run.newest[-1] if key.endswith("/error_rate")] if run.newest else []:
        points = run.window(key, 5)
        if not points or mean(points) < FAILS:
            continue
        failed = [answer.as_sample() for answer in run.late if answer.failed]
        return Finding([series(key, points)], samples=failed[-3:])
    return None


def slow(run: Summary) -> Finding | None:
    phases = {name: run.window(f"time/{name}", 5, 3) for name in ("sampling", "rewards", "learning")}
    if phases["rewards"]:
        step = sum(mean(points) for points in phases.values() if points)
        taken = mean(phases["rewards"])
    else:
        latencies = [
            run.window(key, 5, 3) for key in (run.newest[-1] if run.newest else {}) if key.endswith("/latency")
        ]
        steps = run.window("step_time", 5, 3)
        if not steps or not latencies:
            return None
        taken, step = sum(mean(points) for points in latencies if points), mean(steps)
    if taken < SECONDS or taken < SLOW * step:
        return None
    line = f"time/rewards: {taken:.1f} s of {step:.1f} s ({taken / step:.0%}, step {run.step})"
    return Finding([line])


DIAGNOSES = [
    Diagnosis(
        "reward-fails", ERROR, SAMPLING, fails,
        "A reward fails on part of the answers, which then count neither for nor against them.",
        "Read the errors in reward_errors.jsonl, and try the reward on the run's answers.",
        "rlhf score {run}",
        "`rewards/NAME/error_rate` of 0.05 or more, mean of 5 steps",
        "our own: above 0.2 over 20 steps the run stops; a clean run has none",
    ),
    Diagnosis(
        "reward-slow", WARNING, SAMPLING, slow,
        "The rewards take most of each step: the model waits for them.",
        "Score rows at the same time where the reward mostly waits (concurrent=true), or make it faster.",
        "rlhf score {run} --limit 64",
        "`time/rewards` of 1 s or more and over half of a step, mean of 5 steps",
        "our own: 0.1 % of a step in the clean runs",
    ),
    Diagnosis(
        "length-explains-reward", WARNING, SAMPLING, length_explains,
        "Length explains the reward: it rises as answers become longer (or shorter), and with little else.",
        "Read the best answers: if they are padded, weigh length against it, or normalize the reward by it.",
        f"{AGAIN} --reward length",
        "rank correlation of tokens and reward beyond 0.8, length up or down by 30 %, reward up by 3 standard errors",
        "Singhal et al., 2023 (https://arxiv.org/abs/2310.03716); rewardspy, length drift",
        unless=("limit-too-short", "feature-explains-reward", "repetition"),
    ),
    Diagnosis(
        "feature-explains-reward", WARNING, SAMPLING, feature_explains,
        "One word or kind of character explains the reward: answers have ever more of it. The reward is being hacked.",
        "Read the best answers, and let the reward count it once, or judge the whole answer.",
        "rlhf score {run}",
        "3 or more an answer, twice as many as at the start, rank correlation with the reward of 0.8 or more",
        "Skalse et al., 2022 (https://arxiv.org/abs/2209.13085); Gao et al., 2022 (https://arxiv.org/abs/2210.10760)",
    ),
    Diagnosis(
        "other-reward-falls", WARNING, SAMPLING, other_falls,
        "One reward falls while the sum of all rises: it is given up for the others.",
        "Give it more weight, or look at whether the rewards contradict each other.",
        "rlhf score {run}",
        "down by 4 standard errors and 0.2 of its standard deviation, the sum up by 3 standard errors",
        "Gao et al., 2022 (https://arxiv.org/abs/2210.10760): the proxy rises, the true reward falls",
        unless=("feature-explains-reward", "length-explains-reward"),
    ),
    Diagnosis(
        "held-out-falls", ERROR, SAMPLING, held_out_falls,
        "The reward rises on the training prompts and falls on the held-out ones: the policy learns these prompts.",
        "Take an earlier checkpoint, use more prompts or fewer steps.",
        f"{AGAIN} --keep-best reward",
        "held-out reward down by 3 standard errors, prompt by prompt (16 or more), training reward up by 3",
        "Gao et al., 2022 (https://arxiv.org/abs/2210.10760)",
    ),
]  # fmt: skip
