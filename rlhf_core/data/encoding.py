"""From messages to token ids, with exactly the assistant's tokens to learn from, and one end token for each answer.

A prompt is rendered as it is when the model is asked to answer, and what the chat template shows of the answer follows
it; the two are tokenized apart, as they are when the model samples. An end token's text inside an answer is text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from rlhf_core.formatter import Messages

IGNORED = -100  # the label of a token that is not learned
MARK = "\x00"  # a character that no chat template writes


def pairs(rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_completion_length: int) -> datasets.Dataset:
    """Columns `prompt_ids`, `chosen_ids` and `rejected_ids`; answers are cut after `max_completion_length` tokens."""

    def encode(row: dict[str, Any]) -> dict[str, list[int]]:
        prompt_ids, chosen_ids = answered(tokenizer, row["prompt"], row["chosen"])
        rejected_ids = answered(tokenizer, row["prompt"], row["rejected"])[1]
        return {
            "prompt_ids": prompt_ids,
            "chosen_ids": chosen_ids[:max_completion_length],
            "rejected_ids": rejected_ids[:max_completion_length],
        }

    return rows.map(encode, remove_columns=rows.column_names)


def encode_conversations(
    rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> datasets.Dataset:
    """Columns `input_ids` and `labels`, cut after `max_length` tokens.

    A conversation gives one row, or one for each answer where the chat template does not show each as the model is
    asked for it and with its end token (as templates do that drop old thoughts).
    """

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        parts = [part for messages in batch["messages"] for part in conversation(tokenizer, messages)]
        cut = [(ids[:max_length], labels[:max_length]) for ids, labels in parts]
        kept = [(ids, labels) for ids, labels in cut if any(label != IGNORED for label in labels)]
        return {"input_ids": [ids for ids, _ in kept], "labels": [labels for _, labels in kept]}

    return rows.map(encode, batched=True, remove_columns=rows.column_names)


def answered(tokenizer: PreTrainedTokenizerBase, prompt: Messages, answer: Messages) -> tuple[list[int], list[int]]:
    """(token ids of the prompt, token ids of the answer up to and with one end token).

    An answer of several turns, which begins and ends with the assistant's, has the others between its own.
    """
    *earlier, last = answer
    before, rendered = _render(tokenizer, [*prompt, *earlier], last)
    asked = before
    if earlier:
        asked = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    between = before[_shared(asked, before) :]
    text, _ = _split_end(tokenizer, rendered, last["content"])
    return _ids(tokenizer, asked), _ids(tokenizer, between) + _answer_ids(tokenizer, text)


def conversation(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[tuple[list[int], list[int]]]:
    """(input ids, labels) of a conversation: one pair, or one for each of the assistant's turns."""
    turns = [i for i, turn in enumerate(messages) if turn["role"] == "assistant"]
    whole = tokenizer.apply_chat_template(messages[: turns[-1] + 1], tokenize=False)
    ids: list[int] = []
    labels: list[int] = []
    position = 0
    for i in turns:
        before, rendered = _render(tokenizer, messages[:i], messages[i])
        text, end = _split_end(tokenizer, rendered, messages[i]["content"])
        if len(turns) > 1 and not (end and whole.startswith(before + text + end)):
            return [_last_answer(tokenizer, messages[: i + 1]) for i in turns]
        asked, learned = _ids(tokenizer, before[position:]), _answer_ids(tokenizer, text)
        ids += asked + learned
        labels += [IGNORED] * len(asked) + learned
        position = len(before + text + end)
    return [(ids, labels)]


def _last_answer(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> tuple[list[int], list[int]]:
    prompt_ids, answer_ids = answered(tokenizer, messages[:-1], messages[-1:])
    return prompt_ids + answer_ids, [IGNORED] * len(prompt_ids) + answer_ids


def _render(tokenizer: PreTrainedTokenizerBase, prompt: Messages, answer: dict[str, str]) -> tuple[str, str]:
    """(the prompt as the model is asked, what follows it in the conversation with the answer)."""
    before = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*prompt, answer], tokenize=False)
    if whole.startswith(before):
        return before, whole[len(before) :]
    # Some templates open an answer otherwise than they show one (with an empty thought). An answer that shares no
    # character with that shows where it begins.
    marked = tokenizer.apply_chat_template([*prompt, {**answer, "content": MARK}], tokenize=False)
    return before, whole[_shared(before, marked) :]


def _shared(one: str, other: str) -> int:
    """How many characters the two begin with alike."""
    length = 0
    while length < len(one) and one[length] == other[length : length + 1]:
        length += 1
    return length


def _split_end(tokenizer: PreTrainedTokenizerBase, rendered: str, content: str) -> tuple[str, str]:
    """(`rendered` up to its end, the end tokens there, "" if the template has none). What is after them is dropped."""
    end = tokenizer.eos_token
    content = content.rstrip()
    while content.endswith(end):
        content = content.removesuffix(end).rstrip()
    start = rendered.find(content) + len(content) if content in rendered else 0
    before, found, after = rendered[start:].partition(end)
    if not found:
        return rendered[:start] + before.rstrip(), ""
    more = len(after)
    while after.startswith(end):
        after = after.removeprefix(end)
    return rendered[:start] + before, found + end * ((more - len(after)) // len(end))


def _answer_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """`text` and one end token; where the text says the end token's name, it is spelt in other tokens."""
    end = tokenizer.eos_token
    first, *others = text.split(end)
    ids = _ids(tokenizer, first)
    for part in others:
        ids += _ids(tokenizer, end, split_special_tokens=True) + _ids(tokenizer, part)
    return [*ids, tokenizer.eos_token_id]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, **options: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, **options)["input_ids"])
