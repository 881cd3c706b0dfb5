"""From messages to text, by the chat template of one tokenizer: the only place where a run renders messages.

template = ChatTemplate(tokenizer, {"enable_thinking": False})
template.prompt_ids([{"role": "user", "content": "Hello"}])
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_core.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf_core.formatter import Messages

# Arguments of `apply_chat_template` that are no variables of a template.
NOT_VARIABLES = (
    *("add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents", "max_length"),
    *("messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize", "tools"),
    *("tokenizer_kwargs", "truncation"),
)
MARK = "\x00"  # a character that no chat template writes
THOUGHT = re.compile(r"([<\[])((?:\w+:)?(?:think|thought|reason)\w*)([>\]])", re.IGNORECASE)  # the tag that opens one


class ChatTemplate:
    """The chat template of `tokenizer`, with `kwargs` as its variables.

    Raises `UserError` where the template refuses messages or fails, and when it is made for variables that it has not.
    A system message goes before the first question where the template has no place for one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any] | None = None) -> None:
        self.tokenizer, self.kwargs = tokenizer, dict(kwargs or {})
        template = str(tokenizer.chat_template)
        for name in self.kwargs:
            if name in NOT_VARIABLES or not re.search(rf"\b{re.escape(name)}\b", template):
                raise UserError(f"--chat-template-kwargs: the chat template has no variable {name!r}")

    def prompt(self, messages: Messages, tools: Sequence[Any] | None = None) -> str:
        """The prompt for an answer to `messages`, as the model is given it."""
        return self._render(messages, tools, add_generation_prompt=True)

    def conversation(self, messages: Messages, tools: Sequence[Any] | None = None) -> str:
        """`messages` as the template shows them, without the beginning of another answer."""
        return self._render(messages, tools, add_generation_prompt=False)

    def prompt_ids(self, messages: Messages, tools: Sequence[Any] | None = None) -> list[int]:
        """The token ids of the prompt."""
        return self.ids(self.prompt(messages, tools))

    def ids(self, text: str, **options: bool) -> list[int]:
        """The token ids of rendered text: the template writes the special tokens itself."""
        return list(self.tokenizer(text, add_special_tokens=False, **options)["input_ids"])

    def opening(self, messages: Messages, tools: Sequence[Any] | None = None) -> str:
        """What the prompt has opened of the answer: `<think>` and what follows, where nothing closes it, else ""."""
        text = self.prompt(messages, tools)
        shared = os.path.commonprefix([text, self.conversation(messages, tools)])  # noqa: RUF071 (characters are meant)
        found = list(THOUGHT.finditer(text, len(shared)))
        if not found:
            return ""
        before, name, after = found[-1].groups()
        return "" if f"{before}/{name}{after}" in text[found[-1].end() :] else text[found[-1].start() :]

    @functools.cached_property
    def has_system(self) -> bool:
        """Whether the template shows a system message."""
        turns = [{"role": "system", "content": MARK}, {"role": "user", "content": "?"}]
        try:
            return MARK in self._apply(turns, None, add_generation_prompt=True)
        except UserError:
            return False

    def _render(self, messages: Messages, tools: Sequence[Any] | None, *, add_generation_prompt: bool) -> str:
        if len(messages) > 1 and messages[0]["role"] == "system" and not self.has_system:
            system, first, *others = messages
            if first["role"] == "user":
                messages = [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *others]
        return self._apply(messages, tools, add_generation_prompt=add_generation_prompt)

    def _apply(self, messages: Messages, tools: Sequence[Any] | None, *, add_generation_prompt: bool) -> str:
        from jinja2 import TemplateError, TemplateSyntaxError

        try:
            return self.tokenizer.apply_chat_template(
                messages,
                tools=list(tools) if tools else None,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self.kwargs,
            )
        except TemplateSyntaxError as error:
            raise UserError(f"the chat template is not valid Jinja: {error.message}, in line {error.lineno}") from error
        # What Jinja raises, and what expressions in a template do.
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            roles = ", ".join(turn["role"] for turn in messages)
            raise UserError(f"the chat template refuses these messages ({roles}): {first_line(error)}") from error
