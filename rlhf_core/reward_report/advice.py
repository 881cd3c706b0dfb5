"""Warnings before training with a reward, one sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_core.reward_report.statistics import same

LENGTH = 0.8  # correlation with the length above which a model may learn nothing else
ENOUGH = 20  # scores that a meaningful correlation needs
ERRORS = 0.2  # share of failed rows, which also stops a run
SLOW = 5.0  # seconds a batch


def warnings(name: str, result: Mapping[str, Any], *, own: bool) -> Iterator[str]:
    """`result` is one reward's, from `measuring.score`; `own`: the answers are the data's, not a model's."""
    scored, errors, low, high = (result[key] for key in ("scored", "errors", "min", "max"))
    rows = scored + result["not_applicable"] + errors
    groups, length, limits = result["groups"], result["length_correlation"], result["range"]
    if errors > ERRORS * rows:
        yield f"{name} fails on {errors / rows:.0%} of the completions; over a fifth stops a training run."
    if not scored and errors < rows:
        yield f"{name} gave no score at all."
    elif scored > 1 and same(low, high):
        yield (
            f"{name} gives each of the data's own answers {result['mean']:g}. Score a model's completions, such as a "
            "run's samples, to see whether it tells them apart."
            if own
            else f"{name} gives every completion {result['mean']:g}: there is nothing to learn from it."
        )
    elif groups["compared"] and not groups["with_signal"]:
        yield (
            f"{name} scores all completions of a prompt alike, in each of {groups['compared']:,} groups: GRPO learns "
            "only from differences within a group."
        )
    if length is not None and abs(length) > LENGTH and scored >= ENOUGH:
        way = "longer" if length > 0 else "shorter"
        yield f"{name} follows the length ({length:+.2f}): a model can raise it by writing {way} answers."
    if limits and scored and (low < limits[0] or high > limits[1]):
        yield f"{name} declares scores from {limits[0]:g} to {limits[1]:g}, and gave {low:g} to {high:g}."
    if (seconds := result["seconds_per_batch"]) > SLOW:
        yield (
            f"{name} is slow: about {seconds:.0f} s a training step of 64 completions, "
            f"{seconds * 1000 / 3600:.1f} hours in 1,000 steps."
        )
