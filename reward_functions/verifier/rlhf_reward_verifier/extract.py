"""Find the final answer in a completion.

It is the last `<answer>` block; failing that the last `\\boxed{}`, the last `####` line, what follows the last cue such
as "the answer is" or `诊断：`, or the last sentence. Text inside `<think>` is never the answer.
"""

from __future__ import annotations

import re
import unicodedata

LIMIT = 4000  # characters; nothing longer is an answer; patterns below get at most this much text

# NFKC would turn x² into x2 and 5½ into 51/2.
_RAISED = re.compile("⁻?[⁰¹²³⁴-⁹]+")
_SIGNS = dict(zip(map(ord, "−–‒‐‑⁄∕’‘“”×·÷"), "-----//''\"\"**/", strict=True))
_FRACTION_SIGNS = [*range(0xBC, 0xBF), *range(0x2150, 0x215F)]
_FRACTIONS = {code: f" {unicodedata.normalize('NFKC', chr(code))}" for code in _FRACTION_SIGNS}
_TRANSLATION = _SIGNS | _FRACTIONS

_BOLD = re.compile(r"(?<![\w)])\*\*|\*\*(?![\w(])|__(?=\s|$)|(?<!\S)__")
_SPACES = re.compile(r"[^\S\n]{2,}")
_BREAKS = re.compile(r"\s?\n\s+")
_SENTENCE_END = re.compile(r"[。!?;\n]|\.(?=\s|$)")
_STATEMENT_END = re.compile(r"[。!\n]|\.(?=\s|$)")  # what follows `;` or `?` may be a second answer
_RETRACTED = re.compile(r"\b(?:wait|actually|correction|no, it|let me re)|不对|更正|等等|重新", re.IGNORECASE)

_IS = r"(?:(?:\s+(?:is|was|should\s+be|would\s+be|must\s+be))\b\s*:?|\s*[:=])"
_SHI = r"\s*(?:应该?|就|只能)?(?:[是为选]\s*[:=]?|[:=])"
CUES = {
    "answer": rf"\b(?:answer|final\s+result|conclusion|correct\s+(?:option|choice)){_IS}|(?:答案|结论|选项){_SHI}"
    r"|(?<![不别没])选择?(?=\s*[:(]?\s*[A-E](?![a-zA-Z]))",
    "diagnosis": rf"\b(?<!differential )(?:diagnosis|disease|illness|impression){_IS}"
    r"|(?<!鉴别)(?:诊断|疾病|病名)" + _SHI,
    "department": rf"\b(?:department|specialty){_IS}|(?:科室|挂号){_SHI}",
}
_CUE = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in CUES.items()), re.IGNORECASE)


def final_answer(completion: str) -> str:
    """The answer as normalized text, with its cues; empty where none is given."""
    spoken = _spoken(completion)
    block = _after_last(spoken, "<answer>")
    if block is not None:
        block = block.partition("</answer>")[0]
        return _marked(block) if len(block) <= LIMIT else ""
    text = _marked(spoken)
    found = stated(text)
    return text if found and not _withdrawn(text) else _last_sentence(text)


def stated(text: str) -> dict[str, str]:
    """What follows the last cue of each family (answer, diagnosis, department), to the end of its sentence."""
    found: dict[str, str] = {}
    for cue in reversed(list(_CUE.finditer(text))):
        if cue.lastgroup and cue.lastgroup not in found:
            value = _STATEMENT_END.split(text[cue.end() :].lstrip(), maxsplit=1)[0].strip()
            found |= {cue.lastgroup: value} if value else {}
    return found


def normalize(text: str) -> str:
    """One form for full-width and half-width, quotes, dashes, raised digits and white space; bold marks go."""
    text = _RAISED.sub(r"^\g<0>", text).translate(_TRANSLATION)
    text = unicodedata.normalize("NFKC", text).translate(_SIGNS)
    text = text.replace("<=", "≤").replace(">=", "≥").replace("!=", "≠")
    return one_space(_BOLD.sub("", text)).strip()


def one_space(text: str) -> str:
    """Runs of white space become one space or line break: patterns take quadratic time on them."""
    return _BREAKS.sub("\n", _SPACES.sub(" ", text))


def _spoken(text: str) -> str:
    """The text without its thinking; an `<answer>` inside thinking that never ends counts as spoken."""
    *thought, rest = text.split("</think>")
    said, _, thinking = rest.partition("<think>")
    _, opened, block = thinking.partition("<answer>")
    said += opened + block
    # Before `</think>` without `<think>` everything is thinking: the prompt had opened it.
    return "".join(part.partition("<think>")[0] for part in thought if "<think>" in part) + said


def _marked(text: str) -> str:
    """The text in the last `\\boxed{}` or after the last `####`, else all of it, or its end if it is long."""
    boxed = _after_last(text, "\\boxed{")
    if boxed is not None:
        return normalize(_until_closed(boxed[:LIMIT]))
    line = _after_last(text, "####")
    if line is not None:
        line, _, more = line[:LIMIT].strip().partition("\n")
        # A Markdown heading looks the same, but text follows it.
        if not more.strip() or any(map(str.isdigit, line)):
            return normalize(line)
    return normalize(text[-LIMIT:])


def _until_closed(text: str) -> str:
    depth = 1
    for i, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:i]
    return text.partition("\n")[0]


def _withdrawn(text: str) -> bool:
    """Whether the last cue's sentence is followed by a change of mind."""
    last = list(_CUE.finditer(text))[-1].end()
    return bool(_RETRACTED.search(text, last))


def _last_sentence(text: str) -> str:
    return next((part.strip() for part in reversed(_SENTENCE_END.split(text)) if part.strip()), "")


def _after_last(text: str, mark: str) -> str | None:
    start = text.rfind(mark)
    return None if start < 0 else text[start + len(mark) :]
