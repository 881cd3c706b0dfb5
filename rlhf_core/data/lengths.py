"""Rows that are too long for the run, or that have nothing to learn from, found and counted before training.

Each function returns the rows to train on, and warnings that count what was left out or cut. Rules are `error`, `drop`
and `truncate`. Nothing is tokenized whose bytes alone prove that it fits, since no token covers less than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlhf_core.data import encoding
from rlhf_core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Rows = list[dict[str, Any]]
Limited = tuple[Rows, list[str]]


def apply_limits(rows: Rows, need: str, options: Any, tokenizer: PreTrainedTokenizerBase) -> Limited:
    """All that the options say of rows that were projected for `need`. Raises `UserError` where nothing is left."""
    warnings: list[str] = []
    if need == "conversations" and rows:
        return limit_conversations(rows, tokenizer, options.max_length, options.overlong_completions)
    if rows:
        rows, warnings = limit_prompts(rows, tokenizer, options.max_prompt_length, options.overlong_prompts)
    if need == "preferences" and rows:
        rows, same = drop_pairs_without_difference(rows)
        rows, cut = limit_answers(rows, tokenizer, options.max_completion_length, options.overlong_completions)
        warnings += same + cut
    return rows, warnings


def drop_pairs_without_difference(rows: Rows) -> Limited:
    """Leave out the pairs whose two answers are the same."""
    left = [row for row in rows if row["chosen"] != row["rejected"]]
    if not left:
        raise UserError("in every pair the chosen and the rejected answer are the same")
    count = len(rows) - len(left)
    return left, [f"left out {count:,} of {len(rows):,} pairs, whose two answers are the same"] if count else []


def limit_answers(rows: Rows, tokenizer: PreTrainedTokenizerBase, limit: int, rule: str) -> Limited:
    """Apply `--overlong-completions` to pairs. Those that are the same once cut are left out."""

    def answers(row: dict[str, Any]) -> list[list[int]]:
        if max(_bytes(row[key]) for key in ("chosen", "rejected")) <= limit:
            return []
        return [encoding.encode_answer(tokenizer, row["prompt"], row[key])[1] for key in ("chosen", "rejected")]

    ids = [answers(row) for row in rows]
    lengths = [max(map(len, both), default=0) for both in ids]
    flags = "--max-completion-length", "--overlong-completions"
    limited, warnings = _limit(rows, lengths, limit, rule, "pairs have an answer of", flags)
    if rule != "truncate" or not warnings:
        return limited, warnings
    same = {i for i, both in enumerate(ids) if both and both[0][:limit] == both[1][:limit]}
    left, more = _without(rows, same, "pairs, whose two answers are the same once cut", flags[0])
    return left, warnings + more


def limit_conversations(rows: Rows, tokenizer: PreTrainedTokenizerBase, limit: int, rule: str) -> Limited:
    """Apply `--overlong-completions` to conversations. Those whose first answer begins after the limit are left out."""
    template = _tokens(tokenizer, [{"role": "user", "content": ""}])  # some have a long system message of their own

    def parts(row: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
        fits = template + _bytes(row["messages"]) <= limit
        return [] if fits else encoding.encode_conversation(tokenizer, row["messages"])

    encoded = [parts(row) for row in rows]
    lengths = [max((len(ids) for ids, _ in one), default=0) for one in encoded]
    flags = "--max-length", "--overlong-completions"
    limited, warnings = _limit(rows, lengths, limit, rule, "conversations have", flags)
    if rule != "truncate" or not warnings:
        return limited, warnings
    learned = [any(label != encoding.IGNORED for _, labels in one for label in labels[:limit]) for one in encoded]
    nothing = {i for i, one in enumerate(encoded) if one and not learned[i]}
    left, more = _without(rows, nothing, "conversations, whose first answer begins after that", flags[0])
    return left, warnings + more


def limit_prompts(rows: Rows, tokenizer: PreTrainedTokenizerBase, limit: int, rule: str) -> Limited:
    """Apply `--overlong-prompts` to rows with a `prompt`. Cut ones lose their oldest turns, then their end."""
    lengths = prompt_lengths(rows, tokenizer, limit)
    flags = "--max-prompt-length", "--overlong-prompts"
    limited, warnings = _limit(rows, lengths, limit, rule, "prompts have", flags)
    if rule == "truncate":
        limited = [
            {**row, "prompt": _truncate(row["prompt"], tokenizer, limit)} if length > limit else row
            for row, length in zip(rows, lengths, strict=True)
        ]
    return limited, warnings


def prompt_lengths(rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, limit: int) -> list[int]:
    """Tokens of each rendered prompt, or its bytes where they are no more than `limit`."""
    lengths = []
    for row in rows:
        text = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        size = len(text.encode("utf-8"))
        lengths.append(size if size <= limit else len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    return lengths


def _limit(rows: Rows, lengths: Sequence[int], limit: int, rule: str, what: str, flags: tuple[str, str]) -> Limited:
    """`lengths` in tokens, 0 where it is known that they fit; `flags` set the limit and the rule."""
    overlong = {i for i, tokens in enumerate(lengths) if tokens > limit}
    if not overlong:
        return rows, []
    found = (
        f"{len(overlong):,} of {len(rows):,} {what} more than {flags[0]} {limit} tokens, the longest {max(lengths):,}"
    )
    if rule == "error" or (rule == "drop" and len(overlong) == len(rows)):
        raise UserError(f"{found}. Allow more, or say {flags[1]} truncate (or drop).")
    if rule == "truncate":
        return rows, [f"{found}: cut"]
    return [row for i, row in enumerate(rows) if i not in overlong], [f"{found}: left out"]


def _without(rows: Rows, positions: set[int], what: str, flag: str) -> Limited:
    """Leave out the rows at these positions."""
    if not positions:
        return rows, []
    if len(positions) == len(rows):
        raise UserError(f"nothing to learn is left of {len(rows):,} {what}. Allow a larger {flag}.")
    left = [row for i, row in enumerate(rows) if i not in positions]
    return left, [f"left out {len(positions):,} of {len(rows):,} {what}"]


def _bytes(messages: Sequence[dict[str, str]]) -> int:
    """Of all turns, each with 64 for what the template adds to it."""
    return sum(len(turn["content"].encode("utf-8", "surrogatepass")) + 64 for turn in messages)


def _tokens(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], *, asked: bool = False) -> int:
    """Of the rendered messages; `asked`: with what the template adds for the model to answer."""
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asked)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _truncate(prompt: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, limit: int) -> list[dict[str, str]]:
    """Drop the oldest turns after the system message, two at a time, then cut the end of the last message."""
    system = prompt[:1] if prompt[0]["role"] == "system" else []
    turns = prompt[len(system) :]
    while len(turns) > 2 and _tokens(tokenizer, [*system, *turns], asked=True) > limit:
        turns = turns[2:]
    last = turns[-1]
    ids = tokenizer(last["content"], add_special_tokens=False)["input_ids"]
    while (excess := _tokens(tokenizer, [*system, *turns], asked=True) - limit) > 0:
        ids = ids[: len(ids) - excess]
        if not ids:
            raise UserError(f"--max-prompt-length {limit} leaves no room beside the chat template and system message")
        turns = [*turns[:-1], {**last, "content": tokenizer.decode(ids, skip_special_tokens=True).rstrip("�")}]
    return [*system, *turns]
