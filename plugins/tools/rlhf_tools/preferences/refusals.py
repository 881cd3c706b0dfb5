"""Answers that refuse to answer, by how they begin. Pure.

Conservative: only a short answer is a refusal, and only one that begins with an apology or with what it is, and then
says that it can't. An answer that says what it can't and helps all the same is none.
"""

from __future__ import annotations

import re

LONGEST = 300  # characters of a refusal: what is longer says more than that it refuses
_THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_MARKS = re.compile(r"^[\s<>/*#“\"'「]*(?:answer>)?\s*")
_OPENS = (
    r"(?:(?:i['’]?m|i am) (?:really |very |so )?sorry|sorry|i apologi[sz]e|unfortunately|"
    r"as an? (?:ai|artificial|large|language|assistant)\b[^.,]{0,60})[,.;:]?\s+(?:but\s+)?(?:as an? [^.,]{1,60},\s+)?"
)
_CANNOT = (
    r"i\s*(?:can(?:no|['’])?t|can not|won['’]?t|will not|(?:am|['’]m) (?:not able|unable|not allowed)|"
    r"(?:must|have to) decline)\b"
)
_HELP = (
    r"(?:help|assist|answer|provide|comply|do that|fulfil|fulfill|discuss|give|offer|support|engage|create|generate|"
    r"write|diagnose)\b"
)
_ENGLISH = re.compile(
    rf"{_OPENS}{_CANNOT}[^.]{{0,40}}?\b{_HELP}|"
    rf"{_CANNOT} (?:to )?{_HELP} (?:you )?(?:with )?(?:that|this|your request)\b",
    re.IGNORECASE,
)
_CHINESE = re.compile(
    r"(?:我?(?:感到)?(?:非常|很|十分)?(?:抱歉|对不起|不好意思)|作为(?:一个|一名)?(?:人工智能|AI|ＡＩ|大?语言模型|智能助手)[^。，,]{0,20})"
    r"[^。！]{0,12}?(?:无法|不能|不会|没有办法|没办法|不便)(?:为您|为你|帮您|帮你|给您|给你|向您|向你)?"
    r"(?:提供|回答|协助|帮助|满足|完成|讨论|处理|给出|生成|继续)"
)


def is_refusal(text: str) -> bool:
    """Whether an answer does nothing but refuse. A thought before it does not count."""
    if len(text) > LONGEST and "</think>" not in text:
        return False
    said = _MARKS.sub("", _THOUGHT.sub("", text, count=1), count=1).strip()
    if not said or len(said) > LONGEST:
        return False
    return bool(_ENGLISH.match(said) or _CHINESE.match(said))
