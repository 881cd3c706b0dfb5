"""What a chat template does by itself, whatever the rows: found by rendering turns without a meaning, once."""

from __future__ import annotations

import os
import re

from rlhf_core.data.chat_template import MARK, MARKUP, ChatTemplate
from rlhf_core.errors import UserError


def own_text(template: ChatTemplate) -> str:
    """What the template says before a first question without a system message: one of its own, or an instruction."""
    asked = {"role": "user", "content": MARK}
    parts = _rendered(template, [asked, {"role": "assistant", "content": MARK}, asked]).split(MARK)
    if len(parts) != 4:
        return ""
    # What stands before the second question as well begins a turn.
    first, second = (MARKUP.sub("\n", template.special.sub("\n", part)) for part in (parts[0], parts[2]))
    reversed_both = [re.sub(r"\d", "0", text)[::-1] for text in (first, second)]  # turns may be numbered
    shared = len(os.path.commonprefix(reversed_both))  # noqa: RUF071 (not of paths)
    text = re.sub(r"^\W*system\b\W*", "", first[: len(first) - shared], flags=re.I)
    return " ".join(text.split()) if any(map(str.isalpha, text)) else ""


def end_as_text(template: ChatTemplate) -> str:
    """The markup that the template ends an answer with, if it is text to the tokenizer and no token."""
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": MARK}]
    found = MARKUP.match(_rendered(template, turns).rpartition(MARK)[2].lstrip())
    return found.group() if found and len(template.ids(found.group())) > 1 else ""


def start_left_out(template: ChatTemplate) -> str:
    """The token that the tokenizer begins texts with, if the template does not."""
    tokenizer = template.tokenizer
    prompt = template.ids(_rendered(template, [{"role": "user", "content": "?"}]))
    start = tokenizer("")["input_ids"][:1]
    begins = start and start == [tokenizer.bos_token_id]
    return str(tokenizer.bos_token) if begins and prompt and prompt[:1] != start else ""


def starts_twice(template: ChatTemplate, text: str) -> bool:
    """Whether rendered text begins with the token that begins texts, and once more."""
    start = template.tokenizer.bos_token
    return bool(start) and re.match(rf"(?:\s*{re.escape(start)}){{2}}", text) is not None


def _rendered(template: ChatTemplate, turns: list[dict[str, str]]) -> str:
    """The conversation; "" where the template refuses it."""
    try:
        return template.conversation(turns)
    except UserError:
        return ""


def date_of_today(template: ChatTemplate) -> str:
    """What to say of a template that writes the date of the day on which it renders."""
    if not template.names("strftime_now") or "date_string" in template.kwargs:
        return ""
    text = "writes the date of today into prompts: tomorrow they are others, also those of a run that is resumed"
    if template.names("date_string"):
        text += """. To have one date: --chat-template-kwargs '{"date_string": "26 Jul 2024"}'"""
    return text
