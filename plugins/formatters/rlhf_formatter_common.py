"""The usual layouts of training data, one formatter each.

| formatter         | columns                                                                                     |
|-------------------|---------------------------------------------------------------------------------------------|
| `question_answer` | `question`, `answer` (GSM8K's `reasoning #### result` too), optional `system`, `history`      |
| `preference`      | `question`, `response_chosen`, `response_rejected`, optional `system`, `history`             |
| `messages`        | `messages`: a list of `{"role", "content"}`                                                  |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_core import Example, Formatter, hookimpl

ROLES = ("system", "user", "assistant")


@hookimpl
def rlhf_formatters():
    return [
        Formatter("question_answer", columns={"question", "answer"}, convert=question_answer),
        Formatter("preference", columns={"question", "response_chosen", "response_rejected"}, convert=preference),
        Formatter("messages", columns={"messages"}, convert=messages),
    ]


def question_answer(row: Mapping[str, Any]) -> Example:
    """The answer is the completion and the reference; of `reasoning #### result` the reference is the result."""
    text = _text(row, "answer")
    reference = text.rpartition("####")[2].strip() if "####" in text else text
    return Example(prompt=_prompt(row), completion=_assistant(text), answer=reference, columns={"solution": text})


def preference(row: Mapping[str, Any]) -> Example:
    """A prompt with a better and a worse response."""
    return Example(
        prompt=_prompt(row),
        chosen=_assistant(_text(row, "response_chosen")),
        rejected=_assistant(_text(row, "response_rejected")),
    )


def messages(row: Mapping[str, Any]) -> Example:
    """All turns before the assistant's last one are the prompt."""
    turns = [_message(turn) for turn in row["messages"]]
    if not any(turn["role"] == "user" for turn in turns):
        raise ValueError("messages has no turn with the role 'user'")
    if turns[-1]["role"] != "assistant":
        return Example(prompt=turns)
    return Example(prompt=turns[:-1], completion=turns[-1:], answer=turns[-1]["content"])


def _prompt(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """Optional system message, optional history of (user, assistant) pairs, then the question."""
    prompt = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for turn in row.get("history") or []:
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise ValueError(f"history holds [question, answer] pairs, not {turn!r}")
        prompt += [{"role": "user", "content": str(turn[0])}, *_assistant(str(turn[1]))]
    return [*prompt, {"role": "user", "content": _text(row, "question")}]


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row[column]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{column} is {type(value).__name__}, not text")
    if not str(value).strip():
        raise ValueError(f"{column} is empty")
    return str(value)


def _message(turn: Any) -> dict[str, str]:
    if not isinstance(turn, Mapping) or not {"role", "content"} <= turn.keys():
        raise ValueError(f"messages holds {{role, content}}, not {turn!r}")
    if turn["role"] not in ROLES:
        raise ValueError(f"role {turn['role']!r} is none of {', '.join(ROLES)}")
    return {"role": turn["role"], "content": _text(turn, "content")}
