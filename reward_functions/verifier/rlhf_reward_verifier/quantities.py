"""Numbers as they are written, with their units."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rlhf_reward_verifier.extract import one_space

TOLERANCE = 1e-6

_UNITS = {
    "$": "dollars dollar usd 美元", "元": "¥ yuan rmb cny 块 人民币", "€": "euros euro 欧元", "£": "英镑",
    "pound": "pounds", "lb": "lbs 磅", "oz": "ounces ounce 盎司", "stone": "", "斤": "", "tonne": "tonnes 吨",
    "%": "percent pct", "kg": "kilograms kilogram 公斤 千克", "g": "grams gram 克", "mg": "milligrams milligram 毫克",
    "ug": "μg mcg micrograms microgram 微克", "ng": "nanograms nanogram 纳克", "pg": "",
    "l": "liters liter litres litre 升", "dl": "deciliters deciliter 分升", "ml": "milliliters milliliter cc 毫升",
    "ul": "μl 微升", "mol": "moles mole 摩尔", "mmol": "毫摩尔", "umol": "μmol 微摩尔", "nmol": "", "pmol": "",
    "meq": "", "iu": "u units unit 国际单位 单位", "km": "kilometers kilometer 公里 千米",
    "m": "meters meter metres metre 米", "cm": "centimeters centimeter 厘米", "mm": "millimeters millimeter 毫米",
    "um": "μm micrometers micrometer 微米", "nm": "nanometers nanometer 纳米", "mile": "miles 英里",
    "yard": "yards yd 码", "foot": "feet ft 英尺", "inch": "inches 英寸", "ms": "milliseconds millisecond 毫秒",
    "second": "seconds sec s 秒", "minute": "minutes min mins 分钟",
    "hour": "hours h hr hrs 小时", "day": "days d 天 日",
    "week": "weeks 周 星期", "month": "months 个月 月", "year": "years 年 岁", "mmhg": "毫米汞柱", "cmh2o": "",
    "kpa": "千帕", "bpm": "次/分", "°c": "℃ 摄氏度", "°f": "℉ 华氏度", "kelvin": "开尔文", "kcal": "千卡", "kj": "千焦",
    "mph": "",
}  # fmt: skip
_UNIT = {name.casefold(): unit for unit, names in _UNITS.items() for name in [unit, *names.split()]}
_PERIODS = {"day", "week", "month", "year"}
_SCALES = {"": 1, "千": 1000, "万": 10**4, "百万": 10**6, "亿": 10**8}
_SCALES |= {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_LONGEST_FIRST = "|".join(
    re.escape(name) + (r"(?![a-z])" if name[-1].isascii() and name[-1].isalpha() else "")
    for name in sorted(_UNIT, key=len, reverse=True)
)
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<before>百分之|[$¥€£])?\s*(?P<sign>(?<![\w)])-)?(?P<currency>[$¥€£])?"
    rf"(?:(?P<whole>\d+)\s+(?=\d+\s*/\s*\d))?(?P<number>{_DIGITS})"
    rf"(?:e(?P<exponent>[+-]?\d{{1,3}})(?!\w)|\s*/\s*(?P<under>\d+(?:\.\d+)?))?"
    rf"\s*(?P<scale>百万|千(?![克米帕卡焦])|万|亿|thousand\b|million\b|billion\b)?"
    rf"\s*(?P<unit>{_LONGEST_FIRST})?(?:(?<=[^\W\d])\s?(?:/|每|per\b)\s?(?P<per>[a-zμ]+\d?|{_LONGEST_FIRST}))?",
    re.IGNORECASE,
)
# A number in another one's place: 3 in 3x, x3, x+3, √3 and 3k.
_AFTER_SYMBOL = re.compile(r"(?:(?<![a-z])[a-z](?:[_-]|\s?[+*^]\s?\{?)?|√\s?\(?)$", re.IGNORECASE)
_BEFORE_SYMBOL = re.compile(r"(?:(?![CF])|\s?[+*^-]\s?)[a-zA-Z](?![a-zA-Z])|\s?[√π∞]")
_HOW_OFTEN = r"(?:[bqt]\.?i?\.?d\.?|q\d*h|daily|weekly|monthly|hourly|nightly|once|twice|thrice|prn)"
_TRAILING = re.compile(rf"\s*(?:(?![xyz]$|{_HOW_OFTEN}\b)[a-z]{{0,12}}|[一-鿿]{{0,2}})", re.IGNORECASE)
_ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = [
    *["ten", "eleven", "twelve"],
    *[f"{name}teen" for name in ["thir", "four", "fif", "six", "seven", "eigh", "nine"]],
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_NUMERALS = {name: value for value, name in enumerate(["zero", *_ONES, *_TEENS])}
_NUMERALS |= {name: 10 * value for value, name in enumerate(_TENS, start=2)}
_IN_WORDS = re.compile(
    rf"(?P<minus>minus |negative |负)?(?P<percent>百分之)?"
    rf"(?:(?P<english>(?:(?:{'|'.join(_TENS)})[- ](?:{'|'.join(_ONES)})|{'|'.join(_NUMERALS)})(?![a-z]))"
    r"|(?P<chinese>[一二三四五六七八九]?十[一二三四五六七八九]?|[零一二两三四五六七八九])"
    r"|(?P<digits>(?<=[ 负])\d[\d.,]*))"
    rf"(?P<unit>\s?(?:{_LONGEST_FIRST})|个)?[.。]?",
    re.IGNORECASE,
)
_SPACED = re.compile(r"\W?\d{1,3}(?: \d{3})+(?:\.\d+)?(?: ?[^\d\s]+)?")
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


@dataclass(frozen=True)
class Quantity:
    """A number as written (50 for 50%) and its unit, None where none is known."""

    value: Fraction
    unit: str | None
    under: str | None = None  # what it is divided by, as written

    def equals(self, reference: Quantity, tolerance: float) -> bool:
        """50% is 50% or 0.5, and a unit may be left out; two units must agree."""
        if not _agree(self.unit, reference.unit):
            return False
        if ("mmhg" in (self.unit, reference.unit) or _is_pressure(reference)) and self.under != reference.under:
            return False  # 90/60 is another blood pressure than 120/80
        same = [(self.value, reference.value)]
        if (self.unit == "%") != (reference.unit == "%"):
            same.append((self.value * _percent(self), reference.value * _percent(reference)))
        return any(_close(a, b, tolerance) for a, b in same)


def read_number(text: str) -> Quantity | None:
    """The number that `text` is, with nothing around it but a unit."""
    text = in_digits(plain(text)).rstrip(".。 ")
    match = _NUMBER.fullmatch(text) or _NUMBER.match(text)
    return _quantity(match) if match and _TRAILING.fullmatch(text, match.end()) else None


def quantities(text: str) -> list[tuple[re.Match[str], Quantity]]:
    """The numbers in a text, and where they are; not those that are part of a name or an expression, as in x3 or 3x."""
    found = []
    for match in _NUMBER.finditer(text):
        before = text[max(0, match.start() - 6) : match.start("number")].removesuffix(match["sign"] or "")
        if not _AFTER_SYMBOL.search(before) and (match["unit"] or not _BEFORE_SYMBOL.match(text, match.end())):
            found += [(match, quantity)] if (quantity := _quantity(match)) else []
    return found


def is_number(text: str) -> bool:
    return bool(_NUMBER.fullmatch(text))


def in_digits(text: str) -> str:
    """A text that is a number, maybe with a unit, in digits: `三天` as `3天`, `minus 5` as `-5`, `1 000` as `1000`."""
    if _SPACED.fullmatch(text):
        return re.sub(r"(?<=\d) (?=\d{3})", "", text)
    match = _IN_WORDS.fullmatch(text)
    if not match:
        return text
    value = match["digits"]
    if match["english"]:
        value = str(sum(_NUMERALS[word] for word in re.split("[- ]", match["english"].lower())))
    elif match["chinese"]:
        tens, ten, ones = match["chinese"].partition("十")
        value = str(_numeral(tens) if not ten else 10 * (_numeral(tens) or 1) + _numeral(ones))
    return ("-" if match["minus"] else "") + value + ("%" if match["percent"] else match["unit"] or "")


def plain(text: str) -> str:
    """A number's text without LaTeX's trimmings."""
    for pattern, replacement in _LATEX_NUMBER:
        text = pattern.sub(replacement, text)
    return one_space(text).strip()


def _quantity(match: re.Match[str]) -> Quantity | None:
    part = match.groupdict()
    if any(len(part[name] or "") > 100 for name in ("number", "whole", "under")):
        return None
    value = Fraction(part["number"].replace(",", ""))
    if part["exponent"]:
        value *= Fraction(10) ** int(part["exponent"])
    if part["under"]:
        if not Fraction(part["under"]):
            return None
        value /= Fraction(part["under"])
    value = (value + int(part["whole"] or 0)) * _SCALES.get((part["scale"] or "").lower(), 1)
    return Quantity(-value if part["sign"] else value, _unit(part), part["under"])


def _unit(part: dict[str, str]) -> str | None:
    """`mg/kg` for `mg/kg` and `milligrams per kilogram`; what a price is for is left out."""
    unit = part["currency"] or part["before"] or part["unit"]
    known = "%" if unit == "百分之" else _UNIT.get(unit.casefold()) if unit else None
    if known == "mph":
        return "mile/hour"
    if not known or not part["per"] or known in "$元€£":
        return known
    per = part["per"].casefold()
    return f"{known}/{_UNIT.get(per, per)}"


def _agree(unit: str | None, reference: str | None) -> bool:
    """Whether two units may be the same: one may be left out, and so may a period, as in 5 mg for 5 mg/day."""
    if not unit or not reference or unit == reference:
        return True
    if {unit, reference} in ({"pound", "lb"}, {"pound", "£"}):
        return True
    (shorter, _, left_out), (longer, _, per) = sorted(
        [unit.partition("/"), reference.partition("/")], key=lambda u: u[2]
    )
    return shorter == longer and not left_out and per in _PERIODS


def _is_pressure(quantity: Quantity) -> bool:
    """Whether it is a fraction such as 120/80, of whole numbers that are not reduced and could be a blood pressure."""
    if quantity.unit or not quantity.under:
        return False
    low = Fraction(quantity.under)
    return 30 <= low <= 160 and low < quantity.value * low <= 260 and quantity.value.denominator != low


def _numeral(text: str) -> int:
    return "零一二三四五六七八九".find(text.replace("两", "二"))  # of nothing: 0


def _percent(quantity: Quantity) -> Fraction:
    return Fraction(1, 100) if quantity.unit == "%" else Fraction(1)


def _close(value: Fraction, reference: Fraction, tolerance: float) -> bool:
    # At the default a million and a million and one differ: the tolerance is for decimals.
    if tolerance <= TOLERANCE and value.denominator == reference.denominator == 1:
        return value == reference
    return abs(value - reference) <= Fraction(tolerance) * abs(reference)
