"""Rows of any number of tokens, in the words of the built-in tokenizer: what a trainer is given while it is measured.

Only their lengths matter: the model has no values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_core.data.chat_template import ChatTemplate
from rlhf_core.data.encoding import IGNORED, encode_answer, encode_pair, encode_within, tools_of
from rlhf_core.data.loading import Need

FILLER = "☤"  # a sign that the built-in tokenizer knows only by its bytes: each adds as many tokens


@dataclass(frozen=True)
class Lengths:
    """Tokens of a row: of its prompt and of its answer, with the end token."""

    prompt: int
    completion: int

    @property
    def total(self) -> int:
        return self.prompt + self.completion


def lengths_of(rows: Sequence[Mapping[str, Any]], need: Need, template: ChatTemplate, options: Any) -> list[Lengths]:
    """Of each row, after the run's limits. Answers that the model writes are as long as they may be."""
    return [lengths for row in rows for lengths in _lengths(row, need, template, options)]


def _lengths(row: Mapping[str, Any], need: Need, template: ChatTemplate, options: Any) -> list[Lengths]:
    if need == "prompts":
        return [Lengths(len(template.prompt_ids(row["prompt"], tools_of(row))), options.max_completion_length)]
    if need == "preferences":
        pair = encode_pair(row, template, options.max_completion_length)
        return [Lengths(len(pair["prompt_ids"]), max(len(pair["chosen_ids"]), len(pair["rejected_ids"])))]
    encoded = encode_within(template, row["messages"], tools_of(row), options.max_length)
    counted = [(len(ids), sum(label != IGNORED for label in labels)) for ids, labels in encoded]
    return [Lengths(tokens - learned, learned) for tokens, learned in counted if learned]


def score(completions: Sequence[Any], **_: Any) -> list[float]:
    """The reward in place of the run's, which are not called: every second answer is the better one."""
    return [float(i % 2) for i in range(len(completions))]


def rows(lengths: Sequence[Lengths], need: Need, template: ChatTemplate) -> list[dict[str, Any]]:
    """Rows as a method gets them that needs `need`, with these numbers of tokens, or the fewest that there can be."""
    return [_row(one, need, template) for one in lengths]


def _row(lengths: Lengths, need: Need, template: ChatTemplate) -> dict[str, Any]:
    def prompt(text: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": text}]

    def answer(text: str) -> list[dict[str, Any]]:
        return [{"role": "assistant", "content": text}]

    asked = prompt(_text(lambda text: len(template.prompt_ids(prompt(text))), lengths.prompt))
    if need == "prompts":
        return {"prompt": asked}
    said = answer(_text(lambda text: len(encode_answer(template, asked, answer(text))[1]), lengths.completion))
    if need == "conversations":
        return {"messages": [*asked, *said]}
    other = answer(said[0]["content"][:-1] + "a")  # a pair's answers differ
    return {"prompt": asked, "chosen": said, "rejected": other}


def _text(tokens: Callable[[str], int], wanted: int) -> str:
    """A text with which `tokens` is what is wanted, or at least one sign."""
    one, many = tokens(FILLER), tokens(FILLER * 9)
    each = (many - one) / 8
    count = max(1, 1 + round((wanted - one) / each))
    text = FILLER * count
    while (missing := wanted - tokens(text)) > 0:  # fewer than a sign has
        text += "a" if missing % 2 else "1"
    return text
