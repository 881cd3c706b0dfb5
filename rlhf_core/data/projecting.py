"""What a row becomes for a method: TRL's columns for what it needs, and the row's other columns for rewards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from rlhf_core.data.files import Row
from rlhf_core.errors import UserError
from rlhf_core.formatter import TEXT, Example, Messages

Need = Literal["prompts", "preferences", "conversations"]
# What a row becomes for each need. Its other columns stay, for rewards, but for those that are its prompt and answer.
PROJECTED: Mapping[Need, tuple[str, ...]] = {
    "prompts": ("prompt",),
    "preferences": ("prompt", "chosen", "rejected"),
    "conversations": ("messages",),
}
CANONICAL = ("prompt", "completion", "messages")


def project(row: Row, example: Example, need: Need) -> dict[str, Any]:
    """The row for a method that needs `need`: TRL's columns, the reference answer, the row's other columns."""
    others = row_columns(row, example)
    if example.text is not None:
        if need != "conversations":
            raise UserError(f"{row.location}: this method needs {need}, and the row is plain text, which sft learns")
        return {"messages": [{"role": TEXT, "content": example.text}], **others}
    if need == "conversations":
        completion = example.completion or example.chosen
        return {"messages": [*example.prompt, *completion] if completion else _answered(row, example.prompt), **others}
    pair = {"chosen": example.chosen, "rejected": example.rejected} if need == "preferences" else {}
    if None in pair.values():
        hint = "it finds none. Name their columns: FILE:chosen=COLUMN,rejected=COLUMN"
        raise UserError(f"{row.location}: this method needs pairs of a chosen and a rejected answer; {hint}")
    if not example.prompt or example.prompt[-1]["role"] not in ("user", "tool"):
        raise UserError(f"{row.location}: the prompt does not end with a user's message")
    return {"prompt": example.prompt, **pair} | others | pair


def _answered(row: Row, messages: Messages) -> Messages:
    """The turns up to the assistant's last one. Raises `UserError` if there is none."""
    last = max((i for i, turn in enumerate(messages) if turn["role"] == "assistant"), default=None)
    if last is None:
        hint = "Name its column: FILE:completion=COLUMN"
        raise UserError(f"{row.location}: this method needs an answer to learn, and finds only a prompt. {hint}")
    return messages[: last + 1]


def row_columns(row: Row, example: Example) -> dict[str, Any]:
    """The columns for rewards: the row's, those that the formatter added, the reference answer."""
    answer = {} if example.answer is None else {"answer": example.answer}
    return {k: v for k, v in {**row.values, **example.columns, **answer}.items() if k not in CANONICAL}


def prompt_of(row: Mapping[str, Any]) -> Any:
    """The messages to answer: the prompt, or a conversation up to its last question; none of plain text."""
    if "prompt" in row:
        return row["prompt"]
    messages = row["messages"]
    if is_plain(messages):
        return []
    last = max(i for i, turn in enumerate(messages) if turn["role"] == "user")
    return messages[: last + 1]


def is_plain(messages: Messages) -> bool:
    """Whether what is learned is plain text, without a chat template."""
    return messages[0]["role"] == TEXT


def is_text_prompt(given: Any, prompt: Messages) -> bool:
    """Whether a row's prompt is `given` as the text of one question."""
    return [turn["content"] for turn in prompt if turn["role"] != "system"] == [given]
