"""Pairs of a chosen and a rejected answer, of any source that a run can read, each with its location.

For commands that look at pairs as they are: nothing is tokenized, cut or mixed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlhf_core.catalog import Catalog
from rlhf_core.data import sources
from rlhf_core.data.files import Row
from rlhf_core.data.formats import Formats
from rlhf_core.data.left_out import NO_FORMAT, LeftOut
from rlhf_core.data.llama_factory import resolved
from rlhf_core.data.progress import Progress, silent
from rlhf_core.errors import UserError
from rlhf_core.formatter import Messages
from rlhf_core.grammar import DataSpec
from rlhf_core.numbers import MAX_BAD_ROWS

EVERY = 500  # rows, after which progress is told


@dataclass(frozen=True)
class Pair:
    """A row's pair, and what else it has: `columns` are those that no formatter reads."""

    location: str
    prompt: Messages
    chosen: Messages
    rejected: Messages
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pairs:
    source: str
    format: str
    rows: list[Pair]
    warnings: list[str]


def read_pairs(source: str, catalog: Catalog, max_bad_rows: float = MAX_BAD_ROWS, progress: Progress = silent) -> Pairs:
    """The pairs of a source, as `--data` takes it. Rows without one are left out and told; too many are an error
    (`UserError`).
    """
    spec, described = resolved(DataSpec.read(source))
    left_out = LeftOut(spec.source, max_bad_rows)
    progress(f"Reading {spec.source} …")
    rows, warnings = sources.read(spec, "train", left_out.add)
    return pairs_of(spec, rows, described + warnings, catalog, left_out, progress)


def pairs_of(
    spec: DataSpec,
    rows: list[Row],
    warnings: list[str],
    catalog: Catalog,
    left_out: LeftOut,
    progress: Progress = silent,
) -> Pairs:
    """The pairs of rows that were read."""
    total = len(rows) + left_out.rows()
    left_out.check(total)
    if not rows:
        raise UserError(f"{spec.source}: there is no row in it")
    formats = Formats(rows, spec, catalog)
    found: list[tuple[Row, Pair]] = []
    for number, row in enumerate(rows):
        if number % EVERY == 0:
            progress(f"Reading {spec.source} …", number / len(rows))
        try:
            example = formats.convert(row)
            if example.chosen is None or example.rejected is None:
                raise UserError(f"{row.location}: has no pair of a chosen and a rejected answer")
            if not example.prompt or example.prompt[-1]["role"] not in ("user", "tool"):
                raise UserError(f"{row.location}: the prompt does not end with a user's message")
        except UserError as error:
            left_out.add(row.location, error)
            continue
        found.append((row, Pair(row.location, example.prompt, example.chosen, example.rejected, example.columns)))
    left_out.check(total, NO_FORMAT)
    read = formats.parts()
    pairs = [
        Pair(pair.location, pair.prompt, pair.chosen, pair.rejected, {**_others(row.values, read), **pair.columns})
        for row, pair in found
    ]
    told = [*warnings, *formats.told, *left_out.warnings(total)]
    return Pairs(spec.source, f"format {formats.main.name}", pairs, told)


def _others(values: Mapping[str, Any], read: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in read and value is not None}


def reply(turns: Messages) -> str | Messages:
    """The assistant's turns as a file has them: text where that is all, and reads back as such."""
    if len(turns) == 1 and turns[0].keys() == {"role", "content"}:
        text = turns[0]["content"]
        if text.strip() and not text.lstrip().startswith("["):
            return text
    return turns


def turns_of(value: Any) -> Messages | None:
    """The assistant's turns of what `reply` gives; None of anything else."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    return value if is_turns(value) else None


def is_turns(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
            for turn in value
        )
    )


def question_of(prompt: Messages) -> dict[str, Any]:
    """A prompt as columns: `question`, with `system` and `history` where it has more than a user's turn."""
    system = prompt[0]["content"] if prompt[0]["role"] == "system" else None
    turns = prompt[1:] if system is not None else prompt
    plain = all(turn.keys() == {"role", "content"} for turn in prompt)
    if not plain or not turns or turns[-1]["role"] != "user" or not turns[-1]["content"].strip() or system == "":
        return {"prompt": prompt}
    found: dict[str, Any] = {"question": turns[-1]["content"]}
    if system is not None:
        found["system"] = system
    if turns[:-1]:
        found["history"] = turns[:-1]
    return found


def pair_row(prompt: Messages, chosen: Messages, rejected: Messages) -> dict[str, Any]:
    """A pair as the formatters `preference` or `prompt_preference` read it."""
    columns = question_of(prompt)
    names = ("chosen", "rejected") if "prompt" in columns else ("response_chosen", "response_rejected")
    return {**columns, names[0]: reply(chosen), names[1]: reply(rejected)}


def text_of(turns: Messages) -> str:
    """All that an answer says, with its thoughts (in `<think>`) and its calls of tools."""
    if len(turns) == 1 and turns[0].keys() == {"role", "content"}:
        return str(turns[0]["content"])
    parts = []
    for turn in turns:
        thought = turn.get("reasoning_content")
        if isinstance(thought, str) and thought.strip():
            parts.append(f"<think>\n{thought.strip()}\n</think>")
        parts.append(turn["content"])
        if turn.get("tool_calls"):
            parts.append(json.dumps(turn["tool_calls"], ensure_ascii=False, default=str))
    return "\n".join(part for part in parts if part)
