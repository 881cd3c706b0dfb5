"""Rows that are too long for the run, or that have nothing to learn from, found and counted before training.

Each function returns the rows to train on, and warnings that count the rows that were left out or cut. Rules are
`error`, `drop` and `truncate`. A text with no more bytes than the limit is not tokenized: no token is under a byte.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_core.data import encoding
from rlhf_core.errors import UserError

if TYPE_CHECKING:
    from rlhf_core.data.chat_template import ChatTemplate
    from rlhf_core.formatter import Messages

Rows = list[dict[str, Any]]
Limited = tuple[Rows, list[str]]


def apply_limits(rows: Rows, need: str, options: Any, template: ChatTemplate) -> Limited:
    """Apply all limits in `options` to rows that were projected for `need`. Raises `UserError` if no row is left."""
    if not rows:
        return rows, []
    if need == "conversations":
        return limit_conversations(rows, template, options.max_length, options.overlong_completions)
    rows, warnings = limit_prompts(rows, template, options.max_prompt_length, options.overlong_prompts)
    if need == "preferences":
        rows, same = drop_pairs_without_difference(rows)
        rows, cut = limit_answers(rows, template, options.max_completion_length, options.overlong_completions)
        warnings += same + cut
    return rows, warnings


def limit_held_out(rows: Rows, need: str, options: Any, template: ChatTemplate) -> Limited:
    """Apply all limits to held-out rows, each by itself. One that can't be used never stops a run."""
    usable: Rows = []
    reasons = []
    for row in rows:
        try:
            usable += apply_limits([row], need, options, template)[0]
        except UserError as error:
            reasons.append(str(error))
    count = f"left out {len(reasons):,} of {len(rows):,} held-out rows, which can't be used"
    return usable, [f"{count}; the first: {reasons[0]}"] if reasons else []


def drop_pairs_without_difference(rows: Rows) -> Limited:
    """Leave out the pairs whose two answers are the same."""
    left = [row for row in rows if row["chosen"] != row["rejected"]]
    if not left:
        raise UserError("in every pair the chosen and the rejected answer are the same")
    count = len(rows) - len(left)
    return left, [f"left out {count:,} of {len(rows):,} pairs, whose two answers are the same"] if count else []


def limit_answers(rows: Rows, template: ChatTemplate, limit: int, rule: str) -> Limited:
    """Apply `--overlong-completions` to pairs. Those that are the same once cut are left out, and those of which no
    learned turn is left.
    """

    def encoded(row: dict[str, Any]) -> dict[str, list[int]]:
        fits = max(_bytes(row[key]) for key in ("chosen", "rejected")) <= limit
        return {} if fits else encoding.encode_pair(row, template)

    pairs = [encoded(row) for row in rows]
    lengths = [max(len(pair["chosen_ids"]), len(pair["rejected_ids"])) if pair else 0 for pair in pairs]
    same = {i for i, pair in enumerate(pairs) if pair and not _differ(pair, limit)}
    flags = "--max-completion-length", "--overlong-completions"
    without = same, "pairs, whose two answers are the same once cut"
    return _limit(rows, lengths, limit, rule, "pairs have an answer of", flags, *without)


def _differ(pair: dict[str, list[int]], limit: int) -> bool:
    """Whether the answers differ once cut, and both have something to learn."""
    chosen, rejected = pair["chosen_ids"][:limit], pair["rejected_ids"][:limit]
    return chosen != rejected and any(pair["chosen_mask"][:limit]) and any(pair["rejected_mask"][:limit])


def limit_conversations(rows: Rows, template: ChatTemplate, limit: int, rule: str) -> Limited:
    """Apply `--overlong-completions` to conversations. Those whose first answer begins after the limit are left out."""
    around = prompt_length([{"role": "user", "content": ""}], template, limit)  # with its system message, if any

    def parts(row: dict[str, Any]) -> list[encoding.Encoded]:
        tools = encoding.tools_of(row)
        fits = tools is None and around + _bytes(row["messages"]) <= limit
        return [] if fits else encoding.encode_conversation(template, row["messages"], tools)

    encoded = [parts(row) for row in rows]
    lengths = [max((len(ids) for ids, _ in one), default=0) for one in encoded]
    learned = [any(encoding.learns(labels[:limit]) for _, labels in one) for one in encoded]
    flags = "--max-length", "--overlong-completions"
    nothing = {i for i, one in enumerate(encoded) if one and not learned[i]}
    without = nothing, "conversations, whose first answer begins after that"
    return _limit(rows, lengths, limit, rule, "conversations have", flags, *without)


def limit_prompts(rows: Rows, template: ChatTemplate, limit: int, rule: str) -> Limited:
    """Apply `--overlong-prompts` to rows with a `prompt`."""
    lengths = [prompt_length(row["prompt"], template, limit, encoding.tools_of(row)) for row in rows]
    flags = "--max-prompt-length", "--overlong-prompts"
    limited, warnings = _limit(rows, lengths, limit, rule, "prompts have", flags)
    if rule == "truncate":
        limited = [
            {**row, "prompt": _truncate(row, template, limit)} if length > limit else row
            for row, length in zip(rows, lengths, strict=True)
        ]
    return limited, warnings


def prompt_length(prompt: Messages, template: ChatTemplate, limit: int, tools: list[Any] | None = None) -> int:
    """Tokens of the rendered prompt, or its bytes if they are no more than `limit`."""
    text = template.prompt(prompt, tools)
    size = len(text.encode("utf-8"))
    return size if size <= limit else len(template.ids(text))


def most_tokens(rows: Rows, need: str, options: Any, template: ChatTemplate, limit: int) -> int:
    """The most tokens that a model reads of one row, its answer included; if that is no more than `limit`, a bound."""
    answer = options.max_completion_length
    around = prompt_length([{"role": "user", "content": ""}], template, limit)  # with its system message, if any

    def tokens(row: dict[str, Any]) -> int:
        tools = encoding.tools_of(row)
        if need == "prompts":
            return prompt_length(row["prompt"], template, limit - answer, tools) + answer
        parts = [row["messages"]] if need == "conversations" else [row["prompt"], row["chosen"], row["rejected"]]
        if tools is None and around + sum(map(_bytes, parts)) <= limit:
            return limit
        if need == "conversations":
            ids = [ids for ids, _ in encoding.encode_conversation(template, row["messages"], tools)]
            return min(options.max_length, max(map(len, ids)))
        pair = encoding.encode_pair(row, template, answer)
        return len(pair["prompt_ids"]) + max(len(pair["chosen_ids"]), len(pair["rejected_ids"]))

    return max(map(tokens, rows), default=0)


def _limit(
    rows: Rows,
    lengths: Sequence[int],
    limit: int,
    rule: str,
    what: str,
    flags: tuple[str, str],
    without: Collection[int] = (),
    why: str = "",
) -> Limited:
    """Apply `rule` to lengths above `limit`, which `flags` set; when cutting, leave out the positions in `without`."""
    overlong = {i for i, tokens in enumerate(lengths) if tokens > limit}
    if not overlong:
        return rows, []
    total = f"{len(rows):,}"
    found = f"{len(overlong):,} of {total} {what} more than {flags[0]} {limit} tokens, the longest {max(lengths):,}"
    if rule == "error" or (rule == "drop" and len(overlong) == len(rows)):
        ways = "truncate" if len(overlong) == len(rows) else "truncate (or drop)"
        raise UserError(f"{found}. Allow more, or use {flags[1]} {ways}.")
    if rule == "drop":
        return [row for i, row in enumerate(rows) if i not in overlong], [f"{found}: left out"]
    if len(without) == len(rows):
        raise UserError(f"nothing to learn is left of {total} {why}. Allow a larger {flags[0]}.")
    warnings = [f"{found}: cut"] + ([f"left out {len(without):,} of {total} {why}"] if without else [])
    return [row for i, row in enumerate(rows) if i not in without], warnings


def _bytes(messages: Messages) -> float:
    """Bytes of all turns, with 64 more for what the template adds to each. Of calls of tools there is no telling: the
    template may write any spaces into them.
    """
    if any(turn.get("tool_calls") for turn in messages):
        return math.inf
    texts = (json.dumps(turn, ensure_ascii=False) for turn in messages)
    return sum(len(text.encode("utf-8")) + 64 for text in texts)


def _truncate(row: dict[str, Any], template: ChatTemplate, limit: int) -> Messages:
    """Drop the oldest turns after the system message, up to a question, then cut the end of the last message."""
    prompt, tools = row["prompt"], encoding.tools_of(row)
    system = prompt[:1] if prompt[0]["role"] == "system" else []
    turns = prompt[len(system) :]
    while prompt_length([*system, *turns], template, limit, tools) > limit:
        later = [i for i, turn in enumerate(turns) if i and turn["role"] == "user"]
        if not later:
            break
        turns = turns[later[0] :]
    last = turns[-1]
    ids = template.ids(last["content"])
    while (excess := prompt_length([*system, *turns], template, limit, tools) - limit) > 0:
        ids = ids[: len(ids) - excess]
        if not ids:
            raise UserError(f"--max-prompt-length {limit} leaves no room beside the chat template and system message")
        turns = [*turns[:-1], {**last, "content": template.tokenizer.decode(ids, skip_special_tokens=True).rstrip("�")}]
    return [*system, *turns]
