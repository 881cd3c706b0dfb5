"""What is done to each row before a run: it gets the system prompt, and the chat template is tried on it.

What a template refuses or leaves out, and control tokens in the data's text, are found here, with the row.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

from rlhf_core.data.chat_template import MARK, THOUGHT, THOUGHT_KEYS, ChatTemplate
from rlhf_core.data.encoding import answer_text, learned_turns, thought_of, tools_of
from rlhf_core.data.projecting import PROJECTED, Need, is_plain
from rlhf_core.errors import UserError
from rlhf_core.formatter import Messages

# Markup of other templates than the model's, which is text to it.
MARKUP = re.compile(r"<\|[a-z_]+\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<｜[^｜>]{1,30}｜>")
READ = ("role", "content", "weight", "tool_call_id", *THOUGHT_KEYS)  # keys of turns that need no place in a template


class Preparation:
    """Called with each projected row; `warnings` says afterwards what was found.

    `need` says which of a row's columns hold turns; others are the data's, whatever their names.
    `control_tokens`: what special tokens in the data's text do: `warn`, `escape` or `refuse`, as `--control-tokens`.
    """

    def __init__(
        self,
        template: ChatTemplate,
        need: Need,
        system_prompt: str | None = None,
        control_tokens: Literal["warn", "escape", "refuse"] = "warn",
    ) -> None:
        self.template, self.system_prompt, self.control_tokens = template, system_prompt, control_tokens
        self.columns = PROJECTED[need]  # a row's others are the data's, for rewards
        self.has_system = template.has_system
        # What was found: (what, "") in rows of which something is said; ("special", a token) and ("markup", a text)
        # in texts; ("key", its name) in turns that have one that the template does not use.
        self.found: Counter[tuple[str, str]] = Counter()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with the system prompt. Raises `UserError` for one that the template can't show in full."""
        row, first = self.with_system_prompt(row), self.columns[0]
        tools, prompt = tools_of(row), row["prompt"] if first == "prompt" else []
        turns = [turn for column in self.columns for turn in row[column]]
        self._check_texts(turns)
        if is_plain(turns):
            self.found["text", ""] += 1
            return row
        self._check_keys(turns)
        if row[first][0]["role"] == "system" and not self.has_system:
            self.found["system", ""] += 1
        if first == "prompt":
            self.template.prompt(prompt, tools)
            self._check_turns(prompt, tools)
            if tools:
                self._check_tools(prompt, tools)
        for column in self.columns:
            if column != "prompt":
                self._check_answers([*prompt, *row[column]], len(prompt), tools)
        return row

    def with_system_prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with the run's system prompt, if there is one."""
        first = self.columns[0]
        if not self.system_prompt or is_plain(row[first]):
            return row
        return {**row, first: with_system(row[first], self.system_prompt)}

    def _check_texts(self, turns: Messages) -> None:
        """Look for special tokens and markup in the texts of a row."""
        texts = [text for turn in turns for text in _texts({**turn, "role": ""})]
        special = {token for text in texts for token in self.template.special.findall(text)}
        if special and self.control_tokens == "refuse":
            which = f"{', '.join(sorted(special))}, which are tokens of {self.template.called}"
            raise UserError(f"the text has {which} (--control-tokens refuse)")
        markup = {token for text in texts for token in MARKUP.findall(text)} - special
        for what, texts_found in (("special", special), ("markup", markup)):
            self.found.update((what, text) for text in texts_found)
            self.found[what, ""] += bool(texts_found)

    def _check_keys(self, turns: Messages) -> None:
        """Look for keys that the template does not use. Those that change a conversation are refused."""
        for key in {key for turn in turns for key in turn if key not in READ}:
            if not self.template.names(key):
                if key == "tool_calls":
                    raise UserError(f"{self.template.called} shows no calls of tools (tool_calls)")
                self.found["key", key] += 1
        if any(turn.get("weight", 1) not in (0, 1, None) for turn in turns):
            raise UserError("the weight of a turn is 0, for one that is not learned, or 1")

    def _check_tools(self, messages: Messages, tools: list[Any]) -> None:
        if self.template.prompt(messages, tools) == self.template.prompt(messages):
            raise UserError(f"{self.template.called} shows no tools, and the row has some (tools)")

    def _check_answers(self, messages: Messages, start: int, tools: list[Any] | None) -> None:
        """Check a conversation, of which the answers from `start` on are learned."""
        template = self.template
        template.conversation(messages, tools)
        self.found["greeting", ""] += messages[0]["role"] == "assistant"
        learned = [i for i in learned_turns(messages) if i >= start]
        if not learned:
            raise UserError("there is no turn of the assistant to learn: each has the weight 0")
        if tools:
            self._check_tools(messages[: learned[-1]], tools)
        self._check_turns(messages, tools)
        answer_text(template, messages[: learned[-1]], messages[learned[-1]], tools)
        if THOUGHT.search(template.source):
            self._count_thoughts(messages, learned[-1], tools)

    def _check_turns(self, messages: Messages, tools: list[Any] | None) -> None:
        """Look for turns that the template leaves out, or shows in part."""

        def shows(i: int, turn: dict[str, Any]) -> bool:
            return MARK in self.template.conversation([*messages[:i], turn, *messages[i + 1 :]], tools)

        for i, turn in enumerate(messages):
            calls = turn.get("tool_calls") or []
            for j, call in enumerate(calls):
                marked = [*calls[:j], _named(call, MARK), *calls[j + 1 :]]
                if not shows(i, {**turn, "tool_calls": marked}):
                    raise UserError(f"{self.template.called} does not show every call of a tool")
            what = ""
            if turn["role"] == "tool":
                what = "what a tool answered"
            elif turn["role"] == "system" and i:
                what = "a system message after the first turn"
            elif calls and (turn.get("content") or "").strip():
                what = "the text beside a call of a tool"
            if what and not shows(i, {**turn, "content": MARK}):
                raise UserError(f"{self.template.called} does not show {what}")

    def _count_thoughts(self, messages: Messages, last: int, tools: list[Any] | None) -> None:
        """Count answers that do not fit to the thought that their prompt begins with."""
        begun, thought = self.template.begun(messages[:last], tools), thought_of(messages[last])
        if begun:
            opened = bool(self.template.opening(messages[:last], tools))
            self.found["opened", ""] += opened and thought is None
            self.found["closed", ""] += not opened and bool(thought and thought.strip())

    def warnings(self, rows: int) -> list[str]:
        """What was found in `rows` rows, for the start of a run."""

        def of(what: str) -> list[str]:
            return sorted(name for kind, name in self.found if kind == what and name)

        special, markup = (", ".join(of(what)[:4]) for what in ("special", "markup"))
        acts = {
            "warn": "act as such. If it is text, use --control-tokens escape (or refuse); if it was rendered by a chat "
            "template before, give messages instead",
            "escape": "are text there (--control-tokens escape)",
        }
        said = {
            "special": f"have special tokens in their text, which {acts.get(self.control_tokens)}: {special}",
            "markup": "have chat markup in their text, which is text to this model. If a template rendered it, give "
            f"messages instead: {markup}",
            "text": "are plain text: all of it is learned, without the chat template, and the end token after it; in "
            "pieces where it is longer than --max-length",
            "system": "have a system message, and the chat template has no place for one: it goes before the question",
            "greeting": "begin with a turn of the assistant, which answers nothing and is not learned",
            "opened": "have an answer without a thought, and the chat template opens one: an empty one is learned",
            "closed": "have an answer with a thought, and the chat template closes an empty one before the answer",
        }
        counts = {what: self.found[what, ""] for what in said if self.found[what, ""]}
        found = [f"{count:,} of {rows:,} rows {said[what]}" for what, count in counts.items()]
        return found + [
            f"{self.found['key', key]:,} of {rows:,} rows have turns with {key!r}, which the chat template does not use"
            for key in of("key")
        ]


def with_system(messages: Messages, system_prompt: str) -> Messages:
    """`messages`, with a system message if they have none."""
    return messages if messages[0]["role"] == "system" else [{"role": "system", "content": system_prompt}, *messages]


def _named(call: dict[str, Any], name: str) -> dict[str, Any]:
    """A call of the tool `name` instead."""
    return {**call, "function": {**call["function"], "name": name}} if "function" in call else {**call, "name": name}


def _texts(value: Any) -> Iterator[str]:
    """Every text in `value`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
