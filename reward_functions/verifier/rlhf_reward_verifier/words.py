"""Judge choices, yes/no/maybe and short terms."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rlhf_reward_verifier.extract import normalize, stated


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# --- multiple choice ---

_LETTER = re.compile(r"(?<![A-Za-z0-9'])([A-E])(?![A-Za-z0-9'])")
_FIRST = re.compile(r"[\s(\[【\"']*([A-E])(?![A-Za-z0-9'])(?! (?!(?:is|as|for|because|since|or|and|with)\b)[a-z])")
_BARE = re.compile(r"[\W_]*([a-e])[\W_]*", re.IGNORECASE)
_REASON = re.compile(r"\b(?:because|since|as|for|not|rather|unlike|instead)\b|因|由于|不|而非", re.IGNORECASE)
_UNSURE = re.compile(r"\b(?:or|maybe|perhaps|possibly|either|both|could|might)\b|或|还是|可能|也许|都", re.IGNORECASE)
_CHOOSING = _words(
    "is be was option choice answer letter choose choosing select pick picked chose it's as or and with "
    "say maybe perhaps possibly either both a b c d e"
)
_NO_LETTER = re.compile(
    r"(?:\bnot|n't|\bexcept|\bexcluding|\brule out|不是|不选|并非|排除|非)\s*(?:option\s*|选项\s*)?[(\[]?$",
    re.IGNORECASE,
)
_REJECTED = re.compile(
    r"[)\].]?\s*(?:is|are)?\s*(?:not\b|wrong|incorrect|false|不对|错|不是|不正确|被?排除)", re.IGNORECASE
)


def read_choice(text: str) -> str | None:
    """The letter of a reference such as `B`, `(B)` or `B. pneumonia`."""
    match = re.fullmatch(r"[(\[]?([A-E])[)\]]?(?:\s*[.、:)]\s*.{0,60})?", text)
    return match[1] if match else None


def judge_choice(answer: str, letter: str, options: dict[str, str]) -> bool:
    """Whether `letter` is the only one chosen; where none is, whether its option's text is named."""
    text = stated(answer).get("answer", answer)
    if bare := _BARE.fullmatch(text):
        return bare[1].upper() == letter
    letters = [m for m in _LETTER.finditer(text) if _chooses(text[max(0, m.start() - 20) : m.start()])]
    letters = [m for m in letters if not _REJECTED.match(text, m.end())]
    first = _FIRST.match(text)
    if first and letters and letters[0].start() == first.start(1):
        others = [m for m in letters if m[1] != first[1]]
        # Another letter may only be why this one was chosen.
        reasons = not others or (_REASON.search(text, first.end(), others[0].start()) and not _UNSURE.search(text))
        return first[1] == letter and bool(reasons)
    chosen = {m[1] for m in letters if not (m[1] == "A" and re.match(r" [a-z]", text[m.end() :]))}
    if not chosen and letter in options:
        return judge_term(answer, [options[letter]], [text for name, text in options.items() if name != letter])
    return chosen == {letter}


def _chooses(before: str) -> bool:
    """Whether a letter after `before` can be a choice: not denied, and not part of a name such as hepatitis B."""
    word = re.search(r"([a-z']+)[ *]*$", before, re.IGNORECASE)
    return not _NO_LETTER.search(before) and (word is None or word[1].lower() in _CHOOSING)


def read_options(value: object) -> dict[str, str]:
    """A choice question's options by letter, from a list or a mapping."""
    if isinstance(value, dict):
        return {str(name).strip().upper(): normalize(str(text)) for name, text in value.items()}
    if isinstance(value, list | tuple):
        texts = [re.sub(r"^\s*[(\[]?[A-E][)\]]?\s*[.、:)]\s*", "", normalize(str(text))) for text in value]
        return dict(zip("ABCDE", texts, strict=False))
    return {}


# --- yes, no, maybe ---

_VERDICTS = {
    "yes": "yes true correct 是 是的 对 对的 正确 有 可以 能",
    "no": "no false incorrect wrong 否 不是 不对 错 错误 不正确 不 没有 无 否定 不可以 不能",
    "maybe": "maybe uncertain unclear perhaps possibly unknown 不确定 可能 也许 不一定 尚不明确",
}
VERDICTS = {word: verdict for verdict, words in _VERDICTS.items() for word in words.split()}
_ENGLISH = "|".join(word for word in VERDICTS if word.isascii())
_CHINESE = "|".join(sorted((word for word in VERDICTS if not word.isascii()), key=len, reverse=True))
_VERDICT = re.compile(
    rf"(?P<not>\bnot (?:true|correct|yes)\b)|\b(?:{_ENGLISH})\b|(?<![一-鿿])(?:{_CHINESE})(?:的|定的)?(?![一-鿿])",
    re.IGNORECASE,
)
_CLAUSE_END = re.compile(r"[,.;:!?。、()\n]")


def judge_verdict(answer: str, verdict: str) -> bool:
    """Whether the answer's first clause says `verdict` and no other bare clause contradicts it."""
    text = stated(answer).get("answer", answer)
    clauses = [clause for clause in map(str.strip, _CLAUSE_END.split(text)) if clause]
    said = [_verdicts(clause) for clause in clauses]
    if not any(said):
        return False
    if not said[0]:
        return set().union(*said) == {verdict}
    bare = [found for clause, found in zip(clauses, said, strict=True) if _VERDICT.fullmatch(clause)]
    return set().union(said[0], *bare) == {verdict}


def _verdicts(clause: str) -> set[str]:
    return {
        "no" if m["not"] else VERDICTS.get(m[0].lower()) or VERDICTS.get(re.sub("定?的$", "", m[0]), "")
        for m in _VERDICT.finditer(clause)
    }  # fmt: skip


# --- short terms ---

TERM = "■"  # stands for the reference in a folded answer, so that its own words don't look like prose
OTHER = "□"  # a wrong option of a choice question
_BEFORE_EN = _words(
    "a an the is are was be as of with have has had having for to by likely probably possibly suspect "
    "suspected suggest suggests suggesting indicate indicates indicating consider diagnosis diagnosed "
    "answer called named mean means from see visit consult department specialty specialist fits fit and "
    "or this it confirmed likeliest in at mild moderate severe early typical your his her their my "
    "clearly definitely probable possible not isn't choose classic like"
)
_AFTER_EN = _words(
    "is are was with and or due because which in of from based given as since that should caused by for "
    "at on to so would could may might can department clinic specialist doctor needs need likely most "
    "diagnosis here not fits fit seems appears"
)
_BEFORE_ZH = "是为患有得即系属成到见虑断似于的了疑示像犯合挂去看往找议和或与及以等"
_BEFORE_ZH_WORD = re.compile(r"(?:轻度|中度|重度|早期|晚期|典型|严重)$")
_AFTER_ZH = "的可是引所导等吗呢吧了建需应请伴和或及与患就看挂门检以也但属为不而因在时之并最比较符。"
_NEGATED_ZH = re.compile(
    r"(?:是否|是不是|会不会|不是|并非|而非|不像|不属于|不符合|不考虑|不支持|不太可能|不可能|排除|否认|没有|未见|未患|无|别|非|不)[^,.;:。、\n■]{0,6}$"
)
_NEGATED_EN = re.compile(
    r"(?:\b(?:not?|without|rul\w+ out|unlikely|exclud\w*|den(?:y|ies|ied)|rather than|instead of|"
    r"never|neither|nor|unlike|(?:is|could) (?:it|this))\b|n't\b)[^,.;:■\n]{0,30}$"
)
_NEGATED_AFTER = re.compile(
    r"[ ]?(?:(?:is|was|can be|has been)\s*)?(?:unlikely|excluded|ruled out|not\b|wrong|less likely)|"
    r"[^,.;:。\n■]{0,3}(?:排除|不成立|不符|可能性[很较]?[小低]|不支持|不太可能)"
)
_HEDGE_BETWEEN = re.compile(r"\b(?:or|either|versus|vs|neither)\b|或(?!许)|还是|要么")
_HEDGE_MORE = re.compile(
    r"也可能|也有可能|也许是|或许|不排除|"
    r"\b(?:alternatively|could also|might also|may also|or (?:maybe|perhaps|possibly))\b"
)
_GUESS = re.compile(r"可能|也许|疑似|\b(?:maybe|perhaps|possibly|probably|could be|might be|may be|likely)\b")
_LIST_BESIDE = re.compile(
    r"■ ?(?:[、/|&+]|和|及|与|以及|and\b)(?! ?(?:its|the|need|see|should|请|建议))|(?:[、/|&+]|和|及|与|\band) ?■"
)
_ASSERTS = re.compile(
    r"(?:it|this|the (?:answer|diagnosis|patient)|she|he) (?:is|has)\b|(?:这|这个|患者|诊断|考虑|应)?(?:是|为|患有?)"
)
_PROSE = re.compile(
    r"[是建议请需应因为有可就吃用要做去查看疗诊休喝注避免及]|\d|"
    r"\b(?:the|is|are|was|a|an|to|and|of|with|please|see|rest|drink|take|avoid|because|so|should|needs?|no|not|this|it)\b"
)


def is_term(text: str) -> bool:
    """Short enough to be named, and no sentence: at most 6 words or 15 Chinese characters."""
    if not re.search(r"[^\W_]", text) or re.search(r"[。!?;,:\n\r\t]|\.\s", text):
        return False
    return len(re.findall("[一-鿿぀-ヿ가-힯]", text)) <= 15 and len(text.split()) <= 6 and len(text) <= 80


def judge_term(answer: str, terms: Iterable[str], wrong: Iterable[str] = ()) -> bool:
    """Whether one of `terms` is named: not denied, not one of several, not inside a longer name."""
    found = stated(answer)
    values = [found["answer"]] if "answer" in found else list(found.values()) or [answer]
    patterns = [_pattern(terms, TERM), _pattern(wrong, OTHER)]
    return any(_names(value, patterns) for value in values)


def _names(text: str, patterns: list[tuple[re.Pattern[str], str] | None]) -> bool:
    text = _fold(text)
    for pattern in filter(None, patterns):
        text = pattern[0].sub(pattern[1], text)
    # Two names of the same thing, as in "■ (■)" or "■ or ■", are one.
    text = re.sub(r"■(?:[ (/、,|]|or |或者?|即|又称|also (?:known as|called) )*■\)?", TERM, text)
    sentences = [part for part in re.split(r"[。!?;\n]|\.(?= |$)", text) if part.strip()]
    free = [(s, position) for s in sentences for position in _positions(s) if _is_free(s, position)]
    if not free or OTHER in text or any(_negated(s, position) for s, position in free):
        return False
    if _HEDGE_MORE.search(text) or len(_GUESS.findall(text)) > 1 or _bare_list(text):
        return False
    if any(_ASSERTS.match(s.strip()) and TERM not in s for s in sentences):
        return False
    clauses = [clause for s, _ in free for clause in re.split("[,:]", s) if TERM in clause]
    return not any(_HEDGE_BETWEEN.search(clause) or _LIST_BESIDE.search(clause) for clause in clauses)


def _pattern(terms: Iterable[str], mark: str) -> tuple[re.Pattern[str], str] | None:
    folded = sorted({_fold(term) for term in terms} - {""}, key=len, reverse=True)
    if not folded:
        return None
    parts = (
        (r"\b" if t[0].isascii() and t[0].isalnum() else "")
        + re.escape(t)
        + (r"\b" if t[-1].isascii() and t[-1].isalnum() else "")
        for t in folded
    )
    return re.compile("|".join(parts), re.ASCII), mark


def _positions(text: str) -> list[int]:
    return [m.start() for m in re.finditer(TERM, text)]


def _is_free(text: str, position: int) -> bool:
    """Not part of a longer name: function words around it in English, or such characters in Chinese."""
    # An opening bracket is skipped: in "asthma (pneumonia)" the second name is a gloss, or both would score.
    before, after = text[:position].rstrip(" \"'(["), text[position + 1 :].lstrip(" \"')]")
    left = re.search(r"[a-z0-9']+$", before)
    if left:
        if left[0] not in _BEFORE_EN:
            return False
    elif before and "一" <= before[-1] <= "鿿" and before[-1] not in _BEFORE_ZH and not _BEFORE_ZH_WORD.search(before):
        return False
    right = re.match(r"[a-z0-9']+", after)
    if right:
        return right[0] in _AFTER_EN
    return not (after and "一" <= after[0] <= "鿿" and after[0] not in _AFTER_ZH)


def _negated(text: str, position: int) -> bool:
    before, after = text[max(0, position - 60) : position], text[position + 1 : position + 40]
    return bool(_NEGATED_ZH.search(before) or _NEGATED_EN.search(before) or _NEGATED_AFTER.match(after))


def _bare_list(text: str) -> bool:
    """Whether the term is in a row of bare names, as in "■, asthma, gout" or one name a line."""
    parts = [re.sub(r"^[\s\d.)*\-•]+|[\s.]+$", "", part) for part in re.split(r"[,;?!、/|\n。]|\.(?= |$)", text)]
    parts = [part for part in parts if part]
    if TERM not in parts:
        return False
    return any(
        part != TERM and len(part) <= 30 and len(part.split()) <= 3 and not _PROSE.search(part) for part in parts
    )


def _fold(text: str) -> str:
    return " ".join(re.sub(r"[-_]", " ", normalize(text).casefold()).replace("’", "'").split(" ")).strip()
