"""From messages to token ids: the loss is on the assistant's tokens only, with one end token for each answer.

A prompt is rendered as for generation, followed by the answer as the chat template shows it. The two are tokenized
separately, as when the model samples. The end token's text inside an answer stays text.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

    from rlhf_core.data.chat_template import ChatTemplate
    from rlhf_core.formatter import Messages

IGNORED = -100  # the label of a token without a loss
MARK = "\x00"  # a character that no chat template writes


def encode_pairs(rows: datasets.Dataset, template: ChatTemplate, max_completion_length: int) -> datasets.Dataset:
    """Columns `prompt_ids`, `chosen_ids` and `rejected_ids`; answers are cut after `max_completion_length` tokens."""

    def encode(row: dict[str, Any]) -> dict[str, list[int]]:
        prompt_ids, chosen_ids = encode_answer(template, row["prompt"], row["chosen"])
        rejected_ids = encode_answer(template, row["prompt"], row["rejected"])[1]
        return {
            "prompt_ids": prompt_ids,
            "chosen_ids": chosen_ids[:max_completion_length],
            "rejected_ids": rejected_ids[:max_completion_length],
        }

    return rows.map(encode, remove_columns=rows.column_names)


def encode_conversations(rows: datasets.Dataset, template: ChatTemplate, max_length: int) -> datasets.Dataset:
    """Columns `input_ids` and `labels`, cut after `max_length` tokens.

    A conversation becomes one row, or one for each answer if the chat template shows earlier answers otherwise than
    when they were generated (such as without their thoughts). Rows without a label are left out.
    """

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        parts = [part for messages in batch["messages"] for part in encode_conversation(template, messages)]
        cut = [(ids[:max_length], labels[:max_length]) for ids, labels in parts]
        learned = [(ids, labels) for ids, labels in cut if any(label != IGNORED for label in labels)]
        return {"input_ids": [ids for ids, _ in learned], "labels": [labels for _, labels in learned]}

    return rows.map(encode, batched=True, remove_columns=rows.column_names)


def encode_answer(template: ChatTemplate, prompt: Messages, answer: Messages) -> tuple[list[int], list[int]]:
    """(token ids of the prompt, token ids of the answer with one end token). The answer may have several turns."""
    *earlier, last = answer
    before, rendered = _render(template, [*prompt, *earlier], last)
    prompt_text = template.prompt(prompt)
    between = before[_shared(prompt_text, before) :]
    text, _ = _split_end(template, rendered, last["content"])
    return template.ids(prompt_text), template.ids(between) + _answer_ids(template, text)


def encode_conversation(template: ChatTemplate, messages: Messages) -> list[tuple[list[int], list[int]]]:
    """(input ids, labels) of a conversation: one pair, or one for each of the assistant's turns."""
    turns = [i for i, turn in enumerate(messages) if turn["role"] == "assistant"]
    full = template.conversation(messages[: turns[-1] + 1])
    ids: list[int] = []
    labels: list[int] = []
    position = 0
    for i in turns:
        before, rendered = _render(template, messages[:i], messages[i])
        text, end = _split_end(template, rendered, messages[i]["content"])
        if len(turns) > 1 and not (end and full.startswith(before + text + end)):
            pairs = [encode_answer(template, messages[:i], messages[i : i + 1]) for i in turns]
            return [(prompt + answer, [IGNORED] * len(prompt) + answer) for prompt, answer in pairs]
        prompt_ids, answer_ids = template.ids(before[position:]), _answer_ids(template, text)
        ids += prompt_ids + answer_ids
        labels += [IGNORED] * len(prompt_ids) + answer_ids
        position = len(before + text + end)
    return [(ids, labels)]


def _render(template: ChatTemplate, prompt: Messages, answer: dict[str, str]) -> tuple[str, str]:
    """(the prompt with its generation prompt, the rest of the conversation with the answer)."""
    before = template.prompt(prompt)
    full = template.conversation([*prompt, answer])
    if full.startswith(before):
        return before, full[len(before) :]
    # Some templates begin an answer differently when it is generated (with an empty thought). The answer MARK shares no
    # character with that beginning, so it shows where answers begin.
    marked = template.conversation([*prompt, {**answer, "content": MARK}])
    return before, full[_shared(before, marked) :]


def _shared(one: str, other: str) -> int:
    """The length of their common prefix."""
    return len(os.path.commonprefix([one, other]))  # noqa: RUF071 (characters are meant)


def _split_end(template: ChatTemplate, rendered: str, content: str) -> tuple[str, str]:
    """(`rendered` up to its end tokens, the end tokens, "" if there are none). The text after them is dropped."""
    end = template.tokenizer.eos_token
    content = content.rstrip()
    while content.endswith(end):
        content = content.removesuffix(end).rstrip()
    start = rendered.find(content) + len(content) if content in rendered else 0
    before, found, after = rendered[start:].partition(end)
    if not found:
        return rendered[:start] + before.rstrip(), ""
    while after.startswith(end):
        found, after = found + end, after.removeprefix(end)
    return rendered[:start] + before, found


def _answer_ids(template: ChatTemplate, text: str) -> list[int]:
    """`text` and one end token. The end token's name inside the text is split into other tokens."""
    end = template.tokenizer.eos_token
    first, *others = text.split(end)
    ids = template.ids(first)
    for part in others:
        ids += template.ids(end, split_special_tokens=True) + template.ids(part)
    return [*ids, template.tokenizer.eos_token_id]
