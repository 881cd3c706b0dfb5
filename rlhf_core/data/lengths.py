"""Rows that are too long for the run, or that have nothing to learn from, left out or cut before training.

A text with no more bytes than the limit is not tokenized: no token is under a byte.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlhf_core.data import encoding
from rlhf_core.data.left_out import TooLong, Unusable
from rlhf_core.data.projecting import is_plain

if TYPE_CHECKING:
    from rlhf_core.data.chat_template import ChatTemplate
    from rlhf_core.formatter import Messages

Row = dict[str, Any]
PROMPTS = "--max-prompt-length", "--overlong-prompts"
ANSWERS = "--max-completion-length", "--overlong-completions"
CONVERSATIONS = "--max-length", "--overlong-completions"


class Limits:
    """Called with each row, projected for `need`: the row as the limits in `options` leave it.

    Raises `Unusable` for a row to leave out. `warnings` says afterwards what was cut.
    """

    def __init__(self, need: str, options: Any, template: ChatTemplate) -> None:
        self.need, self.options, self.template = need, options, template
        self.cut: dict[str, tuple[int, int]] = {}  # what was cut: how many rows, the most tokens that one had

    def __call__(self, row: Row) -> Row:
        if self.need == "conversations":
            self._check_conversation(row)
            return row
        row = self._with_short_prompt(row)
        if self.need == "preferences":
            self._check_pair(row)
        return row

    def warnings(self, rows: int) -> list[str]:
        """What was cut of `rows` rows."""
        no_end = "; no learned token ends these turns, so the model does not learn to stop there"
        return [
            f"{count:,} of {rows:,} rows: {what}, the longest {longest:,}: cut"
            f"{'' if what.startswith('the prompt') else no_end}"
            for what, (count, longest) in self.cut.items()
        ]

    def most(self, part: str) -> int:
        """The tokens that a part of a row may have: its `prompt`, `chosen`, `rejected` or `messages`."""
        options = self.options
        if part == "messages":
            return int(options.max_length)
        return int(options.max_prompt_length if part == "prompt" else options.max_completion_length)

    def _over(self, what: str, tokens: int, limit: int, rule: str, flags: tuple[str, str]) -> bool:
        """Whether `tokens` are over the `limit`, and to be cut. Raises `TooLong` if they are and `rule` is another."""
        if tokens <= limit:
            return False
        text = f"{what} more than {flags[0]} {limit} tokens"
        if rule != "truncate":
            raise TooLong(text, tokens, *flags, refused=rule == "error")
        count, longest = self.cut.get(text, (0, 0))
        self.cut[text] = count + 1, max(longest, tokens)
        return True

    def _with_short_prompt(self, row: Row) -> Row:
        limit = self.options.max_prompt_length
        tokens = prompt_length(row["prompt"], self.template, limit, encoding.tools_of(row))
        if not self._over("the prompt has", tokens, limit, self.options.overlong_prompts, PROMPTS):
            return row
        return {**row, "prompt": _truncate(row, self.template, limit)}

    def _check_pair(self, row: Row) -> None:
        if row["chosen"] == row["rejected"]:
            raise Unusable("the two answers are the same", "nothing to learn")
        limit = self.options.max_completion_length
        if max(_bytes(row[key]) for key in ("chosen", "rejected")) <= limit:
            return
        pair = encoding.encode_pair(row, self.template)
        tokens = max(len(pair["chosen_ids"]), len(pair["rejected_ids"]))
        cut = self._over("an answer has", tokens, limit, self.options.overlong_completions, ANSWERS)
        if cut and not _differ(pair, limit):
            raise Unusable("the two answers are the same once cut", "nothing to learn")

    def _check_conversation(self, row: Row) -> None:
        limit, tools = self.options.max_length, encoding.tools_of(row)
        if is_plain(row["messages"]):  # which is learned in pieces
            return
        if tools is None and self._around + _bytes(row["messages"]) <= limit:
            return
        parts = encoding.encode_conversation(self.template, row["messages"], tools)
        tokens = max((len(ids) for ids, _ in parts), default=0)
        cut = self._over("the conversation has", tokens, limit, self.options.overlong_completions, CONVERSATIONS)
        if cut and not any(encoding.learns(labels[:limit]) for _, labels in parts):
            raise Unusable(f"its first answer begins after {CONVERSATIONS[0]} {limit} tokens", "nothing to learn")

    @functools.cached_property
    def _around(self) -> int:
        """Tokens, or bytes, of an empty question, with the template's system message, if any."""
        return prompt_length([{"role": "user", "content": ""}], self.template, self.options.max_length)


def _differ(pair: dict[str, list[int]], limit: int) -> bool:
    """Whether the answers differ once cut, and both have something to learn."""
    chosen, rejected = pair["chosen_ids"][:limit], pair["rejected_ids"][:limit]
    return chosen != rejected and any(pair["chosen_mask"][:limit]) and any(pair["rejected_mask"][:limit])


def prompt_length(prompt: Messages, template: ChatTemplate, limit: int, tools: list[Any] | None = None) -> int:
    """Tokens of the rendered prompt, or its bytes if they are no more than `limit`."""
    text = template.prompt(prompt, tools)
    size = len(text.encode("utf-8"))
    return size if size <= limit else len(template.ids(text))


def most_tokens(rows: Sequence[Row], need: str, options: Any, template: ChatTemplate, limit: int) -> int:
    """The most tokens that a model reads of one row, its answer included; if that is no more than `limit`, a bound."""
    answer = options.max_completion_length
    around = prompt_length([{"role": "user", "content": ""}], template, limit)  # with its system message, if any

    def tokens(row: Row) -> int:
        tools = encoding.tools_of(row)
        if need == "prompts":
            return prompt_length(row["prompt"], template, limit - answer, tools) + answer
        parts = [row["messages"]] if need == "conversations" else [row["prompt"], row["chosen"], row["rejected"]]
        if tools is None and around + sum(map(_bytes, parts)) <= limit:
            return limit
        if need == "conversations":
            ids = [ids for ids, _ in encoding.encode_conversation(template, row["messages"], tools)]
            return min(options.max_length, max(map(len, ids)))
        pair = encoding.encode_pair(row, template, answer)
        return len(pair["prompt_ids"]) + max(len(pair["chosen_ids"]), len(pair["rejected_ids"]))

    return max(map(tokens, rows), default=0)


def _bytes(messages: Messages) -> float:
    """Bytes of all turns, with 64 more for what the template adds to each. Of calls of tools there is no telling: the
    template may write any spaces into them.
    """
    if any(turn.get("tool_calls") for turn in messages):
        return math.inf
    texts = (json.dumps(turn, ensure_ascii=False) for turn in messages)
    return sum(len(text.encode("utf-8")) + 64 for text in texts)


def _truncate(row: Row, template: ChatTemplate, limit: int) -> Messages:
    """Drop the oldest turns after the system message, up to a question, then cut the end of the last message."""
    prompt, tools = row["prompt"], encoding.tools_of(row)
    system = prompt[:1] if prompt[0]["role"] == "system" else []
    turns = prompt[len(system) :]
    while prompt_length([*system, *turns], template, limit, tools) > limit:
        later = [i for i, turn in enumerate(turns) if i and turn["role"] == "user"]
        if not later:
            break
        turns = turns[later[0] :]
    last = turns[-1]
    ids = template.ids(last["content"])
    while (excess := prompt_length([*system, *turns], template, limit, tools) - limit) > 0:
        ids = ids[: len(ids) - excess]
        if not ids:
            room = f"{PROMPTS[0]} {limit} leaves no room beside the chat template and system message"
            raise TooLong(room, prompt_length([*system, *turns], template, limit, tools), *PROMPTS)
        turns = [*turns[:-1], {**last, "content": template.tokenizer.decode(ids, skip_special_tokens=True).rstrip("�")}]
    return [*system, *turns]
