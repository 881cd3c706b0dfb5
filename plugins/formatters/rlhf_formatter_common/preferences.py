"""Formats with a chosen and a rejected answer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlhf_core import Example, Messages, NothingToLearn
from rlhf_formatter_common.chat import sharegpt_turns
from rlhf_formatter_common.dialogues import HH, OASST, dialogue, dialogue_prompt
from rlhf_formatter_common.questions import instruction_prompt
from rlhf_formatter_common.reading import (
    as_reply,
    assistant,
    is_conversation,
    question_prompt,
    read_list,
    read_prompt,
    read_reply,
    read_text,
    read_turns,
    with_system,
)


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
    said = str(row[verdict]).strip().lower().removesuffix(".0")  # a column with gaps is read as decimals
    better = VERDICTS[verdict].get(said)
    if better is None and said in TIES:
        raise NothingToLearn(f"{verdict} {row[verdict]!r} says that neither of {first} and {second} is better")
    if better is None:
        raise ValueError(f"{verdict} is {row[verdict]!r}, not one of {', '.join(VERDICTS[verdict])}")
    return _pair(row, dialogue_prompt(row), *((first, second) if better == 0 else (second, first)))


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
        raise NothingToLearn(f"all answers in {name} have the same {score}")
    best, worst = (answers[values.index(extreme(values))][text] for extreme in (max, min))
    chosen, rejected = ([assistant(read_text(value, f"{name}: {text}").strip())] for value in (best, worst))
    return Example(prompt=dialogue_prompt(row), chosen=chosen, rejected=rejected)


def response_preference(row: Mapping[str, Any]) -> Example:
    """A prompt with `response`, the chosen one, and `rejected_response`, as ms-swift has them."""
    return _pair(row, read_prompt(row), "response", "rejected_response")


def openai_preference(row: Mapping[str, Any]) -> Example:
    """OpenAI's files for DPO: the conversation in `input`, a preferred and a non-preferred output."""
    given = row["input"]
    if not isinstance(given, Mapping) or "messages" not in given:
        raise ValueError("input must be {messages: […]}")
    example = _pair(row, read_turns(given["messages"], "input"), "preferred_output", "non_preferred_output")
    if given.get("tools"):
        example.columns["tools"] = given["tools"]
    return example


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


# Two answers, and what says which is better: 0 is the first, 1 the second.
COMPARED = (
    *(("response_0", "response_1"), ("response_1", "response_2"), ("response1", "response2")),
    *(("response_a", "response_b"), ("answer_a", "answer_b"), ("human_ref_A", "human_ref_B")),
)
BY_NUMBER = {"0": 0, "1": 1}
BY_NAME = {"a": 0, "b": 1, "model_a": 0, "model_b": 1, "response_a": 0, "response_b": 1}
BY_STRENGTH = {**{f"-{i}": 0 for i in (1, 2, 3)}, **{str(i): 1 for i in (1, 2, 3)}}
TIES = ("0", "tie", "tie (bothbad)", "both", "neither", "none", "equal", "same", "skip")
VERDICTS: Mapping[str, Mapping[str, int]] = {
    "better_response_id": BY_NUMBER,  # PKU-SafeRLHF
    "overall_preference": BY_STRENGTH,  # HelpSteer 3
    "preference_strength": BY_STRENGTH,  # HelpSteer 2
    "labels": {"1": 0, "0": 1},  # SHP: 1 if the first is better
    "winner": BY_NAME,
    "better": BY_NAME,
    "preferred": BY_NAME,
}
ANSWER_LISTS = ("completions", "answers", "responses")
ANSWER_TEXTS = ("response", "answer", "text", "content", "completion")
SCORES = {"overall_score": 1, "score": 1, "rating": 1, "fine-grained_score": 1, "rank": -1}


def is_compared(row: Mapping[str, Any]) -> bool:
    """Whether the row has two answers and says which is better."""
    return _compared_columns(row) is not None and _first(row, VERDICTS) is not None


def safety(rows: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], str]:
    """Say where the answer that is chosen for its help is not the safer one, as in PKU-SafeRLHF."""
    both = [row for row in rows if None not in (row.get("better_response_id"), row.get("safer_response_id"))]
    differ = sum(row["better_response_id"] != row["safer_response_id"] for row in both)
    said = f"safer_response_id says the other one in {differ:,} of {len(both):,} rows, and chooses with"
    way = 'FILE:columns={"better_response_id": "safer_response_id"}'
    return {}, f"better_response_id says which answer is chosen; {said} {way}" if differ else ""


def is_ranked(row: Mapping[str, Any]) -> bool:
    """Whether the row has a list of answers with a score or a rank each."""
    lists = [row[name] for name in ANSWER_LISTS if isinstance(row.get(name), list)]
    return len(lists) == 1 and len(lists[0]) > 1 and _ranking(lists[0]) is not None


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
    turns = dialogue(text, marker, "prompt")
    if turns[-1]["role"] != "user":
        raise ValueError("prompt ends with the assistant's turn, so chosen and rejected can't be replies to it")
    chosen, rejected = (read_text(row[column], column).strip() for column in ("chosen", "rejected"))
    return Example(prompt=with_system(row, turns), chosen=[assistant(chosen)], rejected=[assistant(rejected)])


def _hh_turns(row: Mapping[str, Any], column: str) -> Messages:
    return dialogue(read_text(row[column], column), HH, column)
