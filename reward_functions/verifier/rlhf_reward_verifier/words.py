"""Judge choices, yes/no/maybe and short terms."""

from __future__ import annotations

import itertools
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
_BESIDE_LETTERS = re.compile(r"[\s,、;&+()\[\]选和及与]|\band\b|[.。]$")
_UNSURE = re.compile(r"\b(?:or|maybe|perhaps|possibly|either|both|could|might)\b|或|还是|可能|也许|都", re.IGNORECASE)
_CHOOSING = _words(
    "is be was option choice answer letter choose choosing select pick picked chose it's as or and with "
    "say maybe perhaps possibly either both a b c d e"
)
_NO_LETTER = re.compile(
    r"(?:\bnot|n't|\bexcept|\bexcluding|\brule out|不是|不选|并非|排除|除了?|非)\s*(?:option\s*|选项\s*)?[(\[]?$",
    re.IGNORECASE,
)
_REJECTED = re.compile(
    r"[)\].]?\s*(?:is|are)?\s*(?:not\b|wrong|incorrect|false|不对|是?错|不是|不正确|被?排除|以外|之外)", re.IGNORECASE
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


def read_choices(text: str) -> str:
    """The letters of a reference with several, such as `ABD` or `A, B and D`; empty for any other."""
    letters = _BESIDE_LETTERS.sub("", text)
    several = re.fullmatch("[A-E]{2,5}", letters) and list(letters) == sorted(set(letters))
    return letters if several else ""


def judge_choices(answer: str, letters: str) -> bool:
    """Whether the answer is these letters, in any order, and nothing else."""
    return sorted(_BESIDE_LETTERS.sub("", stated(answer).get("answer", answer))) == sorted(letters)


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
    r"(?P<no>\bnot (?:true|correct|yes)\b)|(?P<yes>\bnot (?:no|false|incorrect|wrong)\b)"
    r"|(?P<nothing>\bno (?:idea|clue|answer|comment|opinion)\b)"
    rf"|\b(?:{_ENGLISH})\b|(?<![一-鿿])(?:{_CHINESE})(?:的|定的)?(?![一-鿿])",
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
    found = _VERDICT.finditer(clause)
    return {m.lastgroup or VERDICTS.get(m[0].lower()) or VERDICTS.get(re.sub("定?的$", "", m[0]), "") for m in found}


# --- short terms ---

# An answer is split at the names in it, so that their own words don't look like prose: a list of the texts around its
# names, one more than there are names.
Pieces = list[str]
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
    r"(?:是否|是不是|会不会|不是|并非|而非|不像|不属于|不符合|不考虑|不支持|不太可能|不可能|排除|否认|没有|未见|未患|无|别|非|不)[^,.;:。、\n]{0,6}$"
)
_NEGATED_EN = re.compile(
    r"(?:\b(?:not?|without|rul\w+ out|unlikely|exclud\w*|den(?:y|ies|ied)|rather than|instead of|"
    r"never|neither|nor|unlike|absence of|other than|anything but|free of|(?:is|could) (?:it|this))\b|n't\b)"
    r"[^,.;:\n]{0,30}$"
)
_NEGATED_AFTER = re.compile(
    r"[ ]?(?:(?:is|was|can be|has been)\s*)?(?:unlikely|excluded|ruled out|not\b|wrong|less likely)|"
    r"[^,.;:。\n]{0,3}(?:排除|以外|之外|不成立|不符|可能性[很较]?[小低]|不支持|不太可能)"
)
_HEDGE_BETWEEN = re.compile(r"\b(?:or|either|versus|vs|neither)\b|或(?!许)|还是|要么")
_HEDGE_MORE = re.compile(
    r"也可能|也有可能|也许是|或许|不排除|"
    r"\b(?:alternatively|could also|might also|may also|or (?:maybe|perhaps|possibly))\b"
)
_GUESS = re.compile(r"可能|也许|疑似|\b(?:maybe|perhaps|possibly|probably|could be|might be|may be|likely)\b")
_LISTED_AFTER = re.compile(r" ?(?:[、/|&+]|和|及|与|以及|and\b|as well as\b)(?! ?(?:its|the|need|see|should|请|建议))")
_LISTED_BEFORE = re.compile(r"(?:[、/|&+]|和|及|与|\band) ?$")
# Between two names of the same thing, as in "flu (influenza)" or "flu or influenza".
_SAME = re.compile(r"(?:[ (/、,|]|or|或者?|即|又称|also (?:known as|called))*")
# What may stand directly around a name. "asthma (pneumonia)" is a gloss: if its bracket ended a name, both would score.
_OPENING, _CLOSING = r" \"'(\[{<【「『《〈", r" \"')\]}>】」』》〉"
_SENTENCE = re.compile(r"[。!?;\n]|\.(?= |$)")
_CLAUSE = re.compile(r"[,:]")
_ENTRY = re.compile(r"[,;?!、/|\n。]|\(?\b[a-e\d][).](?= |$)|\.(?= |$)")
_MARKS = " \t\n0123456789.)*-•"  # around an entry of a list
_ASSERTS = re.compile(
    r"(?:it|this|the (?:answer|diagnosis|patient)|she|he) (?:is|has)\b|(?:这|这个|患者|诊断|考虑|应)?(?:是|为|患有?)"
)
_PROSE = re.compile(
    r"[是建议请需应因为有可就吃用要做去查看疗诊休喝注避免及]|\d|"
    r"\b(?:the|is|are|was|a|an|to|and|of|with|please|see|rest|drink|take|avoid|because|so|should|needs?|no|not|this|it)\b"
)


def is_term(text: str) -> bool:
    """Short enough to be named, and no sentence: at most 6 words or 15 Chinese characters."""
    if not re.search(r"[^\W_]", text) or re.search(r"[。!?;,\n\r\t]|\.\s|(?<!\d):|:(?!\d)", _fold(text)):
        return False
    return len(re.findall("[一-鿿぀-ヿ가-힯]", text)) <= 15 and len(text.split()) <= 6 and len(text) <= 80


def judge_term(answer: str, terms: Iterable[str], wrong: Iterable[str] = ()) -> bool:
    """Whether one of `terms` is named: not denied, not one of several, not inside a longer name."""
    found = stated(answer)
    values = [found["answer"]] if "answer" in found else list(found.values()) or [answer]
    right, others = _pattern(terms), _pattern(wrong)
    return right is not None and any(_names(_fold(value), right, others) for value in values)


def _names(text: str, right: re.Pattern[str], others: re.Pattern[str] | None) -> bool:
    pieces = right.split(text)
    if others and any(map(others.search, pieces)):
        return False
    pieces = _merged(pieces)
    sentences = _split(_SENTENCE, pieces)
    named = [one for one in sentences if any(itertools.starmap(_is_free, itertools.pairwise(one)))]
    free = [beside for one in named for beside in itertools.pairwise(one) if _is_free(*beside)]
    if not free or any(itertools.starmap(_negated, free)):
        return False
    if any(map(_HEDGE_MORE.search, pieces)) or sum(len(_GUESS.findall(piece)) for piece in pieces) > 1:
        return False
    if _bare_list(pieces) or any(len(one) == 1 and _ASSERTS.match(one[0].strip()) for one in sentences):
        return False
    clauses = [clause for one in named for clause in _split(_CLAUSE, one) if len(clause) > 1]
    return not any(
        any(map(_HEDGE_BETWEEN.search, clause))
        or any(map(_LISTED_AFTER.match, clause[1:]))
        or any(map(_LISTED_BEFORE.search, clause[:-1]))
        for clause in clauses
    )


def _pattern(terms: Iterable[str]) -> re.Pattern[str] | None:
    """Finds the names, with quotes and brackets around them."""
    folded = sorted({_fold(term) for term in terms} - {""}, reverse=True)  # a longer one before one that it begins with
    if not folded:
        return None
    names = "|".join(
        (r"\b(?<!\d[.:])" if t[0].isascii() and t[0].isalnum() else "")
        + re.escape(t)
        + (r"\b(?![.:]\d)" if t[-1].isascii() and t[-1].isalnum() else "")
        for t in folded
    )
    return re.compile(rf"(?:(?<![{_OPENING}])[{_OPENING}]+)?(?:{names})[{_CLOSING}]*", re.ASCII)


def _merged(pieces: Pieces) -> Pieces:
    """Without what stands between two names of the same thing, which are then one."""
    ends = (0, len(pieces) - 1)
    return [piece for i, piece in enumerate(pieces) if i in ends or not _SAME.fullmatch(piece)]


def _split(separator: re.Pattern[str], pieces: Pieces) -> list[Pieces]:
    """The parts of a text, each as the texts around its names."""
    parts: list[Pieces] = [[]]
    for piece in pieces:
        first, *others = separator.split(piece)
        parts[-1].append(first)
        parts += [[other] for other in others]
    return parts


def _is_free(before: str, after: str) -> bool:
    """Not part of a longer name: function words around it in English, or such characters in Chinese."""
    left = re.search(r"[a-z0-9']+$", before[-40:])
    if left:
        if left[0] not in _BEFORE_EN:
            return False
    elif (
        before
        and "一" <= before[-1] <= "鿿"
        and before[-1] not in _BEFORE_ZH
        and not _BEFORE_ZH_WORD.search(before[-2:])
    ):
        return False
    right = re.match(r"[a-z0-9']+", after)
    if right:
        return right[0] in _AFTER_EN
    return not (after and "一" <= after[0] <= "鿿" and after[0] not in _AFTER_ZH)


def _negated(before: str, after: str) -> bool:
    before, after = before[-60:], after[:40]
    return bool(_NEGATED_ZH.search(before) or _NEGATED_EN.search(before) or _NEGATED_AFTER.match(after))


def _bare_list(pieces: Pieces) -> bool:
    """Whether a name is in a row of bare names, as in "flu, asthma, gout" or one name a line."""
    entries = [[part.strip(_MARKS) for part in entry] for entry in _split(_ENTRY, pieces)]
    return ["", ""] in entries and any(_is_name(entry) for entry in entries if any(entry))


def _is_name(entry: Pieces) -> bool:
    """Whether an entry of a list is short and no prose."""
    text = "x".join(entry)
    return len(text) <= 30 and len(text.split()) <= 3 and not any(map(_PROSE.search, entry))


def _fold(text: str) -> str:
    text = re.sub("[-_ ]+", " ", normalize(text).casefold()).strip()
    return re.sub(r"(?<=\d) ?: ?(?=\d)", ":", text)  # a ratio
