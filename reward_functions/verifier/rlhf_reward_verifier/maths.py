"""Compare numbers by simple rules, and everything else in mathematics by math-verify."""

from __future__ import annotations

import functools
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from types import FrameType, ModuleType

from rlhf_reward_verifier.extract import stated
from rlhf_reward_verifier.quantities import Quantity, in_digits, is_number, plain, quantities, read_number

EXPRESSION_LIMIT = 300  # characters of an expression
SECONDS = 0.8  # of computing for an answer; the worker's timeout ends what a signal can't

_NOT = re.compile(r"(?:\bnot|n't|\bnever|不是|并非|不等于|不为|≠|(?<![-=])[<>≤≥])\s*[$¥]?\s*$", re.IGNORECASE)
_OR = re.compile(
    r"\b(?:or|either|between|maybe|perhaps|possibly|alternatively)\b|或|还是|可能|也许|之间|\d\s*[~至到]\s*\d"
    r"|\d\s+to\s+\d|±|\\pm|\\lor",
    re.IGNORECASE,
)
_BOUND = re.compile(r"([<>≤≥])\s*(?=[\d.])")
_RANGE = re.compile(r"[\d.]+(?:\s*-\s*[\d.]+)+\s*%?")  # of values, or a date: nothing to subtract
_WORD = re.compile(r"[^\W\d_]")
_ARITHMETIC = re.compile(r"(?=.*[+*/^!\\\-])[\d\s.,()+\-*/^!{}]+", re.DOTALL)
_COMMANDS = re.compile(r"\\[a-zA-Z]+")
_FUNCTIONS = re.compile(r"\b(?:sqrt|sin|cos|tan|log|ln|exp|pi|infty|inf|mod|max|min)\b")
_PROSE = re.compile(r"[一-鿿]|(?<!\\)\b[a-z]{3,}", re.IGNORECASE)
# Powers and factorials that would fill the memory before any timeout: towers, and exponents of five digits or more.
_GIANT = re.compile(
    r"(?:\^|\*\*)[^\s+=]{0,40}(?:\^|\*\*|!)|(?:\^|\*\*)\s*[({\[]*\s*-?\d{5}|\d{5}\s*[)}]*\s*!|!\s*[)}]*\s*[!^]|e\d{5}"
)
_FORMULA = re.compile(r"\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_SYMBOLS = {
    ord(sign): rf"\{name} "
    for sign, name in {
        **{"π": "pi", "∞": "infty", "≤": "le", "≥": "ge", "≠": "ne"},
        **{"∅": "emptyset", "∪": "cup", "∩": "cap", "∈": "in", "±": "pm"},
    }.items()
}
_ROOT = re.compile(r"√\s*(?:(\d+(?:\.\d+)?|[a-z])|\(([^()]*)\))")
_SETTING = re.compile(r"\\left|\\right|\\displaystyle|\\[,;:! ]|\s+|^\$+|\$+$|[.。]$")


def judge_number(answer: str, reference: Quantity, tolerance: float) -> bool:
    """Whether the answer's one number is the reference; several that disagree are none."""
    text = stated(answer).get("answer") or answer
    cued, text = text != answer, plain(text)
    cued, text = cued or "=" in text, in_digits(re.split("=>?", text)[-1].strip())
    if _is_arithmetic(text):
        return same_expression(text, _as_text(reference.value))
    found = [one for one in quantities(text) if not _NOT.search(text[max(0, one[0].start() - 12) : one[0].start()])]
    if not found:
        return False
    if len({quantity.value for _, quantity in found}) == 1:
        return found[-1][1].equals(reference, tolerance)
    near = (found[0], found[1]) if cued else (found[-2], found[-1])
    between = text[near[0][0].end() : near[1][0].start()]
    if _OR.search(text) or not _WORD.search(between) or re.fullmatch(r"\W*(?:and|和|与|及|、)\W*", between):
        return False
    return near[0 if cued else 1][1].equals(reference, tolerance)


def read_bound(text: str) -> tuple[str, Quantity] | None:
    """The sign and the number of a reference such as `<5` or `≥ 140 mmHg`."""
    match = _BOUND.match(text)
    number = read_number(text[match.end() :]) if match else None
    return (match[1], number) if match and number else None


def judge_bound(answer: str, bound: tuple[str, Quantity], tolerance: float) -> bool:
    """Whether the answer's one sign is the reference's, and its number too."""
    return _BOUND.findall(answer) == [bound[0]] and judge_number(_BOUND.sub("", answer), bound[1], tolerance)


def _is_arithmetic(text: str) -> bool:
    """Whether `text` is something to work out, such as `9 + 9` or `\\sqrt{16}`, without a variable or a word."""
    text = text.strip("$.。 ").removeprefix("- ")
    if is_number(text) or not re.search(r"\d", text):
        return False
    return bool(_ARITHMETIC.fullmatch(_FUNCTIONS.sub("+", _COMMANDS.sub("+", text.replace("√", "+")))))


def is_expression(text: str) -> bool:
    """Whether a reference is mathematics: LaTeX, or operators and symbols without a word of prose."""
    if len(text) > EXPRESSION_LIMIT:
        return False
    bare = text.strip("$ ")
    if re.search(r"\\[a-zA-Z]+|\\[{(\[]", text):
        return not re.search("[一-鿿]", text)
    if not bare or _RANGE.fullmatch(bare) or _PROSE.search(_FUNCTIONS.sub("", bare)) or re.search("[A-Z]{2}", bare):
        return False
    marks = re.search(r"[\^=+*/()\[\]<>√∞π±]|[a-z]\s*[≤≥]|\d\s*-|\d[x-z]|,", bare) and re.search(r"[\dx-z∞π]", bare)
    return bool(marks or re.fullmatch(r"[a-z](?:\s?[+*=]\s?[a-z])*", bare))


def judge_expression(answer: str, reference: str) -> bool | None:
    """Whether the answer is the same expression; None where the reference isn't one after all."""
    text = stated(answer).get("answer") or answer
    pieces = _FORMULA.findall(text)
    if pieces and not _OR.search(reference) and _OR.search(text):
        return False
    outside = _FORMULA.sub("", text)
    if len(set(pieces)) > 1 and not _WORD.search(re.sub(r"\b(?:and|or)\b", "", outside)):
        return False
    expression = "".join(pieces[-1]) if pieces else re.split(r"\b(?:is|equals)\b|[是为]", text)[-1]
    if _tidy(expression) == _tidy(reference):
        return True
    if not _parsed(_tidy(reference)):
        return None
    if _OR.search(expression) and not _OR.search(reference):
        return False
    return same_expression(expression, reference)


def same_expression(expression: str, reference: str) -> bool:
    """By math-verify. Expressions that are too long or too large are not the same."""
    expression, reference = _tidy(expression), _tidy(reference)
    parsed, wanted = _parsed(expression), _parsed(reference)
    if not parsed or not wanted:
        return False
    return bool(_math_verify().verify(list(wanted), list(parsed), timeout_seconds=None))


class _TookTooLong(BaseException):
    """Raised by the timer; no `except Exception` of a library catches it."""


@contextmanager
def limited(seconds: float = SECONDS) -> Iterator[None]:
    """End the block where it computes for longer. It is the process's own time, which a busy machine does not use up.

    Timers interrupt the main thread alone, where a worker's reward runs: in other threads there is no limit.
    """
    if os.name != "posix" or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGPROF, _ring)
    signal.setitimer(signal.ITIMER_PROF, seconds, seconds / 10)  # again, for where Python can't raise
    try:
        yield
    except _TookTooLong:
        pass
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _ring(number: int, frame: FrameType | None) -> None:
    raise _TookTooLong


@functools.cache
def _math_verify() -> ModuleType:
    """Imported when it is needed, since it imports sympy, and outside of the time of the first answer that needs it.

    Its grammar and parts of sympy load when it is first used, which takes most of that time, too.
    """
    timer = signal.setitimer(signal.ITIMER_PROF, 0) if os.name == "posix" else None
    import math_verify  # type: ignore[import-untyped]

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it logs answers that it can't read
    first, second = (
        math_verify.parse(f"${expression}$", [math_verify.LatexExtractionConfig()], parsing_timeout=None)
        for expression in ("(x+1)^2", "x^2+2x+1")
    )
    math_verify.verify(first, second, timeout_seconds=None)
    if timer:
        signal.setitimer(signal.ITIMER_PROF, *timer)
    return math_verify


@functools.lru_cache(maxsize=256)
def _parsed(expression: str) -> tuple:
    """What math-verify reads, empty where it can't."""
    words = _FUNCTIONS.sub("", _COMMANDS.sub("", expression))
    if not expression or len(expression) > EXPRESSION_LIMIT or _GIANT.search(expression) or _PROSE.search(words):
        return ()
    module = _math_verify()
    return tuple(module.parse(f"${expression}$", [module.LatexExtractionConfig()], parsing_timeout=None))


def _tidy(expression: str) -> str:
    expression = _ROOT.sub(r"\\sqrt{\1\2}", expression).translate(_SYMBOLS)
    expression = re.sub(r"\^(-\d+)", r"^{\1}", expression.replace("**", "^"))
    expression = re.sub(r"(?<![\\a-zA-Z])(pi|sin|cos|tan|log|ln|exp)\b", r"\\\1", expression)
    return _SETTING.sub(lambda m: " " if m[0].isspace() else "", expression).strip()


def _as_text(value: Fraction) -> str:
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
