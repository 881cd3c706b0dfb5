"""From messages to text and token ids, by the chat template of one tokenizer: the only place where a run renders.

template = ChatTemplate(tokenizer, {"enable_thinking": False})
template.prompt_ids([{"role": "user", "content": "Hello"}])
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_core.errors import UserError, excerpt
from rlhf_core.inputs import TookTooLong, is_text, library_errors, parse_json, time_limit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf_core.formatter import Messages

# Arguments of `apply_chat_template` that are no variables of a template.
NOT_VARIABLES = (
    *("add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents", "max_length"),
    *("messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize", "tools"),
    *("tokenizer_kwargs", "truncation"),
)
MARK = "\ufdd1"  # a character that no chat template writes, nor changes: as JSON it is the same
NO_SYSTEM = "has no place for a system message, which goes before the first question"
ESCAPE = "\ufdd0"  # after the first character of a token's text that is no token; Unicode keeps it free for such use
SECONDS = 10  # that rendering a conversation may take
LONGEST = 200_000  # characters that a template may add to a conversation
RECENT = 16  # texts that are kept, rendered and as token ids: a row's prompt is asked for several times in a row
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")  # of a turn; templates read the first or the last
# A tag that opens or closes a thought: <think>, </think>, [THINK], …
THOUGHT = re.compile(
    r"(?P<left>[<\[])(?P<closes>/?)(?P<name>(?:\w+:)?(?:think|thought|reason)\w*)(?P<right>[>\]])", re.I
)
# What marks up turns in usual templates: text to a tokenizer without such a token.
MARKUP = re.compile(r"<\|[a-z_]+\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<｜[^｜>]{1,30}｜>")


class InvalidTemplate(UserError):
    """A chat template that can't be used, whatever the messages."""


class ChatTemplate:
    """The chat template of `tokenizer`, with `kwargs` as its variables. `ends` are the tokens that end an answer of the
    model beside the tokenizer's own.

    Raises `UserError` where the template refuses messages or fails, and when it is made for variables that it has not.
    A system message goes before the first question where the template has no place for one. `tools` are function
    schemas, as `apply_chat_template` takes them. With `escape`, special tokens in the messages' texts are text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        kwargs: Mapping[str, Any] | None = None,
        ends: Sequence[int] = (),
        *,
        escape: bool = False,
        called: str = "the chat template",
    ) -> None:
        self.tokenizer, self.kwargs, self.ends, self.escape = tokenizer, dict(kwargs or {}), ends, escape
        self.called = called  # in messages
        self.source = str(tokenizer.chat_template)  # of several templates, all of them
        self._recent: dict[Any, Any] = {}
        for name in self.kwargs:
            if name in NOT_VARIABLES or not self.names(name):
                raise UserError(f"--chat-template-kwargs: {called} has no variable {name!r}")

    def identity(self) -> str:
        """The SHA-256 of all that decides what it renders, and which tokens that is."""
        t = self.tokenizer
        tokens = t.backend_tokenizer.to_str() if t.is_fast else json.dumps(t.get_vocab(), sort_keys=True)
        values = [self.source, self.kwargs, list(self.ends), self.escape, self.special_tokens, t.eos_token, tokens]
        return hashlib.sha256(json.dumps(values, default=str).encode("utf-8", "surrogatepass")).hexdigest()

    def names(self, name: str) -> bool:
        """Whether `name` is in the template: a variable, or a key of messages."""
        return re.search(rf"\b{re.escape(name)}\b", self.source) is not None

    def prompt(self, messages: Messages, tools: Sequence[Any] | None = None) -> str:
        """The prompt for an answer to `messages`, as the model is given it."""
        return self._render(messages, tools, add_generation_prompt=True)

    def conversation(self, messages: Messages, tools: Sequence[Any] | None = None) -> str:
        """`messages` as the template shows them, without the beginning of another answer."""
        return self._render(messages, tools, add_generation_prompt=False)

    def prompt_ids(self, messages: Messages, tools: Sequence[Any] | None = None) -> list[int]:
        """The token ids of the prompt."""
        return self.ids(self.prompt(messages, tools))

    def text_ids(self, text: str) -> tuple[list[int], list[int]]:
        """(the token that begins texts, if the tokenizer has one; the token ids of plain text and the end token)."""
        start, end = self.tokenizer("")["input_ids"][:1], self.tokenizer.eos_token or self.end_token
        begins = start if start and start == [self.tokenizer.bos_token_id] else []
        plain = as_text(text, self.special) if self.escape else text
        return begins, [*self.ids(plain), self.tokenizer.convert_tokens_to_ids(end)]

    def ids(self, text: str) -> list[int]:
        """The token ids of rendered text. What is escaped in it is text, although it reads like a token."""
        ids: list[int] = []
        plain = ""
        for part in re.split(f"({self.special.pattern})", text) if ESCAPE in text else [text]:
            if ESCAPE in part:
                ids += self._ids(plain) + self._ids(part.replace(ESCAPE, ""), split_special_tokens=True)
                plain = ""
            else:
                plain += part
        return ids + self._ids(plain)

    def _ids(self, text: str, **options: bool) -> list[int]:
        made = self._once((text, *options), lambda: self.tokenizer(text, add_special_tokens=False, **options))
        return list(made["input_ids"])

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make()` gives, or gave for the same key a moment ago."""
        if key not in self._recent:
            made = make()
            if len(self._recent) >= RECENT:
                del self._recent[next(iter(self._recent))]
            self._recent[key] = made
        return self._recent[key]

    def begun(self, messages: Messages, tools: Sequence[Any] | None = None) -> str:
        """The thought that a prompt ends with, opened (`<think>`) or empty (`<think></think>`), else ""."""
        if not THOUGHT.search(self.source):
            return ""
        text = self.beginning(messages, tools)
        found = THOUGHT.search(text)
        return text[found.start() :] if found else ""

    def beginning(self, messages: Messages, tools: Sequence[Any] | None = None) -> str:
        """What a prompt has after its messages, for the model to go on from."""
        text = self.prompt(messages, tools)
        shared = os.path.commonprefix([text, self.conversation(messages, tools)])  # noqa: RUF071 (characters are meant)
        return text[len(shared) :]

    def opening(self, messages: Messages, tools: Sequence[Any] | None = None) -> str:
        """What the prompt has opened of the answer: `<think>` and what follows, where nothing closes it, else ""."""
        text = self.begun(messages, tools)
        tags = list(THOUGHT.finditer(text))
        return text[tags[-1].start() :] if tags and not tags[-1]["closes"] else ""

    @functools.cached_property
    def special(self) -> re.Pattern[str]:
        """Finds `special_tokens` in text."""
        return re.compile("|".join(map(re.escape, self.special_tokens)) or r"(?!)")

    @functools.cached_property
    def special_tokens(self) -> list[str]:
        """The tokenizer's special tokens, but for pairs of tags that mark up a text, as <think> does."""
        tokens = {*self.tokenizer.all_special_tokens}
        tokens |= {str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        own = tokens - {self.tokenizer.eos_token}  # <s> and </s> look like such a pair
        pairs = {tag for token in own for tag in (token, f"</{token[1:]}") if f"</{token[1:]}" in own}
        return sorted(tokens - pairs, reverse=True)  # of those that begin alike, the longest first

    @functools.cached_property
    def end_token(self) -> str:
        """The token that ends an answer: the first that the template writes after it, else the tokenizer's."""
        try:
            shown = self.conversation([{"role": "user", "content": "?"}, {"role": "assistant", "content": MARK}])
        except UserError:
            shown = ""
        found = self.special.search(shown, shown.find(MARK)) if MARK in shown else None
        if found is None and self.tokenizer.eos_token is None:
            raise UserError(f"the tokenizer has no end token, and {self.called} writes none after an answer")
        return found.group() if found else self.tokenizer.eos_token

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer's tokens, without those that begin, end or pad a text.

        Other special tokens stay: the tags of an answer may be such tokens, and markers of turns have no place in one.
        """
        return self.tokenizer.decode([token for token in ids if token not in self._control])

    def finished(self, ids: Sequence[int]) -> bool:
        """Whether an answer of these tokens ended by itself, rather than being cut."""
        return bool(ids) and ids[-1] in self._ends

    @functools.cached_property
    def _ends(self) -> set[int]:
        ends = (*self.ends, self.tokenizer.eos_token_id, self.tokenizer.convert_tokens_to_ids(self.end_token))
        return {token for token in ends if token is not None}

    @functools.cached_property
    def _control(self) -> set[int]:
        t = self.tokenizer
        named = (t.bos_token_id, t.eos_token_id, t.pad_token_id, t.unk_token_id, t.sep_token_id, t.cls_token_id)
        return {token for token in (*named, t.mask_token_id, *self._ends) if token is not None}

    @functools.cached_property
    def has_system(self) -> bool:
        """Whether the template shows a system message."""
        return MARK in (self._try([{"role": "system", "content": MARK}, {"role": "user", "content": "?"}]) or "")

    def check(self) -> None:
        """Raise `UserError` for a template that is not valid, or that shows nothing of a question."""
        shown = self._try([{"role": "user", "content": MARK}])
        if shown is not None and MARK not in shown:
            raise UserError(f"{self.called} shows nothing of what a user says: it renders {excerpt(repr(shown), 60)}")

    def _try(self, messages: Messages) -> str | None:
        """The prompt; None where the template refuses the messages. Raises `UserError` for one that is not valid."""
        try:
            return self._apply(messages, None, add_generation_prompt=True)
        except UserError as error:
            if isinstance(error, InvalidTemplate):  # whatever the messages
                raise
            return None

    def _render(self, messages: Messages, tools: Sequence[Any] | None, *, add_generation_prompt: bool) -> str:
        if len(messages) > 1 and messages[0]["role"] == "system" and not self.has_system:
            system, first, *others = messages
            if first["role"] == "user":
                messages = [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *others]
        key = json.dumps([messages, tools], default=repr), add_generation_prompt
        return self._once(key, lambda: self._apply(messages, tools, add_generation_prompt=add_generation_prompt))

    def _apply(self, messages: Messages, tools: Sequence[Any] | None, *, add_generation_prompt: bool) -> str:
        from jinja2 import TemplateSyntaxError

        roles = ", ".join(turn["role"] for turn in messages)
        try:
            with library_errors(f"{self.called} refuses these messages ({roles})"), time_limit(SECONDS, self.called):
                text = self.tokenizer.apply_chat_template(
                    [_as_templates_read(as_text(turn, self.special) if self.escape else turn) for turn in messages],
                    tools=list(tools) if tools else None,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **self.kwargs,
                )
        except TookTooLong as error:
            raise InvalidTemplate(str(error)) from error
        except UserError as error:
            if not isinstance(error.__cause__, TemplateSyntaxError):
                raise
            found = f"{str(error.__cause__.message).rstrip('.')}, in line {error.__cause__.lineno}"
            raise InvalidTemplate(f"{self.called} is not valid Jinja: {found}") from error.__cause__
        if not is_text(text):
            raise InvalidTemplate(f"{self.called} writes half of a character, a lone surrogate")
        if len(text) > LONGEST and len(text) > LONGEST + 10 * len(json.dumps([messages, tools], default=repr)):
            raise InvalidTemplate(f"{self.called} makes {len(text):,} characters of {len(messages)} messages")
        return text


def as_text(value: Any, tokens: re.Pattern[str]) -> Any:
    """`value` with `tokens` escaped in every text of it."""
    if isinstance(value, str):
        return tokens.sub(lambda found: found.group()[0] + ESCAPE + found.group()[1:], value)
    if isinstance(value, Mapping):
        return {key: as_text(item, tokens) for key, item in value.items()}
    return [as_text(item, tokens) for item in value] if isinstance(value, list) else value


def _as_templates_read(turn: dict[str, Any]) -> dict[str, Any]:
    """`turn` with text for no content, with its thought under the names that templates read, and with the arguments of
    its tool calls as mappings: not all templates take None, nor the JSON text that OpenAI's interface has.
    """
    turn = {**turn, "content": "" if turn.get("content") is None else turn["content"]}
    if thought := next((turn[key] for key in THOUGHT_KEYS if turn.get(key)), None):
        turn = {"thinking": thought, **turn, "reasoning_content": thought}
    if turn.get("tool_calls"):
        turn["tool_calls"] = [_with_mapping(call) for call in turn["tool_calls"]]
    return turn


def _with_mapping(call: dict[str, Any]) -> dict[str, Any]:
    if "function" in call:
        return {**call, "function": _with_mapping(call["function"])}
    try:
        arguments = parse_json(given, "") if isinstance(given := call.get("arguments") or "{}", str) else given
    except UserError:
        return call
    return {**call, "arguments": arguments}
