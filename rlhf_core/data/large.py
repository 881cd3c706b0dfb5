"""Sources too large for memory: read once, by several processes, into a table on disk, which is kept in a cache."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_core.catalog import Catalog
from rlhf_core.data import cache, parallel, stored
from rlhf_core.data.checks import Checks
from rlhf_core.data.files import Row as Given
from rlhf_core.data.formats import Formats, Found, Undecided
from rlhf_core.data.installed import named_files
from rlhf_core.data.left_out import NO_FORMAT, NO_TEMPLATE, BadData, LeftOut, Reason
from rlhf_core.data.parts import Conversion, Part, Row, columns_used
from rlhf_core.data.progress import Position, Progress
from rlhf_core.data.projecting import Need
from rlhf_core.data.sources import Source
from rlhf_core.errors import UserError
from rlhf_core.grammar import DataSpec

FIRST = 1000  # rows by which formatters are chosen, if that is enough
CHUNK = 1000  # rows that a process is given at a time, or fewer
CHUNK_BYTES = 1 << 22  # of them, about


@dataclass
class Done:
    """What a process made of a chunk: the rows that can be used, with their positions in it, and what it found."""

    numbers: list[int]
    rows: list[bytes]
    read: int
    left_out: LeftOut
    unanswered: int
    text_prompts: bool
    names: list[str]
    formats: Found
    checks: Any


class Large:
    """Reads a source into a `Part` with its rows on disk. `progress` is told what is done."""

    def __init__(
        self,
        source: Source,
        spec: DataSpec,
        need: Need,
        catalog: Catalog,
        left_out: LeftOut,
        checks: Checks | None,
        progress: Progress,
    ) -> None:
        self.source, self.spec, self.need, self.catalog = source, spec, need, catalog
        self.left_out, self.checks, self.progress = left_out, checks, progress
        self.read = self.total = 0  # rows that a formatter was given, all rows
        self.position = Position([])

    def part(self) -> Part:
        """Raises `UserError`."""
        self.progress(f"Looking for {self.spec.source} in the cache …")
        key = cache.key_of(
            [*(path for path, _ in self.source.files), *named_files(self.spec.formatter)],
            names=[name for _, name in self.source.files],
            spec=asdict(self.spec),
            need=self.need,
            code=cache.code_of(self.catalog),
            checks=self.checks and self.checks.identity(),
        )
        with cache.locked(key):
            path, about = cache.find(key) or self._made(key)
        self.left_out.reasons = {(kind, text): Reason(**reason) for kind, text, reason in about["reasons"]}
        self.left_out.refused = about["refused"]
        self.left_out.check(about["total"], NO_TEMPLATE if about["counts"] else NO_FORMAT)
        if not about["read"]:
            raise BadData(f"{self.spec.source}: there is no row in it")
        if self.checks is not None:
            self.checks.add(about["checks"])
        rows = stored.Stored(path, about["digest"])
        told = [*self.source.warnings, *about["told"], *self.left_out.warnings(about["total"]), *about["unanswered"]]
        return Part(
            self.spec, about["counts"], rows, array("q", rows.numbers()), about["read"], self.left_out, about["used"],
            about["unused"], about["names"], told, about["text_prompts"],
        )  # fmt: skip

    def _made(self, key: str) -> tuple[Path, dict[str, Any]]:
        """(the file with the rows, what is known of them)."""
        first = list(itertools.islice(self.source, FIRST))
        size = sum(len(stored.encode(row.values)) for row in first) / max(1, len(first))
        chunk = max(1, min(CHUNK, int(CHUNK_BYTES / max(1.0, size))))
        before = None if self.checks is None else self.checks.take()  # of other sources
        try:
            return self._written(key, Formats(first, self.spec, self.catalog, first=True), chunk)
        except Undecided:
            return self._written(key, Formats(self.source, self.spec, self.catalog), chunk)
        finally:
            if self.checks is not None and before is not None:
                self.checks.add(before)

    def _written(self, key: str, formats: Formats, chunk: int) -> tuple[Path, dict[str, Any]]:
        conversion = Conversion(formats, self.need, self.left_out)
        self.read = self.total = 0
        self.position = Position([path for path, _ in self.source.files])
        self.left_out.reasons.clear()
        if self.checks is not None:
            self.checks.take()  # what was counted before `Undecided`
        with cache.writing(key) as (stream, about, path):
            writer = stored.Writer(stream)
            for done in parallel.in_order(self._work(formats), self._chunks(chunk), parallel.cores()):
                writer.write([self.read + number for number in done.numbers], done.rows)
                self._add(done, conversion)
                if self.checks is not None:
                    self.checks.add(done.checks)
                self.progress(f"Reading {self.spec.source}: {self.total:,} rows …", self.position.share())
            used, unused = columns_used(formats, self.need)
            about |= {
                "digest": writer.close(),
                "read": self.read,
                "total": self.total,
                "counts": dict(formats.counts),
                "used": used,
                "unused": unused,
                "names": list(conversion.names),
                "text_prompts": conversion.text_prompts,
                "told": formats.told,
                "unanswered": conversion.told(),
                "reasons": [[*key, asdict(reason)] for key, reason in self.left_out.reasons.items()],
                "refused": self.left_out.refused,
                "checks": self.checks and self.checks.take(),
            }
        return path, about

    def _chunks(self, size: int) -> Iterator[list[tuple[str, Row]]]:
        rows = self.source.rows(self._refuse, self.position)
        plain = ((row.location, row.values) for row in rows)  # which is quicker to send
        return iter(lambda: list(itertools.islice(plain, size)), [])

    def _refuse(self, location: str, error: UserError) -> None:
        self.left_out.add(location, error)
        self.total += 1

    def _work(self, formats: Formats) -> Callable[[list[tuple[str, Row]]], Done]:
        def work(chunk: list[tuple[str, Row]]) -> Done:
            rows = [Given(*row) for row in chunk]
            one = Conversion(formats, self.need, LeftOut(self.spec.source))
            converted = one.convert(rows)
            if self.checks is not None:
                converted = one.prepare(rows, converted, self.checks)
            numbers, usable = one.usable(converted)
            encoded = [stored.encode(row) for row in usable]
            checked = self.checks and self.checks.take()
            return Done(
                numbers, encoded, len(rows), one.left_out, one.unanswered, one.text_prompts, list(one.names),
                formats.take(), checked,
            )  # fmt: skip

        return work

    def _add(self, done: Done, conversion: Conversion) -> None:
        self.read += done.read
        self.total += done.read
        self.left_out.merge(done.left_out)
        conversion.unanswered += done.unanswered
        conversion.text_prompts = conversion.text_prompts and done.text_prompts
        conversion.names |= dict.fromkeys(done.names)
        conversion.formats.add(done.formats)
