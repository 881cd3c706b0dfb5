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
from dataclasses import dataclass
from fractions import Fraction
from types import FrameType, ModuleType

from rlhf_reward_verifier.extract import one_space, stated

TOLERANCE = 1e-6
EXPRESSION_LIMIT = 300  # characters of an expression
SECONDS = 0.8  # of computing for an answer; the worker's timeout ends what a signal can't

_UNITS = {
    "$": "dollars dollar usd 美元", "元": "¥ yuan rmb cny 块 人民币", "€": "euros euro 欧元", "£": "pounds pound",
    "%": "percent pct", "kg": "kilograms kilogram 公斤 千克", "g": "grams gram 克", "mg": "milligrams milligram 毫克",
    "ug": "μg mcg 微克", "l": "liters liter litres litre 升", "ml": "milliliters milliliter cc 毫升",
    "km": "kilometers kilometer 公里 千米", "m": "meters meter metres metre 米", "cm": "centimeters centimeter 厘米",
    "mm": "millimeters millimeter 毫米", "mile": "miles", "foot": "feet ft 英尺", "inch": "inches 英寸",
    "second": "seconds sec s 秒", "minute": "minutes min mins 分钟", "hour": "hours h hr hrs 小时", "day": "days 天 日",
    "week": "weeks 周 星期", "month": "months 个月 月", "year": "years 年 岁", "mmhg": "毫米汞柱", "bpm": "次/分",
    "°c": "℃ 摄氏度", "°f": "℉", "mmol/l": "", "mg/dl": "", "km/h": "", "m/s": "",
}  # fmt: skip
_UNIT = {name.casefold(): unit for unit, names in _UNITS.items() for name in [unit, *names.split()]}
_SCALES = {"": 1, "万": 10**4, "亿": 10**8, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_LONGEST_FIRST = "|".join(
    re.escape(name) + (r"(?![a-z])" if name[-1].isascii() and name[-1].isalpha() else "")
    for name in sorted(_UNIT, key=len, reverse=True)
)
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<before>百分之|[$¥€£])?\s*(?P<sign>(?<![\w)])-)?(?P<currency>[$¥€£])?"
    rf"(?:(?P<whole>\d+)\s+(?=\d+\s*/\s*\d))?(?P<number>{_DIGITS})"
    rf"(?:e(?P<exponent>[+-]?\d{{1,3}})(?!\w)|\s*/\s*(?P<under>\d+(?:\.\d+)?))?"
    rf"\s*(?P<scale>万|亿|thousand\b|million\b|billion\b)?\s*(?P<unit>{_LONGEST_FIRST})?",
    re.IGNORECASE,
)
_POWER = r"10\s?\^\s?(?:\{([+-]?\d{1,3})\}|([+-]?\d{1,3})(?!\d))"
_LATEX_NUMBER = [
    (re.compile(r"<<[^<>]*>>"), ""),  # GSM8K's calculator annotations
    (re.compile(r"</?[a-z]+>", re.IGNORECASE), " "),
    (re.compile(r"\{,\}|,\\!|(?<=\d)\\,(?=\d{3})"), ","),
    (re.compile(rf"(?<=\d)\s?(?:\*|\\times|\\cdot|x)\s?{_POWER}"), r"e\1\2"),
    (re.compile(rf"(?<![\w.^)}}*/]){_POWER}"), r"1e\1\2"),
    (re.compile(r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}"), r" \1/\2"),
    (re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}"), r" \1"),
    (re.compile(r"\\([%$])"), r"\1"),
    (re.compile(r"\\[,;:! ]|\\[()\[\]]|\^\s*\\circ|~(?!\d)"), " "),
]
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


@dataclass(frozen=True)
class Quantity:
    """A number as written (50 for 50%) and its unit, None where none is known."""

    value: Fraction
    unit: str | None
    under: str | None = None  # what it is divided by, as written

    def equals(self, reference: Quantity, tolerance: float) -> bool:
        """50% is 50% or 0.5, and a unit may be left out; two units must agree."""
        if self.unit and reference.unit and self.unit != reference.unit:
            return False
        if "mmhg" in (self.unit, reference.unit) and self.under != reference.under:
            return False  # 90/60 is another blood pressure than 120/80
        same = [(self.value, reference.value)]
        if (self.unit == "%") != (reference.unit == "%"):
            same.append((self.value * _percent(self), reference.value * _percent(reference)))
        return any(_close(a, b, tolerance) for a, b in same)


def read_number(text: str) -> Quantity | None:
    """The number that `text` is, with nothing around it but a unit."""
    text = plain(text).rstrip(".。 ")
    match = _NUMBER.fullmatch(text) or _NUMBER.match(text)
    if not match or not re.fullmatch(r"\s*(?:(?![xyz]$)[a-z]{0,12}|[一-鿿]{0,2})", text[match.end() :], re.IGNORECASE):
        return None
    return _quantity(match)


def judge_number(answer: str, reference: Quantity, tolerance: float) -> bool:
    """Whether the answer's one number is the reference; several that disagree are none."""
    text = stated(answer).get("answer") or answer
    cued, text = text != answer, plain(text)
    cued, text = cued or "=" in text, re.split("=>?", text)[-1]
    matches = [m for m in _NUMBER.finditer(text) if not _NOT.search(text[max(0, m.start() - 12) : m.start()])]
    found = [(m, quantity) for m in matches if (quantity := _quantity(m))]
    if not found:
        return False
    if _is_arithmetic(text):
        return same_expression(text, _as_text(reference.value))
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
    if _NUMBER.fullmatch(text):
        return False
    return bool(_ARITHMETIC.fullmatch(_FUNCTIONS.sub("+", _COMMANDS.sub("+", text))))


def is_expression(text: str) -> bool:
    """Whether a reference is mathematics: LaTeX, or operators and symbols without a word of prose."""
    if len(text) > EXPRESSION_LIMIT:
        return False
    bare = text.strip("$ ")
    if re.search(r"\\[a-zA-Z]+|\\[{(\[]", text):
        return not re.search("[一-鿿]", text)
    if not bare or _RANGE.fullmatch(bare) or _PROSE.search(_FUNCTIONS.sub("", bare)) or re.search("[A-Z]{2}", bare):
        return False
    marks = re.search(r"[\^=+*/()\[\]<>√∞π]|[a-z]\s*[≤≥]|\d\s*-|\d[x-z]|,", bare) and re.search(r"[\dx-z∞π]", bare)
    return bool(marks or re.fullmatch(r"[a-z]", bare))


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
    """Imported when it is needed, since it imports sympy, and outside of the time of the first answer that needs it."""
    timer = signal.setitimer(signal.ITIMER_PROF, 0) if os.name == "posix" else None
    import math_verify  # type: ignore[import-untyped]

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it logs answers that it can't read
    if timer:
        signal.setitimer(signal.ITIMER_PROF, *timer)
    return math_verify


def plain(text: str) -> str:
    """A number's text without LaTeX's trimmings."""
    for pattern, replacement in _LATEX_NUMBER:
        text = pattern.sub(replacement, text)
    return one_space(text).strip()


@functools.lru_cache(maxsize=256)
def _parsed(expression: str) -> tuple:
    """What math-verify reads, empty where it can't."""
    words = _FUNCTIONS.sub("", _COMMANDS.sub("", expression))
    if not expression or len(expression) > EXPRESSION_LIMIT or _GIANT.search(expression) or _PROSE.search(words):
        return ()
    module = _math_verify()
    return tuple(module.parse(f"${expression}$", [module.LatexExtractionConfig()], parsing_timeout=None))


def _tidy(expression: str) -> str:
    expression = re.sub(r"\\[dt]frac", r"\\frac", expression.strip())
    expression = _ROOT.sub(r"\\sqrt{\1\2}", expression).translate(_SYMBOLS)
    expression = re.sub(r"\^(-\d+)", r"^{\1}", expression)
    expression = re.sub(r"(?<![\\a-zA-Z])(pi|sin|cos|tan|log|ln|exp)\b", r"\\\1", expression)
    return _SETTING.sub(lambda m: " " if m[0].isspace() else "", expression).strip()


def _quantity(match: re.Match[str]) -> Quantity | None:
    part = match.groupdict()
    if len(part["number"]) > 100 or len(part["whole"] or "") > 100 or len(part["under"] or "") > 100:
        return None
    value = Fraction(part["number"].replace(",", ""))
    if part["exponent"]:
        value *= Fraction(10) ** int(part["exponent"])
    if part["under"]:
        if not Fraction(part["under"]):
            return None
        value /= Fraction(part["under"])
    value = (value + int(part["whole"] or 0)) * _SCALES.get((part["scale"] or "").lower(), 1)
    unit = part["currency"] or part["before"] or part["unit"]
    known = "%" if unit == "百分之" else _UNIT.get(unit.casefold()) if unit else None
    return Quantity(-value if part["sign"] else value, known, part["under"])


def _percent(quantity: Quantity) -> Fraction:
    return Fraction(1, 100) if quantity.unit == "%" else Fraction(1)


def _close(value: Fraction, reference: Fraction, tolerance: float) -> bool:
    # At the default a million and a million and one differ: the tolerance is for decimals.
    if tolerance <= TOLERANCE and value.denominator == reference.denominator == 1:
        return value == reference
    return abs(value - reference) <= Fraction(tolerance) * abs(reference)


def _as_text(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
