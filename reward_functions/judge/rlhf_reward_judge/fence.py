"""Text that is judged, as data: what speaks to the judge from inside it must neither be hidden nor look like a frame.

A fenced text stands between two lines with an id that no text inside has:

    <<<ANSWER 5b0c2f9d41e7>>>
    …
    <<<END ANSWER 5b0c2f9d41e7>>>

The id is a hash of the texts, so that the same question and answer make the same prompt, which the cache knows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

LONGEST = 32_000  # characters of one text that the judge sees
ID = 12  # hexadecimal digits

# Not drawn by a screen: format characters, fillers, variation selectors, tags, and controls but for tab and line feed.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff]+"
)
# Within emoji, Persian and Indian words they are usual; taken out, nothing can hide between them.
_USUAL = frozenset("\xad\u200c\u200d\ufe0e\ufe0f")

_ANGLES = re.compile(r"[<＜‹]{3,}|[>＞›]{3,}")
_COMMENT = re.compile(r"<!--|-->")
_BARS = re.compile(r"<(?=[|｜])|(?<=[|｜])>")
_WORDS = "bos|eos|s|pad|unk|mask|sys|think|thinking|system|user|assistant|human|instructions?|tool_calls?|tool_response"
_TOKEN = re.compile(rf"<<?/?(?:{_WORDS}|(?:start|end)_of_(?:turn|text|role)|begin_of_\w{{1,20}})>>?", re.IGNORECASE)
_BRACKETS = re.compile(
    r"\[(/?(?:INST|SYS|SYSTEM|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS))\]", re.IGNORECASE
)
_ROLE = re.compile(
    r"^([^\S\n]*[#>*]*[^\S\n]*)(system|developer|assistant|user|human|judge|grader|instructions?|系统|开发者|助手|用户|评委|裁判|评分员|指令)"
    r"(?=\*{0,2}[^\S\n]*[:：])",
    re.IGNORECASE | re.MULTILINE,
)
_HTML = str.maketrans("<>＜＞", "‹›‹›")


def plain(text: str) -> str:
    """`text` with what nobody sees made visible, and with the signs of a prompt's own frame broken."""
    text = text.encode("utf-8", "replace").decode().replace("\r\n", "\n")
    text = _UNSEEN.sub(_seen, text[: LONGEST + 1000])
    for pattern in (_ANGLES, _COMMENT, _BARS, _TOKEN):
        text = pattern.sub(lambda found: found[0].translate(_HTML), text)
    text = _BRACKETS.sub(r"(\1)", text)
    return _ROLE.sub(r'\1"\2"', text)


def _seen(found: re.Match[str]) -> str:
    characters = found[0]
    if set(characters) <= _USUAL and len(characters) <= 2:
        return ""
    more = f" and {len(characters) - 1} more" if len(characters) > 1 else ""
    return f"[U+{ord(characters[0]):04X}{more}]"


def shortened(text: str) -> str:
    """The beginning of a text that is longer than a judge is given, with how much is left out."""
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}\n[… {len(text) - LONGEST:,} characters more]"


def fenced(texts: Mapping[str, str]) -> tuple[str, str]:
    """(the id, all texts between marks with their names): `{"QUESTION": …, "ANSWER": …}`."""
    safe = {name: plain(shortened(text)) for name, text in texts.items()}
    together = "\0".join(part for pair in safe.items() for part in pair)
    mark = ""
    while not mark or mark in together:
        mark = hashlib.sha256(f"{mark}\0{together}".encode()).hexdigest()[:ID]
    blocks = [f"<<<{name} {mark}>>>\n{text}\n<<<END {name} {mark}>>>" for name, text in safe.items()]
    return mark, "\n\n".join(blocks)


def without_thought(answer: str) -> str:
    """What users see of an answer: all but the thought that it begins with, which a chat template may have opened;
    nothing where that never ends. Tags further on hide nothing.
    """
    thought, ended, after = answer.partition("</think>")
    opened = "<think>" in thought
    if opened and not thought.lstrip().startswith("<think>"):  # something is seen before it
        return answer.strip()
    return after.strip() if ended else "" if opened else answer.strip()
