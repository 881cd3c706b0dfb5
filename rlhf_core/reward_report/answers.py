"""The answers for `rlhf score`: rows with completions, a run's samples, or a data set's answers.

A row with `prompt` and `completion` (or `completions`, a list) is used as it is: text or messages, even empty ones. A
run's samples.jsonl has its columns in an object. Every other format is read by the formatters; both answers of a pair
are scored.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhf_core import builtin
from rlhf_core.catalog import Catalog
from rlhf_core.data.files import Row, read_file
from rlhf_core.data.formats import Formats
from rlhf_core.data.left_out import NO_FORMAT, LeftOut
from rlhf_core.data.llama_factory import resolved
from rlhf_core.data.projecting import CANONICAL, is_text_prompt, row_columns
from rlhf_core.data.sources import read
from rlhf_core.errors import UserError
from rlhf_core.formatter import Messages
from rlhf_core.grammar import DataSpec
from rlhf_core.inputs import is_text, path_of
from rlhf_core.numbers import MAX_BAD_ROWS
from rlhf_core.rewards.batch import TEXT_PROMPT

SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class Answer:
    """One completion. Answers of the same `group` are compared, as GRPO does. `text_prompt`: the data's prompt is text,
    not messages.
    """

    location: str
    prompt: Messages
    completion: Messages
    columns: Mapping[str, Any]
    group: str
    side: Literal["chosen", "rejected"] | None = None
    text_prompt: bool = False

    @property
    def text(self) -> str:
        return "\n".join(turn["content"] for turn in self.completion)


@dataclass(frozen=True)
class Answers:
    """The answers of one source: the data's answers if `own`, else a model's."""

    source: str
    format: str
    rows: list[Answer]
    warnings: list[str] = field(default_factory=list)
    own: bool = False

    @property
    def columns(self) -> list[str]:
        """The columns that any row has."""
        return list(dict.fromkeys(name for row in self.rows for name in row.columns))


def read_answers(
    source: str, catalog: Catalog, limit: int | None = None, max_bad_rows: float = MAX_BAD_ROWS
) -> Answers:
    """The answers of the first `limit` rows of a file, a run's folder or any `--data`. Raises `UserError`.

    `max_bad_rows`: how many that can't be read are left out, a share below 1 or a number.
    """
    spec, described = resolved(DataSpec.read(source))
    path = path_of(spec.source, "data")
    if (path / "config.yaml").is_file():
        path = path / SAMPLES
        if not path.is_file() or not path.stat().st_size:
            raise UserError(f"{source}: the run has no samples; ppo and grpo write {SAMPLES} as they train")
        spec = DataSpec(str(path))
    left_out = LeftOut(spec.source, max_bad_rows)
    rows, warnings = read(spec, "train", left_out.add)
    return answers_of(spec, rows[:limit], described + warnings, catalog, left_out)


def read_builtin(catalog: Catalog, limit: int | None, fits: Callable[[Sequence[str]], bool]) -> Answers:
    """The built-in pairs, which show whether a reward prefers the chosen answer; if they don't fit, its prompts."""

    def answers(kind: Literal["preferences", "prompts"]) -> Answers:
        rows = read_file(builtin.data_file(kind, "train"))[:limit]
        spec = DataSpec(f"builtin {kind}")
        return answers_of(spec, rows, [], catalog, LeftOut(spec.source))

    pairs = answers("preferences")
    return pairs if fits(pairs.columns) else answers("prompts")


def answers_of(spec: DataSpec, rows: list[Row], warnings: list[str], catalog: Catalog, left_out: LeftOut) -> Answers:
    """The answers of `rows`. Those rows that can't be read are `left_out`."""
    source, total = spec.source, len(rows) + left_out.rows()
    left_out.check(total)
    if not rows:
        raise UserError(f"{source}: there is no row in it")
    first = rows[0].values
    formats: Formats | None = None
    if {"prompt", "completion", "rewards", "columns"} <= first.keys() and isinstance(first["columns"], Mapping):
        kind, answers = "a run's samples", lambda row: _completions(_flat(row))
    elif "prompt" in first and ("completion" in first or "completions" in first) and spec == DataSpec(source):
        kind, answers = "completions", _completions
    else:
        formats = Formats(rows, spec, catalog)
        kind, answers = f"format {formats.main.name}", functools.partial(_own, formats=formats)
        warnings += formats.told
    found: list[Answer] = []
    for row in rows:
        try:
            found += answers(row)
        except UserError as error:
            left_out.add(row.location, error)
    left_out.check(total, NO_FORMAT)
    warnings += left_out.warnings(total)
    return Answers(source, kind, found, warnings, own=formats is not None)


def _flat(row: Row) -> Row:
    """A run's sample with its columns beside the completion, without its scores."""
    columns = row.values.get("columns")
    if not isinstance(columns, Mapping):
        raise UserError(f"{row.location}: a run's sample has its columns in an object, and this row has none")
    values = {key: value for key, value in row.values.items() if key in ("prompt", "completion", "step", TEXT_PROMPT)}
    return Row(row.location, {**columns, **values})


def _completions(row: Row) -> Iterator[Answer]:
    """The completions of a row, grouped by prompt (a run's samples: by prompt and step)."""
    values = row.values
    names = [name for name in ("completion", "completions") if name in values]
    if "prompt" not in values or not names:
        raise UserError(f"{row.location} has no {'completion' if 'prompt' in values else 'prompt'}; {_has(row)}")
    given = values[names[0]] if names[0] == "completions" else [values["completion"]]
    if not isinstance(given, list) or not given:
        raise UserError(f"{row.location}: completions must be a list of one or more, not {given!r:.60}")
    prompt = _messages(values["prompt"], "user", f"{row.location}: prompt")
    others = (*CANONICAL, "completions", "step", TEXT_PROMPT)
    columns = {key: value for key, value in values.items() if key not in others}
    text = isinstance(values["prompt"], str) or values.get(TEXT_PROMPT) is True
    group = repr([values.get("step"), prompt])
    for one in given:
        completion = _messages(one, "assistant", f"{row.location}: {names[0]}")
        yield Answer(row.location, prompt, completion, columns, group, text_prompt=text)


def _messages(value: Any, role: str, location: str) -> Messages:
    """Text as one message of `role`; messages as they are."""
    turns = [value] if isinstance(value, Mapping) else value
    if isinstance(value, str):
        turns = [{"role": role, "content": value}]
    valid = isinstance(turns, list) and all(
        isinstance(turn, Mapping) and all(isinstance(turn.get(key), str) for key in ("role", "content"))
        for turn in turns
    )
    if not turns or not valid:
        raise UserError(f"{location} must be text or a list of {{role, content}}, not {value!r:.60}")
    if not is_text(turns):
        raise UserError(f"{location} has half of a character, a lone surrogate")
    return [dict(turn) for turn in turns]


def _own(row: Row, formats: Formats) -> Iterator[Answer]:
    """The data set's answers in a row: the pair, else the completion, else the reference answer."""
    example = formats.convert(row)
    columns = row_columns(row, example)
    text = is_text_prompt(row.values.get("prompt"), example.prompt)
    if example.chosen is not None and example.rejected is not None:
        yield Answer(row.location, example.prompt, example.chosen, columns, row.location, "chosen", text)
        yield Answer(row.location, example.prompt, example.rejected, columns, row.location, "rejected", text)
        return
    completion = example.completion or example.rejected  # one that a label calls bad
    if completion is None and example.answer is not None:
        completion = [{"role": "assistant", "content": example.answer}]
    if completion is None:
        raise UserError(f"{row.location} has no completion to score; {_has(row)}")
    yield Answer(row.location, example.prompt, completion, columns, repr(example.prompt), text_prompt=text)


def _has(row: Row) -> str:
    formats = "prompt with completion (or completions, a list), or a format with answers (rlhf formatters lists them)"
    return f"its columns: {', '.join(row.values)}. Formats that can be scored: {formats}."
