"""What all formats share: how turns, texts and lists in a row are read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from rlhf_core import Messages, UserError, parse_json

ROLES = {
    **{role: role for role in ("system", "user", "assistant", "tool")},
    # What LLaMA-Factory, ms-swift and OpenAI call the call of a tool and its answer.
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("observation", "tool_response", "function"), "tool"),
}
CALLS = ("function_call", "tool_call")
SHAREGPT_ROLES = {
    **ROLES,
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bard", "bing", "model"), "assistant"),
}
THOUGHTS = ("reasoning_content", "Complex_CoT", "complex_cot")  # columns of a thought before the answer

LEARNED = ("loss", "train", "training")  # names of `weight` in other data: ms-swift, Axolotl
# What data in {role, content} calls roles that chat templates do not know by that name.
MEANT = {
    "system": ("system", "developer", "instruction"),
    "user": ("user", "human", "prompter", "question", "patient"),
    "assistant": ("assistant", "bot", "ai", "gpt", "chatgpt", "bing", "bard", "model", "answer", "doctor"),
}


def question_prompt(row: Mapping[str, Any], question: str) -> Messages:
    """Optional system message, optional history of (user, assistant) pairs or of turns, then the question."""
    turns: Messages = []
    given = [] if is_blank(row.get("history")) else read_list(row["history"], "history")
    if given and is_conversation(given):
        return with_system(row, [*read_turns(given, "history"), user(question)])
    for turn in given:
        pair = [] if isinstance(turn, str | Mapping) else read_list(turn, "history")
        if len(pair) != 2:
            raise ValueError(f"history must have [question, answer] pairs, not {turn!r}")
        turns += [user(read_text(pair[0], "history")), assistant(read_text(pair[1], "history"))]
    return with_system(row, [*turns, user(question)])


def read_prompt(row: Mapping[str, Any]) -> Messages:
    """`prompt` as messages, whether it is text or messages; text is one user message."""
    value = row["prompt"]
    if is_conversation(value):
        return with_system(row, read_turns(value, "prompt"))
    return question_prompt(row, read_text(value, "prompt"))


def read_reply(value: Any, column: str) -> Messages:
    """The assistant's turns: text, one turn, or a list of turns that begins with the assistant's."""
    if not (is_conversation(value) or isinstance(value, Mapping)):
        return [assistant(read_text(value, column))]
    return as_reply(read_turns([value] if isinstance(value, Mapping) else value, column), column)


def as_reply(turns: Messages, column: str) -> Messages:
    """`turns`, which must begin and end with the assistant's."""
    if not turns or turns[0]["role"] != "assistant" or turns[-1]["role"] != "assistant":
        found = ", ".join(turn["role"] for turn in turns) or "no turns"
        raise ValueError(f"the reply in {column} must begin and end with the assistant's turn, not: {found}")
    return turns


def with_thought(row: Mapping[str, Any], turns: Messages) -> Messages:
    """`turns`, the first with the thought that a column has."""
    thought = next((row[name] for name in THOUGHTS if not is_blank(row.get(name))), None)
    if thought is None or "reasoning_content" in turns[0]:
        return turns
    return [{**turns[0], "reasoning_content": read_text(thought, "reasoning_content")}, *turns[1:]]


def with_user(turns: Messages, column: str) -> Messages:
    """`turns`, which must have one of the user's."""
    if not any(turn["role"] == "user" for turn in turns):
        raise ValueError(f"{column} has no turn with the role 'user'")
    return turns


def read_turns(value: Any, column: str) -> Messages:
    """Turns as `{role, content}` or `{from, value}`. An empty system turn is dropped."""
    turns = [_turn(turn, column) for turn in read_list(value, column) if not _is_empty_system(turn)]
    if not turns:
        raise ValueError(f"{column} is empty")
    return turns


def _turn(turn: Any, column: str) -> dict[str, Any]:
    """`{role, content}` and the turn's other keys, which chat templates may know. Only calls of tools need no text."""
    if isinstance(turn, Mapping) and {"from", "value"} <= turn.keys():
        given, content, known = turn["from"], turn["value"], SHAREGPT_ROLES
    elif _is_turn(turn):
        given, content, known = turn["role"], turn.get("content"), ROLES
    else:
        raise ValueError(f"{column} must have turns {{role, content}} or {{from, value}}, not {turn!r:.60}")
    if not isinstance(given, str) or given not in known:
        meant = next((role for role, names in MEANT.items() if str(given).lower() in names), None)
        hint = f": write {meant!r} for it, or FILE:turns={{{json.dumps(meant)}: {json.dumps(given)}}}" if meant else ""
        names = ", ".join(role for role in known if role == known[role] or known is not ROLES)
        raise ValueError(f"{column}: role {given!r:.60} is not one of {names}{hint}")
    read = ("role", "content", "from", "value")
    others = {key: value for key, value in turn.items() if key not in read and value is not None}
    for name in LEARNED:
        if "weight" not in others and others.get(name) in (0, 1):
            others["weight"] = int(others.pop(name))
    if given in CALLS:
        content, others = None, {**others, "tool_calls": _calls(content, column)}
    elif others.get("function_call") and not others.get("tool_calls"):  # OpenAI's first name
        others["tool_calls"] = _calls(others.pop("function_call"), column)
    elif others.get("tool_calls"):
        _check_calls(others["tool_calls"], column)
    if is_blank(content) and others.get("tool_calls"):
        return {"role": known[given], "content": "", **others}
    return {"role": known[given], "content": _content(content, f"{column}: the text of {given}"), **others}


def _calls(value: Any, column: str) -> list[dict[str, Any]]:
    """Calls of tools from JSON text, `{"name": …, "arguments": …}` or a list of such."""
    read = read_json(value, column) if isinstance(value, str) else value
    calls = read if isinstance(read, list) else [read]
    if not calls or not all(isinstance(call, Mapping) and "name" in call for call in calls):
        raise ValueError(f"{column}: a function_call must be {{name, arguments}}, not {value!r:.60}")
    return [{"type": "function", "function": dict(call)} for call in calls]


def _check_calls(value: Any, column: str) -> None:
    """Raise `ValueError` for calls of tools that no template can show."""
    calls = [call for call in value if isinstance(call, Mapping)] if isinstance(value, list) else []
    functions = [call.get("function", call) for call in calls]
    if not calls or len(calls) < len(value) or not all(isinstance(f, Mapping) and "name" in f for f in functions):
        raise ValueError(f"{column}: tool_calls must be a list of {{function: {{name, arguments}}}}, not {value!r:.60}")


def _content(value: Any, column: str) -> str:
    """Text, or the text of a list of `{"type": "text", "text": …}`."""
    if not isinstance(value, list):
        return read_text(value, column)
    for part in value:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"{column} has a part of the type {kind}: only text can be read")
    texts = [part["text"] for part in value if not is_blank(part.get("text"))]
    return read_text("".join(read_text(text, column) for text in texts), column)


def _is_empty_system(turn: Any) -> bool:
    if not isinstance(turn, Mapping) or "system" not in (turn.get("role"), turn.get("from")):
        return False
    return is_blank(turn.get("content", turn.get("value")))


def is_conversation(value: Any) -> bool:
    """Whether `value` is a list of turns, also as the JSON text that a CSV file holds, rather than plain text."""
    if isinstance(value, str):
        try:
            turns: list[Any] = read_json(value, "prompt") if value.lstrip().startswith("[") else []
        except ValueError:
            return False
        return bool(turns) and all(_is_turn(turn) for turn in turns)
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        return False
    return all(isinstance(turn, Mapping) for turn in value)


def _is_turn(turn: Any) -> bool:
    kinds = ({"role", "content"}, {"role", "tool_calls"}, {"role", "function_call"}, {"from", "value"})
    return isinstance(turn, Mapping) and any(kind <= turn.keys() for kind in kinds)


def read_list(value: Any, column: str) -> list[Any]:
    """A list from a list, an array or the JSON text that a CSV file holds."""
    if isinstance(value, str):
        value = read_json(value, column)
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise ValueError(f"{column} is not a list")
    return list(value)


def read_json(text: str, column: str) -> Any:
    """What a cell of a CSV file holds as JSON."""
    try:
        return parse_json(text, column)
    except UserError as error:
        raise ValueError(str(error)) from error


def read_text(value: Any, column: str) -> str:
    """Text or a number as text, never empty."""
    if isinstance(value, bool) or not isinstance(value, (str, Real)):
        raise ValueError(f"{column} is {type(value).__name__}, not text")
    if is_blank(value):
        raise ValueError(f"{column} is empty")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{column} is {value}, not text")
    return str(value)


def with_system(row: Mapping[str, Any], turns: Messages) -> Messages:
    """`turns` after the row's `system` message, unless they begin with a system message."""
    system = row.get("system_prompt") if is_blank(row.get("system")) else row["system"]
    if is_blank(system) or turns[0]["role"] == "system":
        return turns
    return [{"role": "system", "content": read_text(system, "system")}, *turns]


def reference(row: Mapping[str, Any], text: str | None = None) -> str | None:
    """The row's `answer`, or `ground_truth` (also in verl's `reward_model`), or else `text`.

    None for an `answer` that is not text, which stays a column.
    """
    answer = row.get("answer")
    if is_blank(answer):
        answer = row.get("ground_truth")
    if is_blank(answer) and isinstance(row.get("reward_model"), Mapping):  # verl
        answer = row["reward_model"].get("ground_truth")
    if is_blank(answer):
        return text
    if isinstance(answer, bool):
        return str(answer)
    return read_text(answer, "answer") if isinstance(answer, (str, Real)) else None


def is_blank(value: Any) -> bool:
    """Whether an optional column has nothing in it for this row; NaN marks an empty cell of a table."""
    nothing = value is None or (isinstance(value, Real) and value != value)
    return nothing or (isinstance(value, str) and not value.strip())


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
