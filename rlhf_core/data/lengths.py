"""Rows that are too long for the run, or that have nothing to learn from, found and counted before training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlhf_core.data import encoding
from rlhf_core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Rows = list[dict[str, Any]]


def drop_pairs_without_difference(rows: Rows) -> tuple[Rows, list[str]]:
    """(the rows whose two answers differ, a note on the others)."""
    left = [row for row in rows if row["chosen"] != row["rejected"]]
    if not left:
        raise UserError("in every pair the better and the worse answer are the same")
    count = len(rows) - len(left)
    return left, [f"left out {count:,} of {len(rows):,} pairs, whose two answers are the same"] if count else []


def limit_answers(rows: Rows, tokenizer: PreTrainedTokenizerBase, limit: int, rule: str) -> tuple[Rows, list[str]]:
    """Apply `--overlong-completions` to pairs: (the rows to train on, notes).

    Cut pairs of the same answers are left out, as they differ in nothing that is learned.
    """

    def answers(row: dict[str, Any]) -> list[list[int]]:
        return [encoding.encode_answer(tokenizer, row["prompt"], row[key])[1] for key in ("chosen", "rejected")]

    def size(row: dict[str, Any]) -> int:
        return max(_bytes(row[key]) for key in ("chosen", "rejected"))

    ids = [answers(row) if size(row) > limit else [] for row in rows]
    lengths = [max(map(len, both), default=0) for both in ids]
    rows, notes = _limit(rows, lengths, limit, rule, "pairs have an answer of", "--max-completion-length")
    if rule != "truncate" or not notes:
        return rows, notes
    same = {i for i, both in enumerate(ids) if both and both[0][:limit] == both[1][:limit]}
    return _without(rows, same, notes, "pairs, whose two answers are the same once cut", "--max-completion-length")


def limit_conversations(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, limit: int, rule: str
) -> tuple[Rows, list[str]]:
    """Apply `--overlong-completions` to conversations: (the rows to train on, notes).

    Cut conversations whose first answer begins after the limit are left out: there is nothing to learn in them.
    """
    template = _tokens(tokenizer, [{"role": "user", "content": ""}])  # some have a long system message of their own

    def parts(row: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
        fits = template + _bytes(row["messages"]) <= limit
        return [] if fits else encoding.encode_conversation(tokenizer, row["messages"])

    encoded = [parts(row) for row in rows]
    lengths = [max((len(ids) for ids, _ in one), default=0) for one in encoded]
    rows, notes = _limit(rows, lengths, limit, rule, "conversations have", "--max-length")
    if rule != "truncate" or not notes:
        return rows, notes
    learned = [any(label != encoding.IGNORED for _, labels in one for label in labels[:limit]) for one in encoded]
    nothing = {i for i, one in enumerate(encoded) if one and not learned[i]}
    return _without(rows, nothing, notes, "conversations, whose first answer begins after that", "--max-length")


def _limit(rows: Rows, lengths: Sequence[int], limit: int, rule: str, what: str, flag: str) -> tuple[Rows, list[str]]:
    """`lengths` in tokens, 0 where it is known that they fit."""
    overlong = {i for i, tokens in enumerate(lengths) if tokens > limit}
    if not overlong:
        return rows, []
    said = f"{len(overlong):,} of {len(rows):,} {what} more than {flag} {limit} tokens, the longest {max(lengths):,}"
    if rule == "error" or (rule == "drop" and len(overlong) == len(rows)):
        raise UserError(f"{said}. Allow more, or say --overlong-completions truncate (or drop).")
    if rule == "truncate":
        return rows, [f"{said}: cut at their end"]
    return [row for i, row in enumerate(rows) if i not in overlong], [f"{said}: left out"]


def _without(rows: Rows, places: set[int], notes: list[str], what: str, flag: str) -> tuple[Rows, list[str]]:
    if not places:
        return rows, notes
    if len(places) == len(rows):
        raise UserError(f"nothing to learn is left of {len(rows):,} {what}. Allow a larger {flag}.")
    left = [row for i, row in enumerate(rows) if i not in places]
    return left, [*notes, f"left out {len(places):,} of {len(rows):,} {what}"]


def _bytes(messages: Sequence[dict[str, str]]) -> int:
    """At least as many as tokens, of which none covers less than a byte: 64 for what the template adds to a turn."""
    return sum(len(turn["content"].encode("utf-8", "surrogatepass")) + 64 for turn in messages)


def _tokens(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> int:
    text = tokenizer.apply_chat_template(list(messages), tokenize=False)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def limit_prompts(
    rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, limit: int, rule: str
) -> list[dict[str, Any]]:
    """Apply `--overlong-prompts` to rows with a `prompt`. Raises `UserError` where the rule is `error`."""
    lengths = prompt_lengths(rows, tokenizer, limit)
    overlong = [i for i, length in enumerate(lengths) if length > limit]
    if not overlong:
        return rows
    if rule == "error":
        longest = max(lengths)
        raise UserError(
            f"{len(overlong)} of {len(rows)} prompts have more than --max-prompt-length {limit} tokens, the longest "
            f"{longest}. Allow --max-prompt-length {longest}, or say --overlong-prompts truncate (or drop)."
        )
    if rule == "drop":
        left = [row for i, row in enumerate(rows) if lengths[i] <= limit]
        if not left:
            raise UserError(f"every prompt has more than --max-prompt-length {limit} tokens")
        return left
    for i in overlong:
        rows[i]["prompt"] = _truncate(rows[i]["prompt"], tokenizer, limit)
    return rows


def prompt_lengths(rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, limit: int) -> list[int]:
    """Tokens of each rendered prompt. Where the bytes alone prove that it fits, their number stands in for it."""
    lengths = []
    for row in rows:
        text = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        size = len(text.encode("utf-8"))  # no token covers less than a byte
        lengths.append(size if size <= limit else len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    return lengths


def _truncate(prompt: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, limit: int) -> list[dict[str, str]]:
    """Drop the oldest turns after the system message, two at a time, then cut the end of the last message."""
    system = prompt[:1] if prompt[0]["role"] == "system" else []
    turns = prompt[len(system) :]

    def length(messages: list[dict[str, str]]) -> int:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    while len(turns) > 2 and length([*system, *turns]) > limit:
        turns = turns[2:]
    last = turns[-1]
    ids = tokenizer(last["content"], add_special_tokens=False)["input_ids"]
    while length([*system, *turns]) > limit:
        excess = length([*system, *turns]) - limit
        ids = ids[: len(ids) - excess]
        if not ids:
            raise UserError(f"--max-prompt-length {limit} leaves no room beside the chat template and system message")
        turns = [*turns[:-1], {**last, "content": tokenizer.decode(ids, skip_special_tokens=True).rstrip("�")}]
    return [*system, *turns]
