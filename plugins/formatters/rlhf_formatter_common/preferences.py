"""Formats with a chosen and a rejected answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rlhf_core import Example, Messages
from rlhf_formatter_common.chat import (
    as_reply,
    assistant,
    is_conversation,
    read_prompt,
    read_reply,
    read_text,
    read_turns,
    sharegpt_turns,
    with_system,
)
from rlhf_formatter_common.questions import instruction_prompt, question_prompt


def preference(row: Mapping[str, Any]) -> Example:
    """A question with a chosen and a rejected response."""
    prompt = question_prompt(row, read_text(row["question"], "question"))
    return _pair(row, prompt, "response_chosen", "response_rejected")


def prompt_preference(row: Mapping[str, Any]) -> Example:
    """Replies to `prompt`. Where `chosen` is the conversation from its start, the prompt is read from there."""
    if not is_conversation(row["chosen"]) or read_turns(row["chosen"], "chosen")[0]["role"] == "assistant":
        return _pair(row, read_prompt(row))
    if is_conversation(row["prompt"]) and (first := read_prompt(row)[0])["role"] == "system":
        row = {**row, "system": first["content"]}
    return implicit_preference(row)


def implicit_preference(row: Mapping[str, Any]) -> Example:
    """Two conversations; the prompt is what they share, up to a user's turn."""
    return _split(row, read_turns(row["chosen"], "chosen"), read_turns(row["rejected"], "rejected"))


def sharegpt_preference(row: Mapping[str, Any]) -> Example:
    """Replies to `conversations`."""
    return _pair(row, with_system(row, sharegpt_turns(row)))


def alpaca_preference(row: Mapping[str, Any]) -> Example:
    """Replies to an instruction with an input."""
    return _pair(row, instruction_prompt(row))


def hh(row: Mapping[str, Any]) -> Example:
    """Two dialogues in text, as Anthropic/hh-rlhf has them."""
    return _split(row, _hh_turns(row, "chosen"), _hh_turns(row, "rejected"))


def full_hh(row: Mapping[str, Any]) -> Example:
    """A dialogue in text that ends before the assistant's answer, as Dahoas/full-hh-rlhf has it."""
    return _replies_to_dialogue(row, read_text(row["prompt"], "prompt").rstrip().removesuffix("Assistant:"), HH)


def oasst_pairwise(row: Mapping[str, Any]) -> Example:
    """Turns marked `prompter:` and `assistant:`, as tasksource/oasst1_pairwise_rlhf_reward has them."""
    return _replies_to_dialogue(row, read_text(row["prompt"], "prompt"), OASST)


HH = re.compile(r"(?:^\s*|\n\n)(Human|Assistant):")
OASST = re.compile(r"(?:^\s*|\n)(prompter|assistant):")
SPEAKERS = {"Human": "user", "prompter": "user", "Assistant": "assistant", "assistant": "assistant"}


def is_hh(value: Any) -> bool:
    """Whether a dialogue of Human and Assistant begins here."""
    return isinstance(value, str) and HH.match(value) is not None


def is_oasst(value: Any) -> bool:
    """Whether a dialogue of prompter and assistant begins here, which the prompter always does."""
    return isinstance(value, str) and value.lstrip().startswith("prompter:")


def _pair(row: Mapping[str, Any], prompt: Messages, chosen: str = "chosen", rejected: str = "rejected") -> Example:
    return Example(prompt=prompt, chosen=read_reply(row[chosen], chosen), rejected=read_reply(row[rejected], rejected))


def _split(row: Mapping[str, Any], chosen: Messages, rejected: Messages) -> Example:
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and chosen[shared - 1]["role"] != "user":
        shared -= 1
    if not shared:
        raise ValueError("chosen and rejected must begin with the same prompt, but they have no user's turn in common")
    return Example(
        prompt=with_system(row, chosen[:shared]),
        chosen=as_reply(chosen[shared:], "chosen"),
        rejected=as_reply(rejected[shared:], "rejected"),
    )


def _replies_to_dialogue(row: Mapping[str, Any], text: str, marker: re.Pattern[str]) -> Example:
    """Replies in text, stripped: the published ones begin with a space."""
    turns = _dialogue(text, marker, "prompt")
    if turns[-1]["role"] != "user":
        raise ValueError("prompt ends with the assistant's turn, so chosen and rejected can't be replies to it")
    chosen, rejected = (read_text(row[column], column).strip() for column in ("chosen", "rejected"))
    return Example(prompt=with_system(row, turns), chosen=[assistant(chosen)], rejected=[assistant(rejected)])


def _hh_turns(row: Mapping[str, Any], column: str) -> Messages:
    return _dialogue(read_text(row[column], column), HH, column)


def _dialogue(text: str, marker: re.Pattern[str], column: str) -> Messages:
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
