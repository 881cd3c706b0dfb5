"""The rows of a source, read as a run reads them, one at a time: of rows that can't be used, all are kept."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlhf_core import builtin
from rlhf_core.catalog import Catalog
from rlhf_core.config import BUILTIN, builtin_name
from rlhf_core.data import sources
from rlhf_core.data.checks import Checks
from rlhf_core.data.formats import Formats
from rlhf_core.data.installed import formatters
from rlhf_core.data.left_out import BadData, LeftOut, Unusable
from rlhf_core.data.llama_factory import resolved
from rlhf_core.data.parts import Conversion, Row, columns_used
from rlhf_core.data.projecting import Need
from rlhf_core.data.sources import Source, Use
from rlhf_core.errors import UserError
from rlhf_core.grammar import DataSpec

WHERE = re.compile(r"(?P<file>.*) (?:line|row) (?P<line>\d+)", re.S)
MANY = 10**12  # malformed rows are counted here, and no error
NEARLY = 0.9  # of the rows that some need could use, for a need to be what the data serves
TRIED = 1000  # rows that say what the data can serve


@dataclass
class Every(LeftOut):
    """Rows that can't be used, each of them: its file and line, kind and reason."""

    every: list[dict[str, Any]] = field(default_factory=list)

    def add(self, location: str, error: UserError) -> None:
        super().add(location, error)
        kind = error.kind if isinstance(error, Unusable) else "malformed"
        place = WHERE.fullmatch(location)
        where = {"file": place["file"], "line": int(place["line"])} if place else {"file": location, "line": None}
        self.every.append({**where, "kind": kind, "reason": self._split(location, str(error))[1]})


class Reader:
    """Reads one source for a method that needs `need`; unset: what its rows can serve.

    Raises `BadData` if it has no row, or if no formatter fits. `total` and `left_out` are known once `rows` has ended.
    """

    def __init__(self, given: DataSpec, need: Need | None, catalog: Catalog, use: Use = "train") -> None:
        self.use = use
        self.spec, described = resolved(given)
        self.source = _source(self.spec, need, use)
        self.left_out = Every(self.spec.source, MANY)
        self.warnings = [*described, *self.source.warnings]
        self.total = 0
        self.rows_read = sum(1 for _ in self.source)
        if not self.rows_read:
            for _ in self.source.rows(self.left_out.add):
                pass
            why = f": {self.left_out.every[0]['reason']}" if self.left_out.every else ""
            raise BadData(f"{self.spec.source}: there is no row in it that can be read{why}")
        self.formats = Formats(self.source, self.spec, catalog)
        self.need = need or served(self.source, self.spec, catalog)
        self.conversion = Conversion(self.formats, self.need, self.left_out)

    def rows(self, checks: Checks | None = None) -> Iterator[tuple[str, Row, bool]]:
        """(location, projected row, whether `checks` leave it in) of each row that a formatter can convert."""
        self.total = 0
        for given in self.source.rows(self._refuse):
            self.total += 1
            [one] = self.conversion.convert([given])
            if one is not None:
                [ready] = self.conversion.prepare([given], [one], checks) if checks else [one]
                yield given.location, one, ready is not None

    @property
    def share(self) -> float:
        """The rows that `rows` has read, of all, but for those that can't be read."""
        return min(1.0, self.total / self.rows_read)

    def _refuse(self, location: str, error: UserError) -> None:
        self.total += 1
        self.left_out.add(location, error)

    def columns(self) -> tuple[dict[str, list[str]], list[str]]:
        """({part of an example: its columns}, the columns that nothing reads)."""
        used, unused = columns_used(self.formats, self.need)
        return {part or "other": names for part, names in used.items() if names}, unused

    def choice(self, catalog: Catalog) -> dict[str, Any]:
        """Which formatter reads the rows, the columns that it was found by, and which others fit the first such row."""
        main = self.formats.main
        first = next(iter(self.source))
        values = {name: value for name, value in first.values.items() if value is not None}
        groups, _ = formatters(None, catalog)
        others = [one for group in groups for one in group if one.name != main.name and one.fits(values)]
        given = {key: name for key, name in self.spec.columns.items() if key in main.columns}
        matched = {name: {**main.renamed(values), **given}.get(name, name) for name in sorted(main.columns)}
        return {
            "format": main.name,
            "rows": dict(self.formats.counts),
            "columns": matched,
            "runners_up": {one.name: sorted(one.columns) for one in others},
        }


def _source(spec: DataSpec, need: Need | None, use: Use) -> Source:
    if builtin_name(spec.source) != BUILTIN:
        return sources.find(spec, use)
    file = Path(builtin.data_file(need or "preferences", "train" if use == "train" else "heldout"))
    return Source(spec.source, [(file, file.name)])


def served(source: Source, spec: DataSpec, catalog: Catalog) -> Need:
    """What a method may need that the first rows have: pairs, else answers to learn, else prompts."""
    counts = serves(source, spec, catalog)
    most = max(counts.values())
    return next(need for need, count in counts.items() if count >= NEARLY * most) if most else "conversations"


def serves(source: Source, spec: DataSpec, catalog: Catalog) -> dict[Need, int]:
    """How many of the first rows have what a method may need."""
    first = list(itertools.islice(source, TRIED))
    counts: dict[Need, int] = {}
    for need in ("preferences", "conversations", "prompts"):
        tried = Conversion(Formats(first, spec, catalog), need, LeftOut(spec.source, MANY))
        counts[need] = sum(one is not None for one in tried.convert(first))
    return counts


def held_out_of(spec: DataSpec, need: Need, catalog: Catalog) -> Reader | None:
    """The rows that a source itself has to evaluate on, if any: of the built-in data, or other files of a folder."""
    if builtin_name(spec.source) == BUILTIN:
        return Reader(replace(spec, source=BUILTIN), need, catalog, "evaluate")
    if not Path(spec.source).expanduser().is_dir():
        return None
    named = resolved(spec)[0]
    train, other = sources.find(named), sources.find(named, "evaluate")
    if {path for path, _ in train.files} & {path for path, _ in other.files}:
        return None
    return Reader(spec, need, catalog, "evaluate")
