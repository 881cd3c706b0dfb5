"""The formats that `rlhf data convert` writes: a row as a run has it, in columns that our formatters read.

`messages`, `preference` and `prompt` hold turns, with all that they have; `prompt_completion` and `alpaca` hold texts,
and refuse a row that has more. A row's extra columns are added by `converting`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_core.data.encoding import tools_of
from rlhf_core.data.left_out import Unusable
from rlhf_core.data.parts import Row
from rlhf_core.data.projecting import Need, is_plain
from rlhf_core.formatter import Messages

THOUGHT = "reasoning_content"


@dataclass(frozen=True)
class Target:
    """A format: what its rows must have (`lacks` says it of rows that do not), and how one is written."""

    need: Need
    write: Callable[[Row], Row]
    lacks: str


def messages(row: Row) -> Row:
    _check(row["messages"])
    return {"messages": row["messages"], **_answer(row, row["messages"]), **_tools(row)}


def preference(row: Row) -> Row:
    return {**{part: row[part] for part in ("prompt", "chosen", "rejected")}, **_given(row), **_tools(row)}


def prompt(row: Row) -> Row:
    return {"prompt": row["prompt"], **_given(row), **_tools(row)}


def prompt_completion(row: Row) -> Row:
    columns, history, question, answer = _texts(row, "prompt_completion")
    if history:
        raise Unusable(f"it has {2 + 2 * len(history)} turns, and prompt_completion holds a question and an answer")
    return {"prompt": question, "completion": answer, **columns}


def alpaca(row: Row) -> Row:
    columns, history, question, answer = _texts(row, "alpaca")
    earlier: Row = {"history": history} if history else {}
    return {"instruction": question, "input": "", "output": answer, **columns, **earlier}


ANSWERS, PAIRS, PROMPTS = "an answer to learn", "a chosen and a rejected answer", "a prompt to answer"
TARGETS: Mapping[str, Target] = {
    "messages": Target("conversations", messages, ANSWERS),
    "preference": Target("preferences", preference, PAIRS),
    "prompt_completion": Target("conversations", prompt_completion, ANSWERS),
    "alpaca": Target("conversations", alpaca, ANSWERS),
    "prompt": Target("prompts", prompt, PROMPTS),
}


def _check(turns: Messages) -> None:
    if is_plain(turns):
        raise Unusable("it is plain text, which is no conversation")


def _given(row: Row) -> Row:
    return {} if row.get("answer") is None else {"answer": row["answer"]}


def _answer(row: Row, turns: Messages) -> Row:
    """The reference answer, unless it is the last turn's text, as which it is read anyway."""
    return {} if row.get("answer") == turns[-1]["content"] else _given(row)


def _tools(row: Row) -> Row:
    return {"tools": row["tools"]} if row.get("tools") else {}


def _texts(row: Row, target: str) -> tuple[Row, list[list[str]], str, str]:
    """(the columns `system`, `reasoning_content` and `answer`, earlier questions and answers, question, answer)."""
    turns: Messages = row["messages"]
    _check(turns)
    if tools_of(row):
        raise Unusable(f"it offers tools, for which {target} has no place")
    columns = _answer(row, turns)
    if turns[0]["role"] == "system":
        columns["system"] = turns[0]["content"]
        turns = turns[1:]
    thought = {THOUGHT: turns[-1][THOUGHT]} if turns[-1].get(THOUGHT) else {}
    roles = [turn["role"] for turn in turns]
    if roles != ["user", "assistant"] * (len(turns) // 2):
        raise Unusable(f"{target} holds questions and answers in turn, and it has {', '.join(roles)}")
    texts = []
    for turn in turns:
        more = turn.keys() - {"role", "content", *(thought if turn is turns[-1] else ())}
        if more:
            raise Unusable(f"a turn has {', '.join(sorted(more))}, for which {target} has no place")
        texts.append(turn["content"])
    pairs: list[list[str]] = [list(pair) for pair in zip(texts[::2], texts[1::2], strict=True)]
    return {**columns, **thought}, pairs[:-1], texts[-2], texts[-1]


def plain(value: Any) -> Any:
    """A value that JSON has: dates and other types of tables become text, and no number is nothing."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and value - value != 0:  # NaN marks an empty cell
        return None if value != value else str(value)
    return value if value is None or isinstance(value, str | int | float) else str(value)
