"""What is done to each row before a run: it gets the system prompt, and the chat template is tried on it.

What a template refuses or leaves out, and control tokens in the data's text, are found here, with the row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from rlhf_core.data.chat_template import MARK, MARKUP, THOUGHT_KEYS, ChatTemplate
from rlhf_core.data.encoding import answer_text, learned_turns, shows_thought, thought_of, tools_of
from rlhf_core.data.projecting import PROJECTED, Need, is_plain
from rlhf_core.data.template_checks import date_of_today, end_as_text, own_text, start_left_out, starts_twice
from rlhf_core.errors import UserError, excerpt
from rlhf_core.formatter import Messages

ROLES = ("system", "user", "assistant", "tool")
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
        self.need: Need = need
        self.columns = PROJECTED[need]  # a row's others are the data's, for rewards
        self.has_system = template.has_system
        self.own_text = own_text(template)
        self.end_as_text = "" if need == "prompts" else end_as_text(template)
        self.start_left_out = start_left_out(template)
        # What was found: (what, "") in rows of which something is said; in how many of them beside it ("special", a
        # token), ("markup", a text), ("key", a key of turns that the template does not use), ("no end", a token).
        self.found: Counter[tuple[str, str]] = Counter()
        self._of_row: set[tuple[str, str]] = set()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with the system prompt. Raises `UserError` for one that the template can't show in full."""
        self._of_row = set()
        row = self._checked(self.with_system_prompt(row))
        self.found.update(self._of_row)
        return row

    def _checked(self, row: dict[str, Any]) -> dict[str, Any]:
        first, tools = self.columns[0], tools_of(row)
        prompt = row["prompt"] if first == "prompt" else []
        turns = [turn for column in self.columns for turn in row[column]]
        self._check_texts(turns)
        if is_plain(turns):
            self._note("text")
            return row
        self._check_keys(turns)
        system = row[first][0]["role"] == "system"
        self._note("system", system and not self.has_system)
        self._note("own", not system and bool(self.own_text))
        if first == "prompt":
            self._note("twice", starts_twice(self.template, self.template.prompt(prompt, tools)))
            self._check_turns(prompt, tools)
            self._check_earlier_thoughts(prompt, tools)
            if tools:
                self._check_tools(prompt, tools)
        for column in self.columns:
            if column != "prompt":
                self._check_answers([*prompt, *row[column]], len(prompt), tools)
        return row

    def _note(self, what: str, there: bool = True, name: str = "") -> None:
        if there:
            self._of_row |= {(what, ""), (what, name)}

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
            for text in texts_found:
                self._note(what, name=text)

    def _check_keys(self, turns: Messages) -> None:
        """Look for keys that the template does not use. Those that change a conversation are refused."""
        for key in {key for turn in turns for key in turn if key not in READ}:
            if not self.template.names(key):
                if key == "tool_calls":
                    raise UserError(f"{self.template.called} shows no calls of tools (tool_calls)")
                self._note("key", name=key)
        if any(turn.get("weight", 1) not in (0, 1, None) for turn in turns):
            raise UserError("the weight of a turn is 0, for one that is not learned, or 1")

    def _check_tools(self, messages: Messages, tools: list[Any]) -> None:
        if self.template.prompt(messages, tools) == self.template.prompt(messages):
            raise UserError(f"{self.template.called} shows no tools, and the row has some (tools)")

    def _check_answers(self, messages: Messages, start: int, tools: list[Any] | None) -> None:
        """Check a conversation, of which the answers from `start` on are learned."""
        template = self.template
        shown = template.conversation(messages, tools)
        self._note("greeting", messages[0]["role"] == "assistant")
        learned = [i for i in learned_turns(messages) if i >= start]
        if not learned:
            raise UserError("there is no turn of the assistant to learn: each has the weight 0")
        last = learned[-1]
        if tools:
            self._check_tools(messages[:last], tools)
        self._check_turns(messages, tools)
        before, _, end = answer_text(template, messages[:last], messages[last], tools)
        begun = template.begun(messages[:last], tools)
        self._note("otherwise", not shown.startswith(before.removesuffix(begun)))
        self._note("no end", not template.finished([template.tokenizer.convert_tokens_to_ids(end)]), end)
        self._check_thought(messages, last, begun, tools)
        if not start:
            self._note("twice", starts_twice(template, shown))
            self._check_earlier_thoughts(messages[: last + 1], tools)

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
            elif turn["role"] not in ROLES:
                what = f"a turn of the role {excerpt(repr(turn['role']), 40)}"
            elif calls and (turn.get("content") or "").strip():
                what = "the text beside a call of a tool"
            if what and not shows(i, {**turn, "content": MARK}):
                raise UserError(f"{self.template.called} does not show {what}")

    def _check_thought(self, messages: Messages, last: int, begun: str, tools: list[Any] | None) -> None:
        """Look for an answer that does not fit to the thought that its prompt begins with, or that is shown without its
        own.
        """
        thought = thought_of(messages[last])
        thinks = bool(thought and thought.strip())
        if begun:
            opened = bool(self.template.opening(messages[:last], tools))
            self._note("opened", opened and thought is None)
            self._note("closed", not opened and thinks)
        shown = not thinks or shows_thought(self.template, messages[: last + 1], last, str(thought), tools)
        self._note("put back", not shown)

    def _check_earlier_thoughts(self, messages: Messages, tools: list[Any] | None) -> None:
        """Look for thoughts of earlier answers that are not shown in later prompts."""
        for i, turn in enumerate(messages[:-1]):
            thought = thought_of(turn) if turn["role"] == "assistant" else None
            if thought and thought.strip() and not shows_thought(self.template, messages, i, thought, tools):
                self._note("earlier")

    def warnings(self, rows: int, first: Mapping[tuple[str, str], str] | None = None) -> list[str]:
        """What was found in `rows` rows, for the start of a run, and the location of the `first` row of each kind."""

        def line(what: tuple[str, str], text: str) -> str:
            count, location = self.found[what], (first or {}).get(what, "")
            where = f" ({'the first: ' * (count > 1)}{location})" if location else ""
            return f"{count:,} of {rows:,} rows {text}{where}"

        found = [line((what, ""), text) for what, text in self._said().items() if self.found[what, ""]]
        found += [
            line(("key", key), f"have turns with {key!r}, which the chat template does not use")
            for key in self._names("key")
        ]
        if rows <= self.found["text", ""]:
            return found
        if date := date_of_today(self.template):
            found.append(f"{self.template.called} {date}")
        if self.end_as_text:
            found.append(
                f"{self.template.called} ends answers with {self.end_as_text}, which is no token of this model, so it "
                "is learned as text before the end token. Use the model's own template, or --chat-template FILE"
            )
        if self.start_left_out:
            found.append(
                f"the tokenizer begins texts with {self.start_left_out} and {self.template.called} does not: if the "
                "model was pretrained with it, use a template that has it (--chat-template FILE)"
            )
        return found

    def _names(self, what: str) -> list[str]:
        return sorted(name for kind, name in self.found if kind == what and name)

    def _said(self) -> dict[str, str]:
        """What is said of the rows in which something was found."""
        special, markup, no_end = (", ".join(self._names(what)[:4]) for what in ("special", "markup", "no end"))
        acts = {
            "warn": "act as such. If it is text, use --control-tokens escape (or refuse); if it was rendered by a chat "
            "template before, give messages instead",
            "escape": "are text there (--control-tokens escape)",
        }
        later = "the prompt, as when the model answers"
        if self.need == "conversations":
            later = "later prompts: each answer is learned in a row of its own, with its thought"
        return {
            "special": f"have special tokens in their text, which {acts.get(self.control_tokens)}: {special}",
            "markup": "have chat markup in their text, which is text to this model. If a template rendered it, give "
            f"messages instead: {markup}",
            "twice": f"begin with {self.template.tokenizer.bos_token} twice: take one out of the data or the template",
            "text": "are plain text: all of it is learned, without the chat template, and the end token after it; in "
            "pieces where it is longer than --max-length",
            "system": "have a system message, and the chat template has no place for one: it goes before the question",
            "own": "have no system message, so the chat template begins with its own, "
            f"{excerpt(repr(self.own_text), 100)}; for another: --system-prompt TEXT",
            "greeting": "begin with a turn of the assistant, which answers nothing and is not learned",
            "no end": f"have an answer that ends with {no_end}, at which the model does not stop: no learned token "
            "ends the turn, so it will not learn to stop. Add it to eos_token_id in the model's generation_config.json",
            "otherwise": "have a prompt that the chat template shows otherwise once it is answered: the answer is "
            "learned after the prompt that the model is given when it generates (rlhf data inspect shows it)",
            "opened": "have an answer without a thought, and the chat template opens one: an empty one is learned",
            "closed": "have an answer with a thought, and the chat template closes an empty one before the answer",
            "put back": "have an answer with a thought, which the chat template leaves out: it is learned all the "
            "same, before the answer",
            "earlier": f"have thoughts in earlier answers, which the chat template leaves out of {later}",
        }


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
