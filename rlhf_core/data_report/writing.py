"""Rows to a file of JSON lines or of Parquet, one at a time.

Parquet has a type for each column, which only all rows can tell. So they are written as JSON lines first, while the
types are found: text, numbers, lists of texts, turns whose values are all text. Whatever else there is becomes JSON
text, which our formatters read (texts beside it stay as they are): as Arrow's structures, objects would get the keys of
all others.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rlhf_core.data.parts import Row

SUFFIXES = (".jsonl", ".parquet")
BATCH = 1000
JSON = "JSON"
Kind = str | tuple[str, ...] | None  # a type's name, the keys of turns, or not known yet


def write(rows: Iterable[Row], path: Path, suffix: str) -> list[str]:
    """Write rows of plain data; what is to be said of it."""
    kinds: dict[str, Kind] = {}
    if suffix == ".jsonl":
        _write_lines(rows, path, kinds)
        return []
    lines = path.with_name(f"{path.name}-lines")
    try:
        _write_lines(rows, lines, kinds)
        _write_parquet(lines, path, kinds)
    finally:
        lines.unlink(missing_ok=True)
    nested = [name for name, kind in kinds.items() if kind == JSON]
    return [f"JSON text in the Parquet file, as it holds more than texts: {', '.join(nested)}"] if nested else []


def _write_lines(rows: Iterable[Row], path: Path, kinds: dict[str, Kind]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            for name, value in row.items():
                kinds[name] = both(kinds.get(name), kind_of(value))


def kind_of(value: Any) -> Kind:
    """The type of a value, as far as a column of Parquet can have it."""
    if value is None:
        return None
    if isinstance(value, bool | str | float):
        return type(value).__name__
    if isinstance(value, int):
        return "int" if -(2**63) <= value < 2**63 else JSON
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return "texts"
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        keys = dict.fromkeys(key for item in value for key in item)
        if keys and all(isinstance(text, str) for item in value for text in item.values()):
            return tuple(keys)
    return JSON


def both(one: Kind, other: Kind) -> Kind:
    """The type of a column that has values of two types."""
    if one is None or other is None or one == other:
        return other if one is None else one
    if isinstance(one, tuple) and isinstance(other, tuple):
        return tuple(dict.fromkeys((*one, *other)))
    return "float" if {one, other} == {"int", "float"} else JSON


def _write_parquet(lines: Path, path: Path, kinds: dict[str, Kind]) -> None:
    import pyarrow
    import pyarrow.parquet

    text = pyarrow.string()
    types = {"bool": pyarrow.bool_(), "int": pyarrow.int64(), "float": pyarrow.float64(), "texts": pyarrow.list_(text)}
    schema = pyarrow.schema([
        (name, pyarrow.list_(pyarrow.struct([(key, text) for key in kind])))
        if isinstance(kind, tuple)
        else (name, types.get(str(kind), text))
        for name, kind in kinds.items()
    ])  # fmt: skip
    with pyarrow.parquet.ParquetWriter(path, schema) as file, lines.open(encoding="utf-8") as rows:
        for batch in _batches(map(json.loads, rows)):
            for row in batch:
                for name, value in row.items():
                    if kinds[name] == JSON and not isinstance(value, str | None):
                        row[name] = json.dumps(value, ensure_ascii=False)
            file.write_table(pyarrow.Table.from_pylist(batch, schema))


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    return iter(lambda: list(itertools.islice(rows, BATCH)), [])
