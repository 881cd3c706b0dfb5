"""What a practitioner must know before training with a reward: one sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_core.reward_report.statistics import same

LENGTH = 0.8  # correlation with the length above which length may be all that is learned
ENOUGH = 20  # scores that a correlation needs to mean something
ERRORS = 0.2  # share of failing rows that stops a run, too
SLOW = 5.0  # seconds a batch


def warnings(name: str, result: Mapping[str, Any], *, own: bool) -> Iterator[str]:
    """`result` is one reward's, as `measuring.score` gives it; `own`: of answers that are the data's own."""
    rows = result["scored"] + result["not_applicable"] + result["errors"]
    compared, length = result["groups"]["compared"], result["length_correlation"]
    if result["errors"] > ERRORS * rows:
        yield f"{name} fails on {result['errors'] / rows:.0%} of the completions; over a fifth stops a training run."
    if not result["scored"] and result["errors"] < rows:
        yield f"{name} gave no score at all."
    elif result["scored"] > 1 and same(result["min"], result["max"]) and own:
        yield (
            f"{name} gives each of the data's own answers {result['mean']:g}. Whether it tells a model's answers "
            "apart, only completions show, such as a run's samples."
        )
    elif result["scored"] > 1 and same(result["min"], result["max"]):
        yield f"{name} gives every completion {result['mean']:g}: there is nothing to learn from it."
    elif compared and not result["groups"]["with_signal"]:
        yield (
            f"{name} scores all completions of a prompt alike, in each of {compared:,} groups: GRPO learns only from "
            "differences within a group."
        )
    if length is not None and abs(length) > LENGTH and result["scored"] >= ENOUGH:
        way = "longer" if length > 0 else "shorter"
        yield f"{name} follows the length ({length:+.2f}): a model can raise it by writing {way} answers."
    limits = result["range"]
    if limits and result["scored"] and (result["min"] < limits[0] or result["max"] > limits[1]):
        yield (
            f"{name} declares scores from {limits[0]:g} to {limits[1]:g}, and gave {result['min']:g} to "
            f"{result['max']:g}."
        )
    if result["seconds_per_batch"] > SLOW:
        yield (
            f"{name} is slow: about {result['seconds_per_batch']:.0f} s a training step of 64 completions, "
            f"{result['seconds_per_batch'] * 1000 / 3600:.1f} hours in 1,000 steps."
        )
