"""Rows of one file, each with its location for messages.

.json (a list, or an object per line), .jsonl, .csv, .parquet and .arrow (what `save_to_disk` of datasets writes), each
also as .gz. Other content is refused by what it is: another encoding, a Git LFS pointer, one object instead of rows.
Files are read a line or a batch at a time. Compressed ones that unpack to far more than data does are refused early.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from rlhf_core.data.left_out import Refuse
from rlhf_core.data.tables import read_arrow, read_parquet
from rlhf_core.errors import UserError
from rlhf_core.inputs import is_text, library_errors, open_file, parse_json

LONGEST = 1 << 26  # bytes of a row in text, and characters of a cell; the longest contexts are a tenth of it
UNPACKED = 1 << 29  # bytes that every compressed file may unpack to, and beyond: as many times its size
RATIO = 200
ICONV = "Convert it: iconv -f {0} -t UTF-8 {1!r} > NEW"
KINDS = (".json", ".jsonl", ".csv", ".parquet", ".arrow")
# What files of another kind begin with, whatever they are called.
NO_DATA = {
    b"version https://git-lfs.github.com/spec/": "is a Git LFS pointer, not the file itself: run `git lfs pull` first",
    b"<!DOCTYPE html": "is a web page, not the file itself: download the raw file",
    b"<html": "is a web page, not the file itself: download the raw file",
    b"PAR1": "is a Parquet file: add .parquet to its name",
    b"ARROW1": "is an Arrow file: add .arrow to its name",
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


def read_file(path: Path, name: str | None = None, refuse: Refuse | None = None) -> list[Row]:
    """The rows of one file, which messages call `name`. Raises `UserError`.

    `refuse` is told of rows that can't be read, which are an error otherwise.
    """
    suffix = kind(path.name)
    if suffix is None:
        raise UserError(f"{path}: can't read {path.suffix or 'this kind of'} files. Known: {', '.join(KINDS)}.")
    rows = []
    known: set[str] = set()
    with open_file(path) as file:
        for where, values in _rows(path, file, suffix):
            location = f"{name or path.name} {where}"
            if error := _problem(values, location, known):
                if refuse is None:
                    raise error
                refuse(location, error)
            else:
                known.update(values)
                rows.append(Row(location, values))
    return rows


def _problem(values: Any, location: str, known: set[str]) -> UserError | None:
    """Why `values` are no row; `known` are the names of columns that were seen."""
    if isinstance(values, UserError):
        return values
    if not isinstance(values, dict):
        inside = isinstance(values, str) and values.lstrip()[:1] in ("{", "[")
        hint = ": it is JSON inside of text" if inside else ""
        return UserError(f"{location}: expected an object with named columns, not {type(values).__name__}{hint}")
    bad = None if values.keys() <= known else next((column for column in values if not is_text(column)), None)
    return UserError(f"{location}: the name of a column has half of a character: {bad!r}") if bad else None


def _rows(path: Path, file: IO[bytes], suffix: str) -> Iterator[tuple[str, Any]]:
    """("line 3" or "row 3", its value, or an error for one that can't be read) of each row."""
    size = os.fstat(file.fileno()).st_size
    stream: IO[bytes] = file
    if packed := path.suffix.lower() == ".gz":
        stream = io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=file)))
    with library_errors(str(path)):
        start = stream.read(200)
        stream.seek(0)
    tables = suffix in (".parquet", ".arrow")
    for prefix, problem in () if tables else NO_DATA.items():
        if start.removeprefix(codecs.BOM_UTF8).lstrip().lower().startswith(prefix.lower()):
            raise UserError(f"{path} {problem}")
    most = max(UNPACKED, RATIO * size)
    if tables:
        stream = io.BytesIO(_read(path, stream, most)) if packed else file
        yield from (read_parquet if suffix == ".parquet" else read_arrow)(path, stream, most)
        return
    _check_encoding(path, start)
    lines = _lines(path, stream, most)
    yield from _csv(path, lines) if suffix == ".csv" else _json(path, lines)


def _read(path: Path, stream: IO[bytes], most: int, start: bytes = b"") -> bytes:
    """`start` and the rest of a file. Raises `UserError` if it has more than `most` bytes."""
    found = io.BytesIO()
    found.write(start)
    with library_errors(str(path)):
        while part := stream.read(1 << 20):
            found.write(part)
            _check_size(path, found.tell(), most)
    return found.getvalue()


def _lines(path: Path, stream: IO[bytes], most: int) -> Iterator[str]:
    """The lines of a file with their ends, which may be those of Windows or of old Macs."""
    number = size = 0
    with library_errors(str(path)):
        while line := stream.readline(LONGEST + 1):
            if len(line) > LONGEST:
                if number or not line.lstrip(codecs.BOM_UTF8 + b" ").startswith(b"["):
                    raise UserError(f"{path} line {number + 1}: has more than {LONGEST:,} bytes, too much for a row")
                line = _read(path, stream, most, line)  # a list of rows in one line
            try:
                text = line.decode("utf-8" if size else "utf-8-sig")
            except UnicodeDecodeError as error:
                where = f"byte {size + error.start}, in line {number + 1}"
                looks = ": save it in UTF-8"
                if _is_chinese(line):
                    looks = f"; it looks like GBK. {ICONV.format('GBK', path.name)}"
                raise UserError(f"{path} is not UTF-8 text ({where}){looks}") from error
            size += len(line)
            _check_size(path, size, most)
            for part in io.StringIO(text, newline="") if "\r" in text else (text,):
                number += 1
                yield part


def _check_size(path: Path, size: int, most: int) -> None:
    if size > most:
        raise UserError(
            f"{path}: unpacks to more than {most:,} bytes, which is too much for a file of its size. If it really "
            "does, unpack it: gunzip"
        )


def _check_encoding(path: Path, start: bytes) -> None:
    """Raise `UserError` for a file that begins as one in another encoding than UTF-8."""
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), None)
    if encoding is None and start.count(0) > len(start) // 4:
        encoding = "UTF-16BE" if start[0] == 0 else "UTF-16LE"
    if encoding is not None:
        raise UserError(f"{path} is not UTF-8 text; it looks like {encoding}. {ICONV.format(encoding, path.name)}")


def _json(path: Path, lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """A list of rows, or an object per line."""
    filled = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    number, first = next(filled, (0, ""))
    if not first:
        raise UserError(f"{path}: the file is empty")
    if first.lstrip().startswith("["):
        text = "\n" * (number - 1) + first + "".join(lines)
        yield from ((f"row {i}", values) for i, values in enumerate(parse_json(text, str(path)), start=1))
        return
    second = next(filled, (0, ""))
    values = _parsed(path, number, first)
    if isinstance(values, UserError):
        start = list(itertools.islice(lines, 10_000))
        _refuse_one_object(path, first + second[1] + "".join(start))
        following = enumerate(itertools.chain(start, lines), start=second[0] + 1)
        filled = ((number, line) for number, line in following if line.strip())
    if not second[1]:
        _refuse_one_object(path, first)
    yield f"line {number}", values
    for number, line in itertools.chain([second] if second[1] else (), filled):
        yield f"line {number}", _parsed(path, number, line)


def _parsed(path: Path, number: int, line: str) -> Any:
    """The value of a line, or the error that it is none."""
    try:
        return parse_json(line, f"{path} line {number}")
    except UserError as error:
        return error


def _is_chinese(content: bytes) -> bool:
    """Whether bytes make sense in GBK: more than half of what is not ASCII is Chinese.

    Characters of two bytes of which one is ASCII do not count: in Latin-1 they are a letter with an accent and another.
    """
    others = [char for char in content.decode("gb2312", "replace") if char > "\x7f"]
    return sum(any(first <= char <= last for first, last in CHINESE) for char in others) > 0.5 * len(others)


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


def _csv(path: Path, lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """The first line names the columns; an empty cell is None, and a line of them no row."""
    csv.field_size_limit(LONGEST)
    rows = csv.reader(lines, strict=True)
    first = 1  # line of the row
    try:
        if (names := next(rows, None)) is None:
            raise UserError(f"{path}: the file is empty")
        _check_names(path, names)
        first = rows.line_num + 1
        for cells in rows:
            where = f"line {rows.line_num}"
            if any(cells) and len(cells) != len(names):
                yield where, UserError(f"{path} {where}: {len(cells)} cells under {len(names)} columns")
            elif any(cells):
                yield where, {name: cell or None for name, cell in zip(names, cells, strict=True)}
            first = rows.line_num + 1
    except csv.Error as error:
        where = f"line {rows.line_num}" if first == rows.line_num else f"lines {first} to {rows.line_num}"
        hint = ': a " is not closed' if first < rows.line_num else ""
        raise UserError(f"{path} {where}: {error}{hint}") from error


def _check_names(path: Path, names: list[str]) -> None:
    """Raise `UserError` for a first line of a CSV file that does not name columns separated by commas."""
    if not any(names):
        raise UserError(f"{path} line 1: is empty, and must name the columns")
    given = ", ".join(map(repr, names))
    other = next((sign for sign in ";\t|" if len(names) == 1 and sign in names[0]), None)
    if other:
        raise UserError(f"{path}: the columns are separated by {other!r} ({given}): separate them by commas")
    if any(name != name.strip() for name in names):
        raise UserError(f"{path}: names of the first line have spaces around them ({given}): remove them in every line")
    if len(set(names)) != len(names):
        raise UserError(f"{path}: two columns of the first line have the same name: {', '.join(names)}")
