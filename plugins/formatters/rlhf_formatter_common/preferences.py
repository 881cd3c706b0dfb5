"""Formats with a chosen and a rejected answer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from rlhf_core import Example, Messages
from rlhf_formatter_common.chat import (
    as_reply,
    assistant,
    is_conversation,
    question_prompt,
    read_list,
    read_prompt,
    read_reply,
    read_text,
    read_turns,
    sharegpt_turns,
    with_system,
)
from rlhf_formatter_common.questions import instruction_prompt


def preference(row: Mapping[str, Any]) -> Example:
    """A question with a chosen and a rejected response."""
    prompt = question_prompt(row, read_text(row["question"], "question"))
    return _pair(row, prompt, "response_chosen", "response_rejected")


def prompt_preference(row: Mapping[str, Any]) -> Example:
    """Replies to `prompt`. Where `chosen` is the conversation from its start, the prompt is read from there."""
    if not is_conversation(row["chosen"]) or read_turns(row["chosen"], "chosen")[0]["role"] == "assistant":
        return _pair(row, read_prompt(row))
    if is_conversation(row["prompt"]) and (first := read_prompt(row)[0])["role"] == "system":
        return _split({"system": first["content"]}, *_both(row))
    return implicit_preference(row)


def implicit_preference(row: Mapping[str, Any]) -> Example:
    """Two conversations; the prompt is what they share, up to a user's turn."""
    return _split(row, *_both(row))


def rejected_response(row: Mapping[str, Any]) -> Example:
    """A conversation whose last answer is the chosen one; the rejected one is a reply, or a conversation as well."""
    turns, rejected = read_turns(row["messages"], "messages"), row["rejected_response"]
    if is_conversation(rejected) and read_turns(rejected, "rejected_response")[0]["role"] != "assistant":
        return _split(row, turns, read_turns(rejected, "rejected_response"))
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
    chosen = as_reply(turns[last + 1 :], "messages")
    prompt = with_system(row, turns[: last + 1])
    return Example(prompt=prompt, chosen=chosen, rejected=read_reply(rejected, "rejected_response"))


def compared(row: Mapping[str, Any]) -> Example:
    """Two answers and which one is better: its number or name, or a preference below 0 for the first."""
    pair, verdict = _compared_columns(row), _first(row, VERDICTS)
    if pair is None or verdict is None:
        raise ValueError(
            f"the row has no two answers (response_0, response_1, …) or no verdict ({', '.join(VERDICTS)})"
        )
    first, second = pair
    better = VERDICTS[verdict].get(str(row[verdict]).strip().lower())
    if better is None:
        raise ValueError(f"{verdict} {row[verdict]!r} says that neither of {first} and {second} is better")
    return _pair(row, _dialogue_prompt(row), *((first, second) if better == 0 else (second, first)))


def ranked(row: Mapping[str, Any]) -> Example:
    """Answers with a score or a rank each: the best is the chosen one, the worst the rejected one."""
    name = _first(row, ANSWER_LISTS)
    answers = read_list(row[name], name) if name else []
    ranking = _ranking(answers)
    if ranking is None:
        raise ValueError(f"none of {', '.join(ANSWER_LISTS)} is a list of answers with a score or a rank each")
    text, score, sign = ranking
    values = [sign * float(answer[score]) for answer in answers]
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{name}: {score} must be a number in all answers")
    if max(values) == min(values):
        raise ValueError(f"all answers in {name} have the same {score}")
    best, worst = (answers[values.index(extreme(values))][text] for extreme in (max, min))
    chosen, rejected = ([assistant(read_text(value, f"{name}: {text}").strip())] for value in (best, worst))
    return Example(prompt=_dialogue_prompt(row), chosen=chosen, rejected=rejected)


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
# Two answers, and what says which is better: 0 is the first, 1 the second.
COMPARED = (
    *(("response_0", "response_1"), ("response_1", "response_2"), ("response1", "response2")),
    *(("response_a", "response_b"), ("answer_a", "answer_b"), ("human_ref_A", "human_ref_B")),
)
BY_NUMBER = {"0": 0, "1": 1}
BY_NAME = {"a": 0, "b": 1, "model_a": 0, "model_b": 1, "response_a": 0, "response_b": 1}
VERDICTS: Mapping[str, Mapping[str, int]] = {
    "better_response_id": BY_NUMBER,  # PKU-SafeRLHF
    "overall_preference": {**{f"-{i}": 0 for i in (1, 2, 3)}, **{str(i): 1 for i in (1, 2, 3)}},  # HelpSteer3
    "labels": {"1": 0, "0": 1},  # SHP: 1 if the first is better
    "winner": BY_NAME,
    "better": BY_NAME,
    "preferred": BY_NAME,
}
ANSWER_LISTS = ("completions", "answers", "responses")
ANSWER_TEXTS = ("response", "answer", "text", "content", "completion")
SCORES = {"overall_score": 1, "score": 1, "rating": 1, "fine-grained_score": 1, "rank": -1}
SPEAKERS = {"Human": "user", "prompter": "user", "Assistant": "assistant", "assistant": "assistant"}


def is_hh(value: Any) -> bool:
    """Whether a dialogue of Human and Assistant begins here."""
    return isinstance(value, str) and HH.match(value) is not None


def is_compared(row: Mapping[str, Any]) -> bool:
    """Whether the row has two answers and says which is better."""
    return _compared_columns(row) is not None and _first(row, VERDICTS) is not None


def is_ranked(row: Mapping[str, Any]) -> bool:
    """Whether the row has a list of answers with a score or a rank each."""
    lists = [row[name] for name in ANSWER_LISTS if isinstance(row.get(name), list)]
    return len(lists) == 1 and len(lists[0]) > 1 and _ranking(lists[0]) is not None


def is_oasst(value: Any) -> bool:
    """Whether a dialogue of prompter and assistant begins here, which the prompter always does."""
    return isinstance(value, str) and value.lstrip().startswith("prompter:")


def _both(row: Mapping[str, Any]) -> tuple[Messages, Messages]:
    return read_turns(row["chosen"], "chosen"), read_turns(row["rejected"], "rejected")


def _compared_columns(row: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in COMPARED if all(row.get(name) is not None for name in pair)), None)


def _first(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first of these columns that the row has."""
    return next((name for name in names if row.get(name) is not None), None)


def _ranking(answers: list[Any]) -> tuple[str, str, int] | None:
    """(the key of the text, the key of the score, 1 if more is better) in all answers."""
    if not answers or not all(isinstance(answer, Mapping) for answer in answers):
        return None
    keys = set.intersection(*({key for key, value in answer.items() if value is not None} for answer in answers))
    text, score = (next((name for name in names if name in keys), None) for names in (ANSWER_TEXTS, SCORES))
    return (text, score, SCORES[score]) if text and score else None


def _dialogue_prompt(row: Mapping[str, Any]) -> Messages:
    """`prompt` as messages, also if it is a dialogue of Human and Assistant in text."""
    if not is_hh(row["prompt"]):
        return read_prompt(row)
    text = str(row["prompt"]).rstrip().removesuffix("Assistant:")
    return with_system(row, _dialogue(text, HH, "prompt"))


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
