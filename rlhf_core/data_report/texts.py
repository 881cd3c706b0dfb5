"""Measures of texts and of numbers, as pure functions."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from rlhf_core.formatter import Messages

PERCENTS = (5, 50, 95, 99)
BINS = 12  # of a histogram, about
HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")
LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]+")
LETTER = re.compile(r"[^\W\d_]+")
LEAK = 12  # characters of a question, at least, for its text within an answer to be no chance
CHOICE = re.compile(r"[A-J]")
CHOICES = 0.9  # of the answers are letters of options in an exam


def percentiles(values: Sequence[int]) -> dict[str, int]:
    """{"5": …, "max": …}: for p, the smallest value that at least p percent of the values do not exceed."""
    ordered = sorted(values)
    found = {str(p): ordered[max(0, math.ceil(p / 100 * len(ordered)) - 1)] for p in PERCENTS} if ordered else {}
    return {**found, "max": ordered[-1]} if ordered else {}


def histogram(values: Sequence[int]) -> list[dict[str, int]]:
    """[{"from": 20, "to": 29, "count": 7}, …]: about `BINS` bins of a round width, from the smallest value to the one
    that 99 % do not exceed; what is above is in the last one.
    """
    if not values:
        return []
    low, high, most = min(values), percentiles(values)["99"], max(values)
    width = next(w for w in _round_numbers() if (high - low) // w < BINS)
    start = low // width * width
    last = (high - start) // width
    counts = Counter(min((value - start) // width, last + 1) for value in values)
    ends = [start + (i + 1) * width - 1 for i in range(last + 1)]
    bins = [{"from": end - width + 1, "to": end, "count": counts[i]} for i, end in enumerate(ends)]
    return [*bins, {"from": ends[-1] + 1, "to": most, "count": counts[last + 1]}] if most > ends[-1] else bins


def _round_numbers() -> Iterator[int]:
    """1, 2, 5, 10, 20, 50, …"""
    return (first * 10**zeros for zeros in itertools.count() for first in (1, 2, 5))


def script(text: str) -> str:
    """`Han`, `Latin`, `other` or `none`: what most letters of a text are. Japanese and Korean letters are other."""
    if text.isascii():
        return "Latin" if LATIN.search(text) else "none"
    han, latin, letters = (sum(map(len, found.findall(text))) for found in (HAN, LATIN, LETTER))
    counts = {"Han": han, "Latin": latin, "other": letters - han - latin}
    most = max(counts, key=lambda name: counts[name])
    return most if counts[most] else "none"


def content(messages: Messages) -> str:
    """The texts of turns, one after the other."""
    return "\n".join(turn["content"] for turn in messages if isinstance(turn.get("content"), str))


def digest(value: Any) -> bytes:
    """Equal for equal values, whatever the order of keys and the spaces around texts."""
    if isinstance(value, list):
        value = [{key: item.strip() if isinstance(item, str) else item for key, item in turn.items()} for turn in value]
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()


def leaked(prompt: Messages, answer: str) -> bool:
    """Whether the answer repeats the whole text of the last question."""
    question = next((turn["content"] for turn in reversed(prompt) if turn["role"] == "user"), "")
    question = question.strip() if isinstance(question, str) else ""
    return len(question) >= LEAK and question in answer


def label_balance(answers: Counter[str]) -> dict[str, int]:
    """How often each letter is the answer, if the answers are letters of options, else nothing."""
    letters = {answer: count for answer, count in sorted(answers.items()) if CHOICE.fullmatch(answer)}
    total = answers.total()
    return letters if total and sum(letters.values()) >= CHOICES * total else {}
