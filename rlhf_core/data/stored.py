"""Rows on disk: each is JSON in a table of Arrow's, mapped into memory, so that a million of them take none of it.

JSON, because as Arrow's structures nested values would get the keys of all others, and a column could not mix types.
"""

from __future__ import annotations

import datetime
import decimal
import hashlib
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]
TYPE = "\ufdd2type"  # the key of a value that JSON has no type for; Unicode keeps the character free for such use
WRITTEN: Mapping[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "datetime": (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "time": (datetime.time, datetime.time.isoformat, datetime.time.fromisoformat),
    "duration": (
        datetime.timedelta,
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda value: datetime.timedelta(*value),
    ),
    "decimal": (decimal.Decimal, str, decimal.Decimal),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
}


def encode(row: Row) -> bytes:
    """The row as `decode` reads it. Values of types that no file has, such as pictures of the Hub, become text."""
    return _json.encode(row).encode("utf-8", "surrogatepass")


def decode(content: bytes) -> Row:
    text = content.decode("utf-8", "surrogatepass")
    row: Row = json.loads(text, object_hook=_untyped) if TYPE in text else json.loads(text)
    return row


def _typed(value: Any) -> Any:
    for name, (kind, write, _) in WRITTEN.items():
        if isinstance(value, kind):
            return {TYPE: name, "value": write(value)}
    return repr(value)


_json = json.JSONEncoder(ensure_ascii=False, default=_typed)


def _untyped(values: dict[str, Any]) -> Any:
    return WRITTEN[values[TYPE]][2](values["value"]) if TYPE in values else values


class Writer:
    """Writes rows, and the number that each has in its source, to `file`. `digest` is of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        import pyarrow

        self._arrow = pyarrow
        self._schema = pyarrow.schema([("number", pyarrow.int64()), ("row", pyarrow.binary())])
        self._stream = pyarrow.ipc.new_file(file, self._schema)
        self._hash = hashlib.sha256()

    def write(self, numbers: Sequence[int], rows: Sequence[bytes]) -> None:
        """Rows as `encode` makes them, of at most 2 GiB in all."""
        self._stream.write_batch(self._arrow.record_batch([numbers, rows], schema=self._schema))
        for number, row in zip(numbers, rows, strict=True):
            self._hash.update(b"%d %d\n" % (number, len(row)))
            self._hash.update(row)

    def close(self) -> str:
        """The SHA-256 of all rows and their numbers."""
        self._stream.close()
        return self._hash.hexdigest()


class Stored(Sequence[Row]):
    """The rows of a file that `Writer` wrote, and their numbers. `digest` is what its `close` gave."""

    def __init__(self, path: Path, digest: str) -> None:
        import pyarrow

        self.digest = digest

        self._table: pyarrow.Table = pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all()
        self._rows = self._table["row"]

    def numbers(self) -> list[int]:
        numbers: list[int] = self._table["number"].to_pylist()
        return numbers

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return decode(self._rows[index].as_py())


class View(Sequence[Row]):
    """Rows of several sources in an order of their own, each with the columns `names`.

    `order` has the number of each row, counted through all `sources`.
    """

    def __init__(self, sources: Sequence[Sequence[Row]], order: array[int], names: Sequence[str]) -> None:
        self._sources, self.order, self._names = sources, order, names

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> View: ...
    def __getitem__(self, index: int | slice) -> Row | View:
        if isinstance(index, slice):
            return View(self._sources, self.order[index], self._names)
        number = self.order[index]
        for source in self._sources:
            if number < len(source):
                row = source[number]
                return {name: row.get(name) for name in self._names}
            number -= len(source)
        raise IndexError(index)

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(len(self)))

    def digest(self) -> str:
        """The SHA-256 of the rows and their order, without reading those that are stored."""
        found = hashlib.sha256(json.dumps([self._names, self.order.typecode]).encode("utf-8", "surrogatepass"))
        for source in self._sources:
            found.update(source.digest.encode() if isinstance(source, Stored) else b"".join(map(encode, source)))
        found.update(self.order)
        return found.hexdigest()
