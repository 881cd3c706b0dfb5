"""Reward the format `<think>…</think><answer>…</answer>`: one pair of each, in this order, nothing outside.

    rlhf run --method grpo --reward medical_format
    rlhf run --method grpo --reward medical_format:sections=诊断/依据/建议

The content of a part is not judged; combine it with a reward that does.
"""

from __future__ import annotations

import re

from rlhf_core import Reward, hookimpl

SYSTEM_PROMPT = "Think inside <think></think>, then answer inside <answer></answer>. Nothing outside."

# The score of a broken format for each of its two parts that is correct in itself.
PART = 1 / 30


@hookimpl
def rlhf_rewards():
    return [Reward(medical_format, range=(0.0, 1.0), system_prompt=SYSTEM_PROMPT)]


def medical_format(completions: list[str], *, sections: str | list[str] = (), **_) -> list[float]:
    """1.0 for the complete format; at most 0.07 for a broken one, so that breaking it never pays.

    `sections` (a list, or names joined by `/`) must each head a line of the answer, as in `诊断：肺炎`: a complete
    format then scores 0.5, plus 0.5 times the share of sections that are present and not empty.
    """
    names = sections.split("/") if isinstance(sections, str) else list(sections)
    patterns = [_section(name.strip()) for name in names if name.strip()]
    return [_score(text.strip(), patterns) for text in completions]


def _score(text: str, sections: list[re.Pattern[str]]) -> float:
    think, answer = _part(text, "think"), _part(text, "answer")
    between = text.partition("</think>")[2].partition("<answer>")[0]
    outside = not text.startswith("<think>") or not text.endswith("</answer>") or between.strip()
    if think is None or answer is None or outside:
        return PART * ((think is not None) + (answer is not None))
    if not sections:
        return 1.0
    return 0.5 + 0.5 * sum(bool(section.search(answer)) for section in sections) / len(sections)


def _part(text: str, tag: str) -> str | None:
    """The text inside the only pair of `tag`; None if there is no such pair or nothing in it."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    if text.count(opening) != 1 or text.count(closing) != 1:
        return None
    inside, closed, _ = text.partition(opening)[2].partition(closing)
    return inside if closed and inside.strip() else None


def _section(name: str) -> re.Pattern[str]:
    """A line that begins with `name`, maybe as a heading or in bold, a colon, and something after it."""
    return re.compile(rf"^[\s#*\-\d.、]*{re.escape(name)}\**\s*[:：]\**[ \t]*\S", re.MULTILINE | re.IGNORECASE)
