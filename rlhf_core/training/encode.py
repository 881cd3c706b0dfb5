"""From messages to token ids, with exactly the assistant's tokens to learn from, the end token among them once.

A prompt is rendered as it is when the model is asked to answer, and what the chat template puts after it for an answer
is the answer's; the two are tokenized apart, as they are when the model samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from rlhf_core.formatter import Messages

IGNORED = -100  # the label of a token that is not learned


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


def conversations(rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> datasets.Dataset:
    """Columns `input_ids` and `labels`, cut after `max_length` tokens.

    A conversation gives one row, or one for each answer where the chat template renders earlier turns otherwise once
    later ones follow (as templates do that drop old thoughts).
    """

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        parts = [part for messages in batch["messages"] for part in conversation(tokenizer, messages)]
        cut = [(ids[:max_length], labels[:max_length]) for ids, labels in parts]
        kept = [(ids, labels) for ids, labels in cut if any(label != IGNORED for label in labels)]
        return {"input_ids": [ids for ids, _ in kept], "labels": [labels for _, labels in kept]}

    return rows.map(encode, batched=True, remove_columns=rows.column_names)


def answered(tokenizer: PreTrainedTokenizerBase, prompt: Messages, answer: Messages) -> tuple[list[int], list[int]]:
    """(token ids of the prompt, token ids of the answer up to and with one end token)."""
    before, rendered = _render(tokenizer, prompt, answer)
    return _ids(tokenizer, before), _ids(tokenizer, _ended(tokenizer, rendered))


def conversation(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[tuple[list[int], list[int]]]:
    """(input ids, labels) of a conversation: one pair, or one for each of the assistant's turns."""
    turns = [i for i, turn in enumerate(messages) if turn["role"] == "assistant"]
    whole = tokenizer.apply_chat_template(messages[: turns[-1] + 1], tokenize=False)
    ids: list[int] = []
    labels: list[int] = []
    position = 0
    for i in turns:
        before, answer = _render(tokenizer, messages[:i], messages[i : i + 1])
        if not whole.startswith(before + answer):
            return [_last_answer(tokenizer, messages[: i + 1]) for i in turns]
        ended = _ended(tokenizer, answer)
        for text, learned in ((before[position:], False), (ended, True)):
            part = _ids(tokenizer, text)
            ids += part
            labels += part if learned else [IGNORED] * len(part)
        position = len(before) + min(len(answer), len(ended))
    return [(ids, labels)]


def _last_answer(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> tuple[list[int], list[int]]:
    prompt_ids, answer_ids = answered(tokenizer, messages[:-1], messages[-1:])
    return prompt_ids + answer_ids, [IGNORED] * len(prompt_ids) + answer_ids


def _render(tokenizer: PreTrainedTokenizerBase, prompt: Messages, answer: Messages) -> tuple[str, str]:
    """(the prompt as the model is asked, what follows it in the conversation with the answer)."""
    before = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*prompt, *answer], tokenize=False)
    # Some templates open an answer otherwise than they show one (with an empty thought): it begins where they part.
    shared = 0
    while shared < len(before) and before[shared] == whole[shared : shared + 1]:
        shared += 1
    return whole[:shared], whole[shared:]


def _ended(tokenizer: PreTrainedTokenizerBase, answer: str) -> str:
    """`answer` with one end token, and nothing after it."""
    end = tokenizer.eos_token
    text, found, _ = answer.rpartition(end)
    while found and text.endswith(end):
        text = text.removesuffix(end)
    return (text if found else answer) + end


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
