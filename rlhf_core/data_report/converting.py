"""A source in another format: `rlhf data convert`. Rows are read as a run reads them, one at a time.

Each row that is written was read back by the formatter that a run would choose, and gave the same row. A row that the
format can't hold is left out by the rule for rows that can't be used (`LeftOut`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rlhf_core.catalog import Catalog
from rlhf_core.data.files import Row as Given
from rlhf_core.data.formats import Formats
from rlhf_core.data.left_out import Unusable
from rlhf_core.data.parts import Row
from rlhf_core.data.progress import Progress, silent
from rlhf_core.data.projecting import PROJECTED, project
from rlhf_core.data_report.reading import TRIED, Reader, serves
from rlhf_core.data_report.targets import TARGETS, Target, plain
from rlhf_core.data_report.texts import content
from rlhf_core.data_report.writing import SUFFIXES, write
from rlhf_core.errors import UserError
from rlhf_core.formatter import Example
from rlhf_core.grammar import DataSpec
from rlhf_core.inputs import is_text, path_of
from rlhf_core.numbers import MAX_BAD_ROWS
from rlhf_core.outputs import new_file

EVERY = 1000  # rows, after which the progress is told


def convert(
    given: str,
    to: str,
    output: str,
    catalog: Catalog,
    *,
    max_bad_rows: float = MAX_BAD_ROWS,
    keep_columns: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write the rows of a source to the new file `output`; what was done, as plain data. Raises `UserError`."""
    path = path_of(output, "--output")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--output {output}: the name must end in {' or '.join(SUFFIXES)}")
    with new_file(path, "--output") as part:
        conversion = _Converting(DataSpec.read(given), to, path, catalog, keep_columns)
        conversion.left_out.max_bad_rows = max_bad_rows
        told = write(conversion.rows(progress), part, path.suffix.lower())
        conversion.left_out.check(conversion.reader.total)
        return {"source": given, "to": to, "output": str(path), **conversion.to_dict(told)}


class _Converting:
    def __init__(self, spec: DataSpec, to: str, path: Path, catalog: Catalog, keep_columns: bool) -> None:
        self.target: Target = TARGETS[to]
        self.to, self.path, self.catalog, self.keep_columns = to, path, catalog, keep_columns
        self.reader = Reader(spec, self.target.need, catalog)
        self.left_out = self.reader.left_out
        found = serves(self.reader.source, self.reader.spec, catalog)
        if not found[self.target.need] and any(found.values()):
            ways = [name for name, target in TARGETS.items() if found[target.need]]
            raise UserError(
                f"{spec.source}: none of its rows has {self.target.lacks}, as --to {to} needs. "
                f"It can be converted to {', '.join(ways)}"
            )
        self.written = 0
        self.added: dict[str, None] = {}  # columns that the formatter gave rows beside their own
        self.kept: dict[str, None] = {}  # columns that it did not read
        self.rejected = self.answers = 0  # rows of which these were not written

    def rows(self, progress: Progress) -> Iterator[Row]:
        """The rows to write, each of which was read back."""
        rows = self._written()
        first = list(itertools.islice(rows, TRIED))
        if not first:
            return
        made = [Given(location, new) for location, _, new in first]
        formats = Formats(made, DataSpec(str(self.path)), self.catalog)
        for location, row, new in itertools.chain(first, rows):
            try:
                self._check(formats, Given(location, new), row)
            except UserError as error:
                self.left_out.add(location, error)
                continue
            finally:
                self._check_kept(formats)
            self.written += 1
            yield new
            if self.written % EVERY == 0:
                progress(f"Converting {self.reader.spec.source}: {self.written:,} rows …", self.reader.share)

    def _written(self) -> Iterator[tuple[str, Row, Row]]:
        """(location, the row as a run has it, as it is to be written)."""
        for location, row, _ in self.reader.rows():
            try:
                new = self.target.write(row)
            except UserError as error:
                self.left_out.add(location, error)
                continue
            example = self.reader.conversion.last
            self._add(self.added, example.columns if example else (), row, new)
            if self.keep_columns:
                self._add(self.kept, self.reader.formats.unread(), row, new)
            if example:
                self._count_lost(example, new)
            yield location, row, plain(new)

    def _count_lost(self, example: Example, new: Row) -> None:
        """Count what a row has for other methods, which the format has no place for."""
        self.rejected += bool(example.rejected) and self.target.need != "preferences"
        answer = example.completion or example.chosen
        self.answers += self.target.need == "prompts" and bool(answer) and content(answer or []) not in new.values()

    @staticmethod
    def _add(carried: dict[str, None], names: Iterable[str], row: Row, new: Row) -> None:
        """Add columns of the row to what is written."""
        for name in names:
            if name not in new and name != "tools" and row.get(name) is not None:
                new[name] = row[name]
                carried[name] = None

    def _check(self, formats: Formats, new: Given, row: Row) -> None:
        """Raise `UserError` if a run would read another row."""
        if not is_text(new.values):
            raise Unusable("it has half of a character, a lone surrogate")
        read = project(new, formats.convert(new), self.target.need)
        for part in (*PROJECTED[self.target.need], "answer", "tools"):
            if row.get(part) is not None and read.get(part) != plain(row[part]):
                raise Unusable(f"in the format {self.to}, its {part} would be read as something else")

    def _check_kept(self, formats: Formats) -> None:
        if clash := [name for name in self.kept if name in formats.parts()]:
            raise UserError(
                f"--keep-columns: {', '.join(clash)} would be read as part of the rows in the format {self.to}. "
                "Give the column another name, or leave --keep-columns out"
            )

    def to_dict(self, told: list[str]) -> dict[str, Any]:
        reader, carried = self.reader, [*self.added, *self.kept]
        given = {column: key for key, column in reader.spec.columns.items()}
        _, unused = reader.columns()
        lost = {"rejected answer": self.rejected, "answer to learn": self.answers}
        told = [*told, *(f"not written: the {what} of {rows:,} rows" for what, rows in lost.items() if rows)]
        return {
            "format": reader.formats.main.name,
            "total": reader.total,
            "written": self.written,
            "carried_over": carried,
            "not_carried_over": [name for name in unused if not {name, given.get(name)} & {*carried}],
            "left_out": self.left_out.to_dict(),
            "bad_rows": self.left_out.every,
            "warnings": [*reader.warnings, *reader.formats.told, *reader.conversion.told(), *told],
        }
