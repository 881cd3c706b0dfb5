"""Measures of preference pairs. Lengths are in characters, so that they need no tokenizer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean, variance
from typing import Any

from rlhf_core.data_report.texts import content, leaked
from rlhf_core.formatter import Messages

ENOUGH = 20  # pairs, before anything is concluded from their lengths
LARGE = 0.8  # Cohen's word for such a d (Statistical Power Analysis for the Behavioral Sciences, 1988)
MOST = 0.75  # share of pairs in which the same side is longer


def cohens_d(chosen: list[int], rejected: list[int]) -> float | None:
    """The difference of the means in units of the pooled standard deviation, of two lists of one length; None where
    that is zero, or with fewer than two.
    """
    if len(chosen) < 2:
        return None
    pooled = math.sqrt((variance(chosen) + variance(rejected)) / 2)
    return (fmean(chosen) - fmean(rejected)) / pooled if pooled else None


@dataclass
class Pairs:
    """What is counted of pairs, and the location of the first of each kind."""

    chosen: list[int] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, location: str, prompt: Messages, chosen: Messages, rejected: Messages) -> None:
        good, bad = content(chosen).strip(), content(rejected).strip()
        self.chosen.append(len(good))
        self.rejected.append(len(bad))
        found = {
            "identical": chosen == rejected or (good == bad and good != ""),
            "empty": not (good and bad) and not any(turn.get("tool_calls") for turn in (*chosen, *rejected)),
            "prompt_in_chosen": leaked(prompt, good),
            "prompt_in_rejected": leaked(prompt, bad),
        }
        for name, there in found.items():
            self.counts[name] = self.counts.get(name, 0) + there
            if there:
                self.first.setdefault(name, location)

    def to_dict(self) -> dict[str, Any]:
        both = list(zip(self.chosen, self.rejected, strict=True))
        longer, shorter = sum(c > r for c, r in both), sum(c < r for c, r in both)
        return {
            "pairs": len(both),
            **{name: {"rows": n, **({"first": self.first[name]} if n else {})} for name, n in self.counts.items()},
            "cohens_d_of_length": cohens_d(self.chosen, self.rejected),
            "chosen_longer": longer / len(both),
            "chosen_shorter": shorter / len(both),
        }


def decided_by_length(found: dict[str, Any]) -> str:
    """A warning in words if length alone would decide which answer is chosen, else nothing."""
    d, longer, shorter = (found[name] for name in ("cohens_d_of_length", "chosen_longer", "chosen_shorter"))
    share = max(longer, shorter)
    if found["pairs"] < ENOUGH or (share < MOST and abs(d or 0) < LARGE):
        return ""
    by_share = longer >= shorter if share >= MOST else d > 0
    which, learns = ("longer", "long") if by_share else ("shorter", "short")
    effect = "" if d is None else f" (Cohen's d of length {d:+.2f})"
    return (
        f"length alone tells which answer is chosen: it is the {which} one in {longer if by_share else shorter:.0%} of "
        f"pairs{effect}. What is trained on them may learn to write {learns} answers and nothing else: "
        "add pairs in which the other one is chosen, or leave out those that differ most"
    )
