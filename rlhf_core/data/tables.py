"""Rows of Parquet and Arrow files, a batch at a time: a small file that unpacks to a huge one is refused early."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rlhf_core.errors import UserError
from rlhf_core.inputs import library_errors

BATCH = 1024  # rows that are converted at a time
ROW = 400  # bytes that Python needs for a row, whatever is in it
TEXTS = ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
SHARED = ("dictionary", "run_end_encoded", "view")  # types of columns that may hold one value for many rows


def read_parquet(path: Path, file: IO[bytes], most: int) -> Iterator[tuple[str, Any]]:
    """("row 3", its columns) of each row. Raises `UserError`, also for rows that take more than `most` bytes."""
    import pyarrow.parquet

    with library_errors(f"{path} is not a Parquet file"):
        opened = pyarrow.parquet.ParquetFile(file)
        _check_names(path, opened.schema_arrow.names)
        groups = [opened.metadata.row_group(i) for i in range(opened.metadata.num_row_groups)]
    # No value is longer than the column it is in, however often it is repeated.
    longest = max((_texts(group) for group in groups), default=0)
    _check_size(path, max(sum(group.total_byte_size for group in groups), opened.metadata.num_rows * ROW), most)
    rows = min(BATCH, max(1, most // max(1, longest)))
    yield from _rows(path, "Parquet", opened.iter_batches(rows), most)


def read_arrow(path: Path, file: IO[bytes], most: int) -> Iterator[tuple[str, Any]]:
    """As `read_parquet`, for both formats of Arrow."""
    import pyarrow

    with library_errors(f"{path} is not an Arrow file"):
        is_file = file.read(6) == b"ARROW1"
        if is_file:
            opened = pyarrow.ipc.open_file(file)
            batches = map(opened.get_batch, range(opened.num_record_batches))
        file.seek(8 if is_file else 0)  # a file is a stream with a table of contents behind it
        _check_size(path, sum(map(_unpacked, pyarrow.ipc.MessageReader.open_stream(file))), most)
        if not is_file:
            file.seek(0)
            opened = pyarrow.ipc.open_stream(file)
            batches = iter(opened)
        _check_names(path, opened.schema.names)
    yield from _rows(path, "Arrow", batches, most)


def _texts(group: Any) -> int:
    """The unpacked size of the columns of texts."""
    columns = [group.column(i) for i in range(group.num_columns)]
    return sum(column.total_uncompressed_size for column in columns if column.physical_type in TEXTS)


def _unpacked(message: Any) -> int:
    """The size that the compressed buffers of an Arrow message say they unpack to. pyarrow would unpack them at once.

    https://arrow.apache.org/docs/format/Columnar.html: a table of FlatBuffers begins with the distance of the list of
    where its fields are; fields of a message are (version, type, header, …), of a batch (length, nodes, buffers,
    compression), of a batch of a dictionary (id, batch). A compressed buffer begins with its size, or -1.
    """
    if message.type not in ("record batch", "dictionary"):
        return 0
    data, body = message.metadata.to_pybytes(), memoryview(message.body)

    def field(table: int, number: int) -> int | None:
        """Where what the field points to begins."""
        listed = table - struct.unpack_from("<i", data, table)[0]
        [size] = struct.unpack_from("<H", data, listed)
        [place] = struct.unpack_from("<H", data, listed + 4 + 2 * number) if 4 + 2 * number < size else (0,)
        return table + place + struct.unpack_from("<I", data, table + place)[0] if place else None

    batch = field(struct.unpack_from("<I", data)[0], 2)
    if batch is not None and message.type == "dictionary":
        batch = field(batch, 1)
    if batch is None or field(batch, 3) is None or (buffers := field(batch, 2)) is None:
        return 0
    [count] = struct.unpack_from("<I", data, buffers)
    places = [struct.unpack_from("<qq", data, buffers + 4 + 16 * i) for i in range(count)]
    return sum(max(0, *struct.unpack_from("<q", body, place)) for place, length in places if length >= 8)


def _rows(path: Path, kind: str, batches: Iterator[Any], most: int) -> Iterator[tuple[str, Any]]:
    number = size = 0
    while True:
        with library_errors(f"{path} can't be read as {kind} after row {number}"):
            batch = next(batches, None)
        if batch is None:
            return
        shared = any(name in str(field.type) for field in batch.schema for name in SHARED)
        size += 0 if shared else batch.nbytes
        _check_size(path, size + batch.num_rows * ROW, most)
        for values in _values(path, batch, 1 if shared else BATCH, number):
            number += 1
            size += ROW + (_size(values) if shared else 0)
            _check_size(path, size, most)
            yield f"row {number}", values


def _values(path: Path, batch: Any, step: int, before: int) -> Iterator[dict[str, Any]]:
    for start in range(0, batch.num_rows, step):
        part = batch.slice(start, step)
        try:
            rows = part.to_pylist()
        except (ValueError, OverflowError, NotImplementedError):  # text that is none, a date after the year 9999
            rows = None
        if rows is not None:
            yield from rows
        else:
            for number in range(part.num_rows):
                where = f"{path} row {before + start + number + 1}"
                yield {name: _value(column[number], f"{where}: column {name!r}") for name, column in _columns(part)}


def _columns(batch: Any) -> Iterator[tuple[str, Any]]:
    return zip(batch.schema.names, batch.columns, strict=True)


def _value(scalar: Any, where: str) -> Any:
    """A value of Python's, or the text of one that Python has no type for, such as a date of the year 20000."""
    import pyarrow

    with library_errors(where):
        try:
            return scalar.as_py()
        except (ValueError, OverflowError, NotImplementedError):
            return scalar.cast(pyarrow.string()).as_py()


def _size(value: Any) -> int:
    """About the bytes of a value."""
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_size, value))
    return len(value) if isinstance(value, str | bytes) else 8


def _check_size(path: Path, size: int, most: int) -> None:
    if size > most:
        raise UserError(
            f"{path}: its rows take more than {most:,} bytes, which is too much for a file of its size. If they really "
            "do, save them as JSON lines"
        )


def _check_names(path: Path, names: list[str]) -> None:
    """Raise `UserError` for two columns with one name, of which a row could have only one."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{path}: two columns have the same name: {', '.join(twice)}")
