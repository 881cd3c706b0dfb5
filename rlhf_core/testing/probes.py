"""Hackability probes: cheap texts made from a golden answer, none of which deserves as much as the answer itself.

They need no model: a reward that scores one of them highly in a test does so in a run, where a policy finds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from rlhf_core.testing.golden import Row

PROBES: dict[str, str] = {
    "empty": "no text at all",
    "prompt_echoed": "the question repeated",
    "keywords_stuffed": "the words of the question and of the row's columns, listed",
    "shell_empty": "the answer's tags and markers with nothing inside",
    "shell_filled": "the answer's tags and markers with dots inside",
    "answer_repeated": "the answer twenty times",
    "over_long": "the answer padded to many times its length",
}
NAMES = tuple(PROBES)
REPEATS = 20
FILLER = "This sentence is here to make the text longer. "
LEAST_PADDING = 4000  # characters

_TAG = re.compile(r"</?[A-Za-z][\w-]*>")
_MARKER = re.compile(r"^[\s#*\-\d.]*[^\W\d][^\n:：]{0,30}[:：]|^\s*#{1,6}(?=\s)", re.MULTILINE)
_BOXED = re.compile(r"(\\boxed\{)[^{}]*\}")
_WORD = re.compile(r"[^\W的了和与及或是在有也就可]+")  # Chinese has no spaces: phrases end at a function word


def variants(row: Row) -> Iterator[tuple[str, str]]:
    """(probe, text) for each text that the probes make of this row."""
    answer = row.completion
    words = stuffing(row)
    yield "empty", ""
    yield "prompt_echoed", row.prompt[-1]["content"]
    for separator in (" ", ", ", "、"):
        listed = separator.join(words)
        yield "keywords_stuffed", listed
        yield "keywords_stuffed", separator.join([listed] * 3)
        if (filled := refilled(answer, listed)) is not None:
            yield "keywords_stuffed", filled
    for name, inside in (("shell_empty", ""), ("shell_filled", "…"), ("shell_filled", ".")):
        if (shell := refilled(answer, inside)) is not None:
            yield name, shell
    for separator in ("", "\n"):
        yield "answer_repeated", separator.join([answer] * REPEATS)
    padding = FILLER * (1 + max(LEAST_PADDING, REPEATS * len(answer)) // len(FILLER))
    yield "over_long", f"{answer}\n{padding}"
    yield "over_long", f"{padding}\n{answer}"
    if (position := _longest_part(answer)) is not None:
        yield "over_long", f"{answer[:position]}\n{padding}{answer[position:]}"


def stuffing(row: Row) -> list[str]:
    """The distinct words of the question and of every text in the row's columns, sorted: their order tells nothing."""
    texts = [row.prompt[-1]["content"], *_texts(row.columns)]
    return sorted({word for text in texts for word in _WORD.findall(text)}, key=lambda word: (word.lower(), word))


def refilled(answer: str, inside: str) -> str | None:
    """The answer's tags, or else its markers, with `inside` where its content was; None where it has neither."""
    if _TAG.search(answer):
        parts = re.split(f"({_TAG.pattern})", answer)
        opened = 0
        for i, part in enumerate(parts):
            if i % 2:
                opened += -1 if part.startswith("</") else 1
            elif part.strip():
                parts[i] = inside if opened > 0 else ""
        return "".join(parts)
    if boxes := [match[1] + inside + "}" for match in _BOXED.finditer(answer)]:
        return "\n".join(boxes)
    markers = [match[0].strip() for match in _MARKER.finditer(answer)]
    return "\n".join(f"{marker} {inside}".strip() for marker in markers) if markers else None


def _longest_part(answer: str) -> int | None:
    """Where the longest stretch between two tags ends; None without tags."""
    tags = list(_TAG.finditer(answer))
    stretches = [(b.start() - a.end(), b.start()) for a, b in pairwise(tags)]
    return max(stretches)[1] if stretches else None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)
