"""Rows of one file, each with its location for messages.

.json (a list, an object per line, or an object with the list in it), .jsonl, .csv, .tsv, .txt (a row for each line),
.parquet and .arrow (what `save_to_disk` of datasets writes), each also as .gz and .zst. Other content is refused by
what it is: a pointer of Git LFS, a web page, a workbook. Files are read a line or a batch at a time. Compressed ones
that unpack to far more than data does are refused early.
"""

from __future__ import annotations

import codecs
import gzip
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from rlhf_core.data.csv_files import LOOKED_AT, read_csv, separator_of
from rlhf_core.data.encodings import CODECS, START, encoding_of, recoded, seems_gbk
from rlhf_core.data.json_files import read_json
from rlhf_core.data.left_out import Refuse
from rlhf_core.data.progress import Position
from rlhf_core.data.tables import read_arrow, read_parquet
from rlhf_core.errors import UserError, listed
from rlhf_core.inputs import is_text, library_errors, open_file

LONGEST = 1 << 26  # bytes of a row in text, and characters of a cell; the longest contexts are a tenth of it
UNPACKED = 1 << 29  # bytes that every compressed file may unpack to, and beyond: as many times its size
RATIO = 200
ICONV = "Convert it: iconv -f {0} -t UTF-8 {1!r} > NEW"
TABLES = (".parquet", ".arrow")
KINDS = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".arrow")
PACKED = (".gz", ".zst")
# What files of another kind begin with, whatever they are called.
NO_DATA = {
    b"version https://git-lfs.github.com/spec/": "is a Git LFS pointer, not the file itself: run `git lfs pull` first",
    b"<!DOCTYPE html": "is a web page, not the file itself: download the raw file",
    b"<html": "is a web page, not the file itself: download the raw file",
    b"PAR1": "is a Parquet file: add .parquet to its name",
    b"ARROW1": "is an Arrow file: add .arrow to its name",
    b"PK\x03\x04": "is a ZIP archive or an Excel workbook: unpack it, or save it as CSV in UTF-8",
    b"\x1f\x8b": "is compressed by gzip: add .gz to its name",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd: add .zst to its name",
}


@dataclass(frozen=True)
class Row:
    """One row and its location, such as `data.jsonl line 3`."""

    location: str
    values: dict[str, Any]


def kind(name: str) -> str | None:
    """The suffix without .gz or .zst in small letters, if such files can be read."""
    name = name.lower()
    suffix = PurePosixPath(name.removesuffix(PurePosixPath(name).suffix) if name.endswith(PACKED) else name).suffix
    return suffix if suffix in KINDS else None


def notes(files: Iterable[tuple[Path, str]]) -> list[str]:
    """What to say of how files are read, which messages call so: in another encoding, or with another separator."""
    found: dict[str, list[str]] = {}
    for path, name in files:
        for what in _notes(path):
            found.setdefault(what, []).append(name)
    return [f"{listed(names)}: {what}" for what, names in found.items()]


def _notes(path: Path) -> Iterator[str]:
    suffix = kind(path.name)
    if suffix is None or suffix in TABLES or not path.is_file():
        return
    with open_file(path) as file, library_errors(str(path)):
        start = _unpacked(path, file).read(START)
    if (encoding := encoding_of(start)) != "UTF-8":
        yield f"the text is in {encoding}, and read so"
    if suffix == ".csv":
        lines = start.decode(CODECS.get(encoding, encoding), "replace").splitlines(keepends=True)
        if (sign := separator_of(lines[:LOOKED_AT])) != ",":
            yield f"the columns are separated by {sign!r}, and read so"


def read_file(path: Path, name: str | None = None, refuse: Refuse | None = None) -> list[Row]:
    """All rows of one file, as `rows_of` reads them."""
    return list(rows_of(path, name, refuse))


def rows_of(
    path: Path, name: str | None = None, refuse: Refuse | None = None, position: Position | None = None
) -> Iterator[Row]:
    """The rows of one file, which messages call `name`, one after the other. Raises `UserError`.

    `refuse` is told of rows that can't be read, which are an error otherwise, and `position` where reading is.
    """
    suffix = kind(path.name)
    if suffix is None:
        raise UserError(f"{path}: can't read {path.suffix or 'this kind of'} files. Known: {', '.join(KINDS)}.")
    known: set[str] = set()
    with open_file(path) as file:
        if position is not None:
            position.opened(path, file)
        for where, values in _rows(path, file, suffix):
            location = f"{name or path.name} {where}"
            if error := _problem(values, location, known):
                if refuse is None:
                    raise error
                refuse(location, error)
            else:
                known.update(values)
                yield Row(location, values)


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
    most = max(UNPACKED, RATIO * os.fstat(file.fileno()).st_size)
    stream = _unpacked(path, file)
    if suffix in TABLES:
        stream = file if stream is file else io.BytesIO(_read(path, stream, most))
        yield from (read_parquet if suffix == ".parquet" else read_arrow)(path, stream, most)
        return
    with library_errors(str(path)):
        start = stream.read(START)
        file.seek(0)
    for prefix, problem in NO_DATA.items():
        if start.removeprefix(codecs.BOM_UTF8).lstrip().lower().startswith(prefix.lower()):
            raise UserError(f"{path} {problem}")
    stream, encoding = _unpacked(path, file), encoding_of(start)
    if encoding == "UTF-8" and start.count(0) > len(start) // 4:
        raise UserError(f"{path} is not text: more than a quarter of its bytes are zero")
    lines = _lines(path, stream if encoding == "UTF-8" else recoded(stream, encoding), most)
    if suffix == ".txt":
        yield from ((f"line {i}", {"text": line.strip()}) for i, line in enumerate(lines, start=1) if line.strip())
    elif suffix in (".csv", ".tsv"):
        yield from read_csv(path, lines, "\t" if suffix == ".tsv" else None)
    else:
        yield from read_json(path, lines)


def _unpacked(path: Path, file: IO[bytes]) -> IO[bytes]:
    """A file from its start, without its compression."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=file)))
    if suffix == ".zst":
        import pyarrow

        # Not from `file`, which it would close.
        return io.BufferedReader(cast(io.RawIOBase, pyarrow.input_stream(str(path), compression="zstd")))
    return file


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
                if seems_gbk(line):
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
            "does, unpack it"
        )
