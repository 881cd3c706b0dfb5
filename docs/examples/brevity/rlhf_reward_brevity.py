"""The final answer is the reference answer, given once; beyond `limit` characters it earns less the longer it is.

    rlhf run --method grpo --reward brevity

Cases with their scores are in rlhf_reward_brevity_golden.jsonl.
"""

from __future__ import annotations

import re

from rlhf_core import Reward, hookimpl

SYSTEM_PROMPT = "Give the final answer inside <answer></answer>."


@hookimpl
def rlhf_rewards():
    return [Reward(brevity, range=(0.0, 1.0), system_prompt=SYSTEM_PROMPT)]


def brevity(completions: list[str], answer: list[str | None], *, limit: int = 400, **_) -> list[float | None]:
    """1.0 for `answer` as a line of the only <answer>; `limit` / length where the completion is longer than `limit`.

    `answer` is a column of the data; `limit` is set as in --reward brevity:limit=200. None: there is no reference.
    """
    return [score(text, right, limit) for text, right in zip(completions, answer, strict=True)]


def score(text: str, right: str | None, limit: int) -> float | None:
    """One completion. This is the function to edit."""
    if not right:
        return None
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return 0.0
    answer = text.partition("<answer>")[2].partition("</answer>")[0]
    said = [re.split("[:：]", line)[-1].strip(" .。").casefold() for line in answer.splitlines()]
    return min(1.0, limit / len(text)) if right.casefold() in said else 0.0
