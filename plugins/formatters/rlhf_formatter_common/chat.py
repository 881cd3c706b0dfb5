"""Formats with full conversations, and prompts with or without a completion."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rlhf_core import Example, Messages
from rlhf_formatter_common.dialogues import is_guanaco, marked_prompt
from rlhf_formatter_common.reading import (
    read_list,
    read_reply,
    read_text,
    read_turns,
    reference,
    with_system,
    with_thought,
    with_user,
)

SPOKEN = re.compile(r"\s*([问答])[：:]")


def messages(row: Mapping[str, Any]) -> Example:
    """All turns before the assistant's last one are the prompt."""
    return _conversation(row, read_turns(row["messages"], "messages"), "messages")


def sharegpt(row: Mapping[str, Any]) -> Example:
    """As `messages`, without the assistant's turns before the user's first, which answer nothing."""
    return _conversation(row, sharegpt_turns(row), "conversations")


def prompt(row: Mapping[str, Any]) -> Example:
    """A prompt alone, for methods that generate; `answer` is the reference for rewards."""
    return Example(prompt=marked_prompt(row), answer=reference(row))


def prompt_completion(row: Mapping[str, Any]) -> Example:
    """A prompt and the assistant's turns that follow it."""
    completion = with_thought(row, read_reply(row["completion"], "completion"))
    return Example(
        prompt=marked_prompt(row), completion=completion, answer=reference(row, completion[-1]["content"] or None)
    )


def text(row: Mapping[str, Any]) -> Example:
    """Plain text, all of which is learned, without a chat template, as in further pretraining."""
    return Example(prompt=[], text=read_text(row["text"], "text"))


def is_plain(row: Mapping[str, Any]) -> bool:
    """Whether the text is all that the row has to learn."""
    asked = ("prompt", "question", "problem", "instruction", "messages", "conversations", "chosen")
    return isinstance(row["text"], str) and not is_guanaco(row["text"]) and not any(name in row for name in asked)


def _conversation(row: Mapping[str, Any], turns: Messages, column: str) -> Example:
    turns = with_system(row, with_user(turns, column))
    columns = {}
    if row.get("functions") and not row.get("tools"):  # OpenAI's first name
        columns["tools"] = [{"type": "function", "function": each} for each in read_list(row["functions"], "functions")]
    if turns[-1]["role"] != "assistant":
        return Example(prompt=turns, answer=reference(row), columns=columns)
    answer = reference(row, turns[-1]["content"] or None)
    return Example(prompt=turns[:-1], completion=turns[-1:], answer=answer, columns=columns)


def sharegpt_turns(row: Mapping[str, Any]) -> Messages:
    """The turns of `conversations`, without the assistant's before the user's first."""
    turns = with_user(read_turns(row["conversations"], "conversations"), "conversations")
    first = next(i for i, turn in enumerate(turns) if turn["role"] == "user")
    return [turn for i, turn in enumerate(turns) if i > first or turn["role"] != "assistant"]


def huatuogpt(row: Mapping[str, Any]) -> Example:
    """A list of texts that begin with 问： and 答：, as HuatuoGPT-sft-data-v1 has it."""
    turns = []
    for text in read_list(row["data"], "data"):
        speaker = SPOKEN.match(read_text(text, "data"))
        if speaker is None:
            raise ValueError(f"data must have texts that begin with 问： or 答：, not {text!r}")
        turns.append({"role": "user" if speaker[1] == "问" else "assistant", "content": text[speaker.end() :].strip()})
    return _conversation(row, read_turns(turns, "data"), "data")


def is_spoken(value: Any) -> bool:
    """Whether `value` is a list of texts that begin with 问： and 答：."""
    return isinstance(value, list) and all(isinstance(text, str) and SPOKEN.match(text) for text in value)
