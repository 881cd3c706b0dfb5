"""Rows that are too long for the run, or that have nothing to learn from, found and counted before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

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
    """Apply `--overlong-completions` to pairs: (the rows to train on, notes)."""

    def length(row: dict[str, Any]) -> int:
        start = row["prompt"]
        before = _tokens(tokenizer, start, add_generation_prompt=True)
        return max(_tokens(tokenizer, [*start, *row[key]]) - before for key in ("chosen", "rejected"))

    def size(row: dict[str, Any]) -> int:
        return max(sum(len(turn["content"].encode()) + 64 for turn in row[key]) for key in ("chosen", "rejected"))

    return _limit(rows, length, size, limit, rule, "pairs have an answer of", "--max-completion-length")


def limit_conversations(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, limit: int, rule: str
) -> tuple[Rows, list[str]]:
    """Apply `--overlong-completions` to conversations: (the rows to train on, notes)."""

    def length(row: dict[str, Any]) -> int:
        return _tokens(tokenizer, row["messages"])

    def size(row: dict[str, Any]) -> int:
        return sum(len(turn["content"].encode()) + 64 for turn in row["messages"])

    return _limit(rows, length, size, limit, rule, "conversations have", "--max-length")


def _limit(
    rows: Rows,
    length: Callable[[dict[str, Any]], int],
    size: Callable[[dict[str, Any]], int],
    limit: int,
    rule: str,
    what: str,
    flag: str,
) -> tuple[Rows, list[str]]:
    """`size` bounds `length` from above and costs less: no token covers less than a byte, beside the template's own."""
    lengths = [length(row) if size(row) > limit else 0 for row in rows]
    overlong = [i for i, tokens in enumerate(lengths) if tokens > limit]
    if not overlong:
        return rows, []
    said = f"{len(overlong):,} of {len(rows):,} {what} more than {flag} {limit} tokens, the longest {max(lengths):,}"
    if rule == "error" or len(overlong) == len(rows):
        raise UserError(f"{said}. Allow more, or say --overlong-completions truncate (or drop).")
    if rule == "truncate":
        return rows, [f"{said}: cut at their end"]
    left = set(overlong)
    return [row for i, row in enumerate(rows) if i not in left], [f"{said}: left out"]


def _tokens(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], **options: Any) -> int:
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
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
