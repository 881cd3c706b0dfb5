"""From sources to the rows that a method trains on.

Rows are read, a formatter is chosen by their columns, each row becomes an `Example`, which is projected onto what the
method needs: `prompts`, `preferences` or `conversations`. Every error names the row's location.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rlhf_core import builtin
from rlhf_core.catalog import Catalog
from rlhf_core.config import BUILTIN
from rlhf_core.data.files import Row, read_file
from rlhf_core.data.sources import Use, read
from rlhf_core.errors import PluginError, UserError
from rlhf_core.formatter import Example, Formatter, Messages
from rlhf_core.grammar import DataSpec

BUILT_IN_FORMATTERS = "rlhf-formatter-common"
Need = Literal["prompts", "preferences", "conversations"]
Prepare = Callable[[dict[str, Any]], dict[str, Any]] | None
# What a row becomes for each need. Its other columns stay, for rewards, but for those that are its prompt and answer.
PROJECTED: Mapping[Need, tuple[str, ...]] = {
    "prompts": ("prompt",),
    "preferences": ("prompt", "chosen", "rejected"),
    "conversations": ("messages",),
}
CANONICAL = ("prompt", "completion", "messages")
HELD_OUT_SHARE = 0.1  # at most, of data without a held-out part


@dataclass(frozen=True)
class Part:
    """One source's projected rows. It has `total`, of which its weight may leave some out."""

    spec: DataSpec
    formatter: str
    rows: list[dict[str, Any]]
    total: int
    warnings: list[str]
    text_prompts: bool

    def __str__(self) -> str:
        of = "" if len(self.rows) == self.total else f" of {self.total:,}"
        return f"{self.spec.source}, format {self.formatter}, {len(self.rows):,}{of} rows"


@dataclass(frozen=True)
class Data:
    """Projected rows: `train`, which come from `parts`, and `held_out`, to evaluate on.

    Rows have the columns of all sources, with None where their source has no such column; `columns` are those that
    every source has. `warnings` name the rows and files that were left out. `text_prompts`: all training prompts are
    plain text in a column `prompt`, TRL's standard format, as against messages.
    """

    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    parts: list[Part]
    columns: list[str]
    warnings: list[str]
    need: Need
    text_prompts: bool = False


def load(
    specs: Sequence[DataSpec],
    need: Need,
    catalog: Catalog,
    *,
    eval_specs: Sequence[DataSpec] = (),
    held_out: int = 0,
    seed: int = 0,
    skip_bad_rows: bool = False,
    prepare: Prepare = None,
) -> Data:
    """Read the sources and convert them for a method that needs `need`.

    The held-out rows are those of `eval_specs`, or of the built-in set if that is the only source, else `held_out` rows
    chosen by `seed`, a tenth at most. Several sources are mixed by `seed`; their weights are shares of the mixture,
    which is as large as possible without a row twice. A row that can't be converted is an error, or with
    `skip_bad_rows` left out and counted in the warnings. `prepare` changes projected rows, and may refuse some.
    """
    how = need, catalog, skip_bad_rows, prepare
    parts = [_part(spec, *how) for spec in specs]
    eval_parts = [_part(spec, *how, "evaluate") for spec in eval_specs]
    others = [row for part in eval_parts for row in part.rows]
    if not others and [spec.source for spec in specs] == [BUILTIN]:
        others = _part(specs[0], *how, "evaluate").rows
    mixed = _weigh(parts, random.Random(f"{seed} weights"))
    rows = [row for part in mixed for row in part.rows]
    if not others or len(parts) > 1:
        random.Random(seed).shuffle(rows)
    if others:
        train, others = rows, others[:held_out]
    else:
        count = min(held_out, int(len(rows) * HELD_OUT_SHARE))
        train, others = rows[count:], rows[:count]
    columns = [key for key in train[0] if all(key in part.rows[0] for part in mixed)]
    warnings = [text for part in [*mixed, *eval_parts] for text in part.warnings]
    rows, text = _same_columns([*train, *others]), all(part.text_prompts for part in mixed)
    return Data(rows[: len(train)], rows[len(train) :], mixed, columns, warnings, need, text)


def _part(
    spec: DataSpec, need: Need, catalog: Catalog, skip_bad_rows: bool, prepare: Prepare, use: Use = "train"
) -> Part:
    """The rows of one source to train on, or to evaluate on."""
    if spec.source == BUILTIN:
        rows = read_file(builtin.data_file(need, "train" if use == "train" else "heldout"))
        warnings: list[str] = []
    else:
        rows, warnings = read(spec, use)
    if not rows:
        raise UserError(f"{spec.source}: there is no row in it")
    formatter = choose_formatter(rows[0], spec.source, catalog, spec.formatter)
    projected, bad, text_prompts = [], [], True
    for row in rows:
        try:
            one = project(row, formatter, need)
            text_prompts = text_prompts and is_text_prompt(row.values.get("prompt"), prompt_of(one))
            projected.append(_prepared(row, one, prepare))
        except UserError as error:
            bad.append(str(error))
    count = f"{len(bad):,} of {len(rows):,} rows"
    if bad and not (skip_bad_rows and projected):
        hint = " Leave such rows out: --skip-bad-rows" if projected else ""
        raise UserError(f"{bad[0]}. {count} can't be used.{hint}")
    if bad:
        warnings.append(f"{spec.source}: left out {count}; the first: {bad[0]}")
    return Part(spec, formatter.name, projected, len(projected), warnings, text_prompts)


def _prepared(row: Row, projected: dict[str, Any], prepare: Prepare) -> dict[str, Any]:
    try:
        return prepare(projected) if prepare else projected
    except UserError as error:
        raise UserError(f"{row.location}: {error}") from error


def _weigh(parts: list[Part], rng: random.Random) -> list[Part]:
    """Draw rows from each part so that their numbers have the ratio of the weights."""
    weights = [part.spec.weight for part in parts if part.spec.weight]
    if len(weights) < 2:
        return parts
    size = min(part.total / weight for part, weight in zip(parts, weights, strict=True))
    counts = [max(1, round(size * weight)) for weight in weights]
    return [
        replace(part, rows=rng.sample(part.rows, count)) if count < part.total else part
        for part, count in zip(parts, counts, strict=True)
    ]


def _same_columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = dict.fromkeys(key for row in rows for key in row)
    return [{name: row.get(name) for name in names} for row in rows]


def choose_formatter(row: Row, source: str, catalog: Catalog, forced: str | None) -> Formatter:
    """The formatter with the most columns among those that fit `row`; built-in ones take precedence."""
    if forced is not None:
        chosen = catalog.load("formatters", forced)[0]
        if missing := chosen.columns - row.values.keys():
            needs = f"formatter {forced} needs {_names(sorted(missing))}"
            raise UserError(f"{row.location}: {needs}; the row has {_names(row.values)}")
        return chosen
    known: list[str] = []
    for built_in in (True, False):
        fitting = []
        for entry in catalog.entries("formatters"):
            if entry.problem == "disabled" or (entry.distribution == BUILT_IN_FORMATTERS) != built_in:
                continue
            try:
                formatter = catalog.load("formatters", f"{entry.distribution}/{entry.name}")[0]
            except PluginError as error:
                known.append(f"\n  ({error})")
                continue
            known.append(f"\n  {formatter.name}: {_names(sorted(formatter.columns))}")
            if formatter.fits(row.values):
                fitting.append(formatter)
        if fitting:
            return max(fitting, key=lambda f: (len(f.columns), f.matches is not None))
    raise UserError(
        f"{source}: no formatter fits. {row.location} has the columns {_names(row.values)}. Known formats:"
        + "".join(known)
    )


def project(row: Row, formatter: Formatter, need: Need) -> dict[str, Any]:
    """The row for a method that needs `need`: TRL's columns, the reference answer, the row's other columns."""
    example = convert(row, formatter)
    others = row_columns(row, example)
    if need == "conversations":
        completion = example.completion or example.chosen
        if completion is None:
            raise UserError(f"{row.location}: this method needs an answer to learn; the data has only a prompt")
        return {"messages": [*example.prompt, *completion], **others}
    pair = {"chosen": example.chosen, "rejected": example.rejected} if need == "preferences" else {}
    if None in pair.values():
        raise UserError(f"{row.location}: this method needs pairs of a chosen and a rejected answer; the data has none")
    if not example.prompt or example.prompt[-1]["role"] not in ("user", "tool"):
        raise UserError(f"{row.location}: the prompt does not end with a user's message")
    return {"prompt": example.prompt, **pair} | others | pair


def convert(row: Row, formatter: Formatter) -> Example:
    """The row as an example. Raises `UserError` that names its location."""
    try:
        return formatter.convert(row.values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{row.location}: formatter {formatter.name}: {message}") from error


def row_columns(row: Row, example: Example) -> dict[str, Any]:
    """The columns for rewards: the row's, those that the formatter added, the reference answer."""
    answer = {} if example.answer is None else {"answer": example.answer}
    return {k: v for k, v in {**row.values, **example.columns, **answer}.items() if k not in CANONICAL}


def prompt_of(row: Mapping[str, Any]) -> Any:
    """The messages to answer: the prompt, or a conversation up to its last question."""
    if "prompt" in row:
        return row["prompt"]
    messages = row["messages"]
    last = max(i for i, turn in enumerate(messages) if turn["role"] == "user")
    return messages[: last + 1]


def is_text_prompt(given: Any, prompt: Messages) -> bool:
    """Whether a row's prompt is `given` as the text of one question."""
    return [turn["content"] for turn in prompt if turn["role"] != "system"] == [given]


def add_system_prompt(rows: Sequence[dict[str, Any]], system_prompt: str) -> int:
    """Put a system message before prompts without one. Returns their number."""
    changed = 0
    for row in rows:
        key = "messages" if "messages" in row else "prompt"
        if row[key][0]["role"] != "system":
            row[key] = [{"role": "system", "content": system_prompt}, *row[key]]
            changed += 1
    return changed


def _names(columns: Iterable[str]) -> str:
    return ", ".join(columns) or "none"
