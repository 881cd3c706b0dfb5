"""What several answers to one prompt say: pass@k and majority vote. Pure functions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from math import comb

from rlhf_core.commands import mean
from rlhf_tools.results import Answer

_MARKED = (
    re.compile(r"<answer>(.*?)(?:</answer>|$)", re.S),
    re.compile(r"\\boxed\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"),  # braces within braces, as of \frac{1}{2}
    re.compile(r"####(.*)"),
)


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The unbiased estimate of how likely one of `k` answers passes, where `passed` of `samples` did: equation 1 of
    Chen et al. (2021), https://arxiv.org/abs/2107.03374.
    """
    return 1.0 - comb(samples - passed, k) / comb(samples, k)


def ks(samples: int) -> list[int]:
    """The powers of two up to `samples`, and that."""
    return sorted({samples, *(2**i for i in range(samples.bit_length()) if 2**i <= samples)})


def passing(group: Sequence[Answer], reward: str, threshold: float, k: int) -> float | None:
    """pass@k of the answers to one prompt; None if fewer than `k` have a score."""
    scores = [score for answer in group if (score := answer.scores[reward]) is not None]
    return pass_at_k(len(scores), sum(score >= threshold for score in scores), k) if len(scores) >= k else None


def final(text: str) -> str:
    """What an answer comes to, in one form: its last `<answer>`, `\\boxed{}` or text after `####`, or its last line."""
    said = text.rpartition("</think>")[2]
    found = next((marks[-1] for mark in _MARKED if (marks := mark.findall(said))), None)
    lines = [line for line in said.splitlines() if line.strip()]
    chosen = found if found is not None else lines[-1] if lines else ""
    return " ".join(chosen.split()).strip(" .。").casefold()


def majority(group: Sequence[Answer], reward: str) -> float | None:
    """The mean score of the answers that come to what most do; of as many, to what came first. None without scores."""
    finals = [final(answer.text) for answer in group]
    [(most, _)] = Counter(finals).most_common(1)
    voted = [answer.scores[reward] for answer, said in zip(group, finals, strict=True) if said == most]
    return mean([score for score in voted if score is not None])
