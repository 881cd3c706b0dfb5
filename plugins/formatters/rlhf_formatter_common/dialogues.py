"""Dialogues in one text, whose turns begin with the name of a speaker."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rlhf_core import Example, Messages
from rlhf_formatter_common.reading import read_prompt, read_text, reference, with_system

HH = re.compile(r"(?:^\s*|\n\n)(Human|Assistant):")
OASST = re.compile(r"(?:^\s*|\n)(prompter|assistant):")
GUANACO = re.compile(r"(?:^\s*|\n?)### ?(Human|Assistant):")
HELPSTEER = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
SPEAKERS = {
    **dict.fromkeys(("Human", "prompter", "User"), "user"),
    **dict.fromkeys(("Assistant", "assistant"), "assistant"),
}


def guanaco(row: Mapping[str, Any]) -> Example:
    """A dialogue of `### Human: …` and `### Assistant: …`, as timdettmers/openassistant-guanaco has it."""
    turns = with_system(row, dialogue(read_text(row["text"], "text"), GUANACO, "text"))
    if turns[-1]["role"] == "user":
        return Example(prompt=turns, answer=reference(row))
    return Example(prompt=turns[:-1], completion=turns[-1:], answer=reference(row, turns[-1]["content"]))


def is_hh(value: Any) -> bool:
    """Whether a dialogue of Human and Assistant begins here."""
    return isinstance(value, str) and HH.match(value) is not None


def is_guanaco(value: Any) -> bool:
    """Whether a dialogue of ### Human and ### Assistant begins here."""
    return isinstance(value, str) and value.lstrip().startswith(("### Human:", "###Human:"))


def is_oasst(value: Any) -> bool:
    """Whether a dialogue of prompter and assistant begins here, which the prompter always does."""
    return isinstance(value, str) and value.lstrip().startswith("prompter:")


def dialogue_prompt(row: Mapping[str, Any]) -> Messages:
    """`prompt` as messages, also if it is a dialogue of Human and Assistant in text."""
    if not is_hh(row["prompt"]):
        return marked_prompt(row)
    return with_system(row, dialogue(row["prompt"].rstrip().removesuffix("Assistant:"), HH, "prompt"))


def marked_prompt(row: Mapping[str, Any]) -> Messages:
    """`prompt` as messages, also if it is a dialogue in text with NeMo's marks, as HelpSteer 2 has them."""
    text = row["prompt"]
    if isinstance(text, str) and HELPSTEER.search(text):
        started = text if HELPSTEER.match(text) else f"<extra_id_1>User\n{text}"
        return with_system(row, dialogue(started.rstrip().removesuffix("<extra_id_1>Assistant"), HELPSTEER, "prompt"))
    return read_prompt(row)


def dialogue(text: str, marker: re.Pattern[str], column: str) -> Messages:
    """Turns of a dialogue in text. Consecutive turns of one speaker are joined: chat templates want speakers to
    alternate.

    An empty turn is dropped, as published data has some, unless it is the last: then the answer is missing.
    """
    before, *parts = marker.split(text)
    if before.strip() or not parts:
        raise ValueError(f"{column} does not begin with the name of a speaker")
    if not parts[-1].strip():
        raise ValueError(f"{column} ends with an empty turn")
    turns: Messages = []
    for name, part in zip(parts[::2], parts[1::2], strict=True):
        role, content = SPEAKERS[name], part.strip()
        if content and turns and turns[-1]["role"] == role:
            turns[-1] = {"role": role, "content": f"{turns[-1]['content']}\n\n{content}"}
        elif content:
            turns.append({"role": role, "content": content})
    return turns
