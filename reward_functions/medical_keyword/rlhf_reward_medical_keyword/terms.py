"""Finds medical terms in a text, and which of them the text affirms or denies."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_WORD = re.compile(r"[a-z0-9]+")

# Cues that deny the term after them. An "open" cue only looks like one: "不排除肺炎" does not exclude pneumonia, and
# "not only" and "无论" deny nothing. A "bare" 不, 未 or 非 denies only a term directly after it.
_CHINESE = {
    **{
        f"{a}{b}{c}": "open"
        for a in ("不", "未", "无法", "难以")
        for b in ("", "能", "可", "完全", "能完全")
        for c in ("排除", "除外")
    },
    **dict.fromkeys(
        ["无论", "无法", "无需", "无须", "无疑", "无关", "无非", "非常", "非但", "不仅", "不但", "不只", "不光"], "open"
    ),
    **dict.fromkeys(
        [
            "没有",
            "未见",
            "未发现",
            "未出现",
            "未发生",
            "未闻及",
            "未触及",
            "不是",
            "不伴",
            "不存在",
            "不考虑",
            "不像",
            "不属于",
            "不支持",
            "不会",
            "否认",
            "排除",
            "除外",
            "并非",
            "并无",
            "绝非",
            "无",
            "没",
        ],
        "strong",
    ),
    **dict.fromkeys("不未非", "bare"),
}
_CHINESE_CUE = re.compile("|".join(sorted(_CHINESE, key=len, reverse=True)))
_ENGLISH_CUE = re.compile(
    r"(?P<open>\b(?:can ?not|can't|could not|not|never)(?: yet)?(?: be| been)? (?:ruled? out|excluded?)\b"
    r"|\b(?:not (?:only|just|merely)|no doubt|without (?:doubt|delay))\b)"
    r"|\b(?:no|not|without|never|neither|nor|cannot|den(?:y|ies|ied|ying)|negative for|absence of|free of"
    r"|rul(?:e|es|ed|ing) out|exclud(?:e|es|ed|ing))\b|n't\b"
)
_AFTER = re.compile(
    r"\s*(?:\(-\)|阴性|[已可]?以?被?(?:排除|除外)"
    r"|(?:(?:is|are|was|were|has been|have been) )?(?:ruled out|excluded|absent|unlikely|negative)\b)"
)
_LINK = re.compile(r"\s*(?:、|/|,?\s*(?:or|nor|and)\s|和|或者?|以?及|与|,\s(?=[^.;:!?\n。]{0,60}\b(?:or|nor)\s))\s*")
_AFTER_BEGINS = frozenset(" (阴已可以被排除")
_CLAUSE_END = re.compile(
    r"[.;:!?\n。]|[但而却则因致引后就伴]|\b(?:but|however|though|although|except|because|causes?|leads?|which|then|with)\b"
)
_ENUMERATED = re.compile(r"\b(?:or|nor)\s")
_PARTS = re.compile(r"[、,/和或及与]|\b(?:or|nor|and)\b")
_LETTER = re.compile("[a-z]")
_REACH = 60  # characters that a denial may reach, unless a term in between passes it on


class Mention(NamedTuple):
    """One occurrence of a term: its position, its concept, the broader concepts, and whether it is denied."""

    start: int
    end: int
    concept: str
    broader: tuple[str, ...]
    denied: bool


class Lexicon:
    """Concepts with their synonyms. A concept is called by its first synonym."""

    def __init__(self, concepts: Iterable[Iterable[str]]) -> None:
        self.concepts = {term: terms[0] for terms in map(list, concepts) for term in terms}
        self._broader = {term: self._kinds(term) for term in self.concepts}
        heads: defaultdict[str, list[str]] = defaultdict(list)
        for term in sorted(self.concepts, reverse=True):  # a longer term before one that it begins with
            word = _WORD.match(term)
            heads[word[0] if word else term[:2]].append(term)
        self._heads = dict(heads)
        pairs = [head for head in heads if not head[0].isascii()]
        first, second = (re.escape("".join(sorted({pair[i] for pair in pairs}))) for i in (0, 1))
        self._begins = re.compile(f"[{first}](?=[{second}])" if pairs else r"(?!)")

    @classmethod
    def read(cls, path: Path) -> Lexicon:
        """One concept a line, its synonyms separated by `|`; `#` begins a comment. Raises ValueError with the line."""
        if path.exists() and not path.is_file():
            raise ValueError(f"lexicon {path} is no file")
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"lexicon {path} can't be read as UTF-8 text: {error}") from error
        concepts: list[list[str]] = []
        seen: dict[str, int] = {}
        for number, line in enumerate(lines, start=1):
            content = line.partition("#")[0]
            if not content.strip():
                continue
            terms = [normalize(term) for term in content.split("|")]
            for term in terms:
                if len(term) < 2:
                    raise ValueError(
                        f"lexicon {path}, line {number}: {term!r} is too short, a term has 2 characters or more"
                    )
                if not set(term).isdisjoint('=[]{}"'):
                    raise ValueError(f"lexicon {path}, line {number}: {term[:60]!r} is code or markup, not a term")
                if term in seen:
                    raise ValueError(f"lexicon {path}, line {number}: {term!r} is on line {seen[term]} already")
                seen[term] = number
            concepts.append(terms)
        if not concepts:
            raise ValueError(f"lexicon {path} has no terms: write one concept a line, as in: 发热 | 发烧 | fever")
        return cls(concepts)

    def mentions(self, text: str, others: Iterable[str] = ()) -> list[Mention]:
        """The terms in normalized `text`, the longest where several begin, and `others`, which take precedence."""
        spans = self._spans(text)
        if extra := [span for term in others for span in _occurrences(term, text)]:
            spans += extra
            first = set(extra)
            spans.sort(key=lambda span: (span not in first, span[0] - span[1]))
            taken = bytearray(len(text))
            free = []
            for span in spans:
                if not any(taken[span[0] : span[1]]):
                    taken[span[0] : span[1]] = b"\x01" * (span[1] - span[0])
                    free.append(span)
            spans = sorted(free)
        return _judge(
            text, [(a, b, self.concepts.get(term, term), self._broader.get(term, ())) for a, b, term in spans]
        )

    def _spans(self, text: str) -> list[tuple[int, int, str]]:
        heads = self._heads
        starts = []
        for match in self._begins.finditer(text):
            if (pair := text[(start := match.start()) : start + 2]) in heads:
                starts.append((start, heads[pair]))
        for word in _WORD.finditer(text):
            found = heads.get(word[0]) or heads.get(word[0].removesuffix("s")) or heads.get(word[0].removesuffix("es"))
            if found:
                starts.append((word.start(), found))
        starts.sort(key=lambda start: start[0])
        spans = []
        position = 0
        for start, terms in starts:
            if start < position:
                continue
            for term in terms:
                if text.startswith(term, start) and _is_word(text, start, start + len(term)):
                    position = start + len(term)
                    spans.append((start, position, term))
                    break
        return spans

    def _kinds(self, term: str) -> tuple[str, ...]:
        """Concepts that `term` ends with: 支气管肺炎 is a 肺炎, whereas 糖尿病肾病 is not a 糖尿病."""
        tails = (i for i in range(1, len(term)) if _is_word(term, i, len(term)))
        found = {self.concepts[term[i:]] for i in tails if term[i:] in self.concepts}
        return tuple(sorted(found - {self.concepts[term]}))


def normalize(text: str) -> str:
    """Without full-width forms, ligatures, upper case and outer white space."""
    for full, half in zip("，；：！？（）", ",;:!?()", strict=True):  # NFKC is fast only where nothing is left to do
        text = text.replace(full, half)
    return unicodedata.normalize("NFKC", text).lower().strip()


def _is_word(text: str, start: int, end: int) -> bool:
    """Whether a term that begins or ends with a Latin letter or a digit is a full word there, or its plural."""
    if _latin(text[start : start + 1]) and _latin(text[start - 1 : start]):
        return False
    if not _latin(text[end - 1 : end]):
        return True
    for plural in ("es", "s"):
        if text.startswith(plural, end):
            end += len(plural)
            break
    return not _latin(text[end : end + 1])


def _latin(character: str) -> bool:
    return character.isascii() and character.isalnum()


def _occurrences(term: str, text: str) -> Iterable[tuple[int, int, str]]:
    start = text.find(term)
    while start >= 0:
        end = start + len(term)
        if _is_word(text, start, end):
            yield start, end, term
        start = text.find(term, end)


def _judge(text: str, found: list[tuple[int, int, str, tuple[str, ...]]]) -> list[Mention]:
    """Mark the terms that are denied: by a cue before them in their clause, by what follows, or along a list."""
    cues = _cues(text, [span[:2] for span in found]) if found else []
    mentions: list[Mention] = []
    index = -1
    passed, denied = 0, False  # where the term before ended, and whether it was denied
    for start, end, concept, broader in found:
        while index + 1 < len(cues) and cues[index + 1][0] <= start:
            index += 1
        linked = denied and start - passed <= _REACH and _LINK.fullmatch(text, passed, start) is not None
        denied = linked or (
            index >= 0 and start - cues[index][0] <= _REACH and _reaches(*cues[index], text, start, end)
        )
        if not denied and text[end : end + 1] in _AFTER_BEGINS:
            denied = _AFTER.match(text, end) is not None
        passed = end
        mentions.append(Mention(start, end, concept, broader, denied))
    return mentions


def _cues(text: str, terms: list[tuple[int, int]]) -> list[tuple[int, str]]:
    """(end, kind) of each cue, without those inside a term, such as 无 in 无力."""
    cues = [(match.start(), match.end(), _CHINESE[match[0]]) for match in _CHINESE_CUE.finditer(text)]
    if _LETTER.search(text):
        cues += [(m.start(), m.end(), "open" if m["open"] else "strong") for m in _ENGLISH_CUE.finditer(text)]
        cues.sort()
    free = []
    index = 0
    for start, end, kind in cues:
        while index < len(terms) and terms[index][1] <= start:
            index += 1
        if index == len(terms) or terms[index][0] >= end:
            free.append((end, kind))
    return free


def _reaches(cue: int, kind: str, text: str, start: int, end: int) -> bool:
    """Whether a cue of this kind that ends at `cue` denies the term from `start` to `end`."""
    gap = text[cue:start]
    if kind in ("open", "bare"):
        return kind == "bare" and not gap
    if _CLAUSE_END.search(gap):
        return False
    if "," in gap and not _ENUMERATED.search(gap + text[end : end + _REACH].partition(".")[0]):
        return False
    *parts, last = _PARTS.split(gap)
    return all(_short(part, 6) for part in parts) and _short(last, 4)


def _short(part: str, most: int) -> bool:
    """A few words of English or a few Chinese characters."""
    return (len(part.split()) if part.isascii() else len(part)) <= most
