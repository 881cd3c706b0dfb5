"""From files, folders or the Hub to the rows a method trains on.

Rows are read, a formatter is found by their columns, each row becomes an `Example`, and the example is projected onto
what the method needs: `prompts`, `preferences` or `conversations`. Every error names the row's place.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlhf_core import embedded
from rlhf_core.config import EMBEDDED
from rlhf_core.errors import PluginError, UserError, did_you_mean
from rlhf_core.formatter import Example, Formatter, Messages
from rlhf_core.plugins import Catalog

BUILT_IN_FORMATTERS = "rlhf-formatter-common"
# Names that TRL gives a meaning of its own, so a row's own column of that name can't ride along.
CANONICAL = ("prompt", "completion", "completion_ids", "chosen", "rejected", "messages")
Need = Literal["prompts", "preferences", "conversations"]
HELD_OUT_SHARE = 0.1  # at most, of data without a held-out part


@dataclass(frozen=True)
class Row:
    """One row and where it stands, as in `data.jsonl line 3`."""

    place: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Data:
    """Projected rows: `train` to learn from, `held_out` to look at before and after."""

    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    source: str
    formatter: str

    @property
    def columns(self) -> list[str]:
        return list(self.train[0])


def load(
    source: str, config: str | None, need: Need, catalog: Catalog, *, formatter: str | None, held_out: int, seed: int
) -> Data:
    """Read `source` and convert it for a method that needs `need`. `held_out` rows are set apart, by `seed`."""
    if source == EMBEDDED:
        rows = _read_jsonl(embedded.data_file(need, "train"))
        rest = _read_jsonl(embedded.data_file(need, "heldout"))
    else:
        rows, rest = read(source, config), []
    if not rows:
        raise UserError(f"--data {source}: there is no row in it")
    chosen = choose_formatter(rows[0], source, catalog, formatter)
    train = [project(row, chosen, need) for row in rows]
    if rest:
        others = [project(row, chosen, need) for row in rest][:held_out]
    else:
        random.Random(seed).shuffle(train)
        count = min(held_out, int(len(train) * HELD_OUT_SHARE))
        train, others = train[count:], train[:count]
    return Data(train, others, source, chosen.name)


def read(source: str, config: str | None = None) -> list[Row]:
    """The rows of a .json or .jsonl file, of all such files in a folder, or of a Hub data set's `train` split."""
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in (".json", ".jsonl"))
        if not files:
            raise UserError(f"--data {source}: the folder has no .json or .jsonl file")
        return [row for file in files for row in _read_file(file)]
    if path.exists():
        return _read_file(path)
    if path.suffix or source.startswith((".", "/", "~")) or source.count("/") != 1:
        near = [str(p) for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise UserError(f"--data {source}: there is no such file or folder.{did_you_mean(source, near)}")
    return _read_hub(source, config)


def _read_file(path: Path) -> list[Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if path.suffix not in (".json", ".jsonl"):
        raise UserError(f"--data {path}: can't read {path.suffix or 'this kind of'} files. Known: .json, .jsonl.")
    if not text.strip():
        raise UserError(f"--data {path}: the file is empty")
    return _rows_of_list(path, text) if text.lstrip().startswith("[") else list(_rows_of_lines(path, text))


def _read_jsonl(path: Path) -> list[Row]:
    return list(_rows_of_lines(path, path.read_text(encoding="utf-8")))


def _rows_of_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path.name} line {number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path} line {number} is not JSON: {error.msg}, at: {_excerpt(line, error.pos)}"
            ) from error
        yield Row(place, _object(values, place))


def _rows_of_list(path: Path, text: str) -> list[Row]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} line {error.lineno} is not JSON: {error.msg}, at: {_excerpt(text, error.pos)}"
        ) from error
    return [Row(f"{path.name} row {i}", _object(v, f"{path.name} row {i}")) for i, v in enumerate(values, start=1)]


def _object(values: Any, place: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise UserError(f"{place}: expected an object with named columns, not {type(values).__name__}")
    return values


def _excerpt(text: str, position: int) -> str:
    return repr(text[max(0, position - 10) : position + 30])


def _read_hub(source: str, config: str | None) -> list[Row]:
    import datasets

    try:
        loaded = datasets.load_dataset(source, config, split="train")
    except Exception as error:  # the Hub's client raises a dozen types; all of them mean that it can't be read
        raise UserError(
            f"--data {source}: there is no such file, and the Hub could not give it: {type(error).__name__}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return [Row(f"{source} row {i}", dict(values)) for i, values in enumerate(loaded, start=1)]


def choose_formatter(row: Row, source: str, catalog: Catalog, forced: str | None) -> Formatter:
    """The formatter with the most columns among those that fit `row`; built-in ones go before others."""
    if forced is not None:
        chosen = catalog.load("formatters", forced)[0]
        if missing := chosen.columns - row.values.keys():
            raise UserError(f"{row.place}: formatter {forced} needs {_names(missing)}; there is {_names(row.values)}")
        return chosen
    known: list[Formatter] = []
    broken: list[str] = []
    entries = [e for e in catalog.entries("formatters") if e.problem != "disabled"]
    for built_in in (True, False):
        group = []
        for entry in entries:
            if (entry.distribution == BUILT_IN_FORMATTERS) == built_in:
                try:
                    group.append(catalog.load("formatters", f"{entry.distribution}/{entry.name}")[0])
                except PluginError as error:
                    broken.append(str(error))
        if fitting := [f for f in group if f.fits(row.values)]:
            return max(fitting, key=lambda f: (len(f.columns), f.matches is not None))
        known += group
    layouts = "".join(f"\n  {f.name}: {_names(f.columns)}" for f in known)
    raise UserError(
        f"--data {source}: no formatter fits. {row.place} has the columns {_names(row.values)}. Known layouts:{layouts}"
        + "".join(f"\n  ({message})" for message in broken)
    )


def project(row: Row, formatter: Formatter, need: Need) -> dict[str, Any]:
    """What a method that needs `need` gets of a row: TRL's columns, the reference answer, the row's other columns."""
    try:
        example = formatter.convert(row.values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{row.place}: formatter {formatter.name}: {message}") from error
    canonical = _PROJECTIONS[need](example, row)
    answer = {} if example.answer is None else {"answer": example.answer}
    extra = {k: v for k, v in {**row.values, **example.columns, **answer}.items() if k not in CANONICAL}
    return {**canonical, **extra}


def _prompts(example: Example, row: Row) -> dict[str, Any]:
    return {"prompt": _ends_with_user(example.prompt, row)}


def _preferences(example: Example, row: Row) -> dict[str, Any]:
    if example.chosen is None or example.rejected is None:
        raise UserError(f"{row.place}: this method needs pairs of a better and a worse answer; the data has none")
    return {"prompt": _ends_with_user(example.prompt, row), "chosen": example.chosen, "rejected": example.rejected}


def _conversations(example: Example, row: Row) -> dict[str, Any]:
    completion = example.completion or example.chosen
    if completion is None:
        raise UserError(f"{row.place}: this method needs an answer to learn; the data has only a prompt")
    return {"messages": [*example.prompt, *completion]}


_PROJECTIONS = {"prompts": _prompts, "preferences": _preferences, "conversations": _conversations}


def _ends_with_user(prompt: Messages, row: Row) -> Messages:
    if not prompt or prompt[-1]["role"] != "user":
        raise UserError(f"{row.place}: the prompt does not end with a user's message")
    return prompt


def add_system_prompt(rows: Sequence[dict[str, Any]], system_prompt: str) -> int:
    """Put a system message before prompts without one; returns to how many."""
    changed = 0
    for row in rows:
        key = "messages" if "messages" in row else "prompt"
        if row[key][0]["role"] != "system":
            row[key] = [{"role": "system", "content": system_prompt}, *row[key]]
            changed += 1
    return changed


def _names(columns: Mapping[str, Any] | set[str] | frozenset[str]) -> str:
    return ", ".join(sorted(columns) if isinstance(columns, set | frozenset) else columns) or "none"
