"""Rows of one file, each with its location for messages.

.json (a list, or an object per line), .jsonl, .csv, .parquet and .arrow (what `save_to_disk` of datasets writes), each
also as .gz. Other content is refused by what it is: another encoding, a Git LFS pointer, one object instead of rows.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rlhf_core.errors import UserError, first_line
from rlhf_core.inputs import parse_json

KINDS = (".json", ".jsonl", ".csv", ".parquet", ".arrow")
# What files of another kind begin with, whatever they are called.
NO_DATA = {
    b"version https://git-lfs.github.com/spec/": "is a Git LFS pointer, not the file itself: run `git lfs pull` first",
    b"<!DOCTYPE html": "is a web page, not the file itself: download the raw file",
    b"<html": "is a web page, not the file itself: download the raw file",
    b"PK\x03\x04": "is a ZIP archive or an Excel workbook: unpack it, or save it as CSV in UTF-8",
    b"\x1f\x8b": "is compressed by gzip: add .gz to its name",
}
CHINESE = (("\u4e00", "\u9fff"), ("\u3000", "\u303f"), ("\uff00", "\uffef"))  # characters, punctuation, full width
ROWS = (
    "data",
    "rows",
    "train",
    "examples",
    "items",
    "records",
    "instances",
    "dataset",
)  # usual names of a list of rows
BYTE_ORDER_MARKS = {b"\xff\xfe\x00\x00": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


@dataclass(frozen=True)
class Row:
    """One row and its location, such as `data.jsonl line 3`."""

    location: str
    values: dict[str, Any]


def kind(name: str) -> str | None:
    """The suffix without .gz in small letters, if such files can be read."""
    suffix = PurePosixPath(name.lower().removesuffix(".gz")).suffix
    return suffix if suffix in KINDS else None


def read_file(path: Path, name: str | None = None) -> list[Row]:
    """The rows of one file, which messages call `name`. Raises `UserError`."""
    suffix = kind(path.name)
    if suffix is None:
        raise UserError(f"{path}: can't read {path.suffix or 'this kind of'} files. Known: {', '.join(KINDS)}.")
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: {error}") from error
    start = content[:100].removeprefix(b"\xef\xbb\xbf").lstrip()
    for prefix, problem in NO_DATA.items():
        if start.lower().startswith(prefix.lower()):
            raise UserError(f"{path} {problem}")
    rows = []
    for where, values in _table(path, content, suffix) if suffix in (".parquet", ".arrow") else _text(path, content):
        location = f"{name or path.name} {where}"
        if not isinstance(values, dict):
            hint = (
                ": it is JSON inside of text" if isinstance(values, str) and values.lstrip()[:1] in ("{", "[") else ""
            )
            raise UserError(f"{location}: expected an object with named columns, not {type(values).__name__}{hint}")
        rows.append(Row(location, values))
    return rows


def _text(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    """("line 3" or "row 3", its value) of each row."""
    text = _decode(path, content)
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    if kind(path.name) == ".csv":
        yield from _csv(path, text)
    elif text.lstrip().startswith("["):
        for number, values in enumerate(parse_json(text, str(path)), start=1):
            yield f"row {number}", values
    else:
        _refuse_one_object(path, text)
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield f"line {number}", parse_json(line, f"{path} line {number}")


def _decode(path: Path, content: bytes) -> str:
    """The text of a file in UTF-8. Raises `UserError` that names the encoding which it seems to have."""
    encoding = next((name for start, name in BYTE_ORDER_MARKS.items() if content.startswith(start)), None)
    if encoding is None and content[:200].count(0) > len(content[:200]) // 4:
        encoding = "UTF-16BE" if content[0] == 0 else "UTF-16LE"
    try:
        if encoding is None:
            return content.decode("utf-8-sig")
        where = ""
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        where, encoding = f" (byte {error.start}, in line {line})", _chinese(content)
    looks = f"; it looks like {encoding}. Convert it: iconv -f {encoding} -t UTF-8 {path.name!r} > NEW"
    raise UserError(f"{path} is not UTF-8 text{where}{looks if encoding else ': save it in UTF-8'}")


def _chinese(content: bytes) -> str | None:
    """`GBK` if the bytes make sense in it: more than half of what is not ASCII is Chinese."""
    others = [char for char in content.decode("gb18030", "replace") if char > "\x7f"]
    chinese = sum(any(first <= char <= last for first, last in CHINESE) for char in others)
    return "GBK" if chinese > 0.5 * len(others) else None


def _refuse_one_object(path: Path, text: str) -> None:
    """Raise `UserError` for objects over several lines, and for a single one that holds the rows or columns."""
    text = text.strip()
    try:
        values, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return  # the line that is wrong is named later
    if not isinstance(values, dict) or not values:
        return
    several_lines = "\n" in text[:end]
    if end < len(text):
        if several_lines:
            raise UserError(
                f"{path}: an object takes several lines. Write a list, [{{…}}, {{…}}], or an object per line."
            )
        return
    rows = next((name for name in ROWS if isinstance(values.get(name), list)), None)
    lengths = {len(value) if isinstance(value, list) else 0 for value in values.values()}
    columns = len(values) > 1 and len(lengths) == 1 and max(lengths) > 1
    nested = len(values) > 1 and all(isinstance(value, dict) for value in values.values())  # rows or columns, by name
    if several_lines or columns or nested or (rows and values[rows] and isinstance(values[rows][0], dict)):
        hint = f" If {rows!r} holds the rows, save that list alone." if rows else ""
        hint = " It seems to hold columns: save it as rows." if columns else hint
        given = f"{path} is one JSON object ({', '.join(values)}), not a list of rows"
        raise UserError(f"{given}. Write [{{…}}, {{…}}], or one object per line.{hint}")


def _csv(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """The first line names the columns; an empty cell is None, and a line of them no row."""
    csv.field_size_limit(1 << 30)
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        names = next(lines)
        _check_names(path, names)
        for cells in filter(any, lines):
            if len(cells) != len(names):
                raise UserError(f"{path} line {lines.line_num}: {len(cells)} cells under {len(names)} columns")
            yield f"line {lines.line_num}", {name: cell or None for name, cell in zip(names, cells, strict=True)}
    except csv.Error as error:
        raise UserError(f"{path} line {lines.line_num}: {error}") from error


def _check_names(path: Path, names: list[str]) -> None:
    """Raise `UserError` for a first line of a CSV file that does not name columns separated by commas."""
    given = ", ".join(map(repr, names))
    other = next((sign for sign in ";\t|" if len(names) == 1 and sign in names[0]), None)
    if other:
        raise UserError(f"{path}: the columns are separated by {other!r} ({given}): separate them by commas")
    if any(name != name.strip() for name in names):
        raise UserError(f"{path}: names of the first line have spaces around them ({given}): remove them in every line")
    if len(set(names)) != len(names):
        raise UserError(f"{path}: two columns of the first line have the same name: {', '.join(names)}")


def _table(path: Path, content: bytes, suffix: str) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        if suffix == ".parquet":
            table = pyarrow.parquet.read_table(io.BytesIO(content))
        elif content.startswith(b"ARROW1"):
            table = pyarrow.ipc.open_file(content).read_all()
        else:
            table = pyarrow.ipc.open_stream(content).read_all()
        rows = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        name = suffix.removeprefix(".").capitalize()
        raise UserError(f"{path} is not {'an' if name == 'Arrow' else 'a'} {name} file: {first_line(error)}") from error
    for number, values in enumerate(rows, start=1):
        yield f"row {number}", values
