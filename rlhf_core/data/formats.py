"""Which formatter reads a row, and what of the row it reads.

Each row is read by its own columns. One that fits no format is read as most others are, which says what is wrong.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlhf_core.catalog import Catalog
from rlhf_core.data.columns import opened, parents, with_roles
from rlhf_core.data.files import Row
from rlhf_core.data.installed import formatters
from rlhf_core.data.left_out import BadData, Unusable
from rlhf_core.data.misfit import forced_misfit, misfit, names
from rlhf_core.data.reading import PARTS, Reading, parts_of
from rlhf_core.errors import UserError, did_you_mean
from rlhf_core.formatter import Example, Formatter, NothingToLearn
from rlhf_core.grammar import DataSpec
from rlhf_core.inputs import is_text, library_errors

LOOKED_AT = 100  # rows, to find where the text of a column goes
Candidate = tuple[Formatter, dict[str, str]]  # with the names that its columns have in a row
# Rows of each formatter, parts of each column, columns that are not None, those that have something.
Found = tuple[dict[str, int], dict[str, list[str]], list[str], list[str]]


class Undecided(Exception):
    """What the first rows of a source can't tell, so that all are to be looked at."""


class Formats:
    """The formatters of one source, chosen by all its `rows`. Raises `UserError` if none fits any row.

    `told` is what a formatter decided from all rows. `counts` (rows of each formatter), `parts` and `unread` are of the
    rows that were converted. With `first`, `rows` are the first of many: `Undecided` is raised, here and for a row, if
    they are not enough to decide by.
    """

    def __init__(self, rows: Iterable[Row], spec: DataSpec, catalog: Catalog, *, first: bool = False) -> None:
        self.spec, self._first = spec, first
        self.told: list[str] = []
        self.counts: Counter[str] = Counter()
        self._groups, self._broken = formatters(spec.formatter, catalog)
        self._parents: frozenset[str] = frozenset()
        self._columns, self._filled = self._names(rows)
        if within := parents(spec.columns.values(), self._columns):
            self._parents = within
            self._columns, self._filled = self._names(rows)
        self._parts: dict[str, dict[str, None]] = {}
        self._decided: dict[str, Mapping[str, Any]] = {}
        self._cache: dict[frozenset[str], list[list[Candidate]]] = {}
        self._small = False  # whether columns are found by their names in small letters
        for key, column in spec.columns.items():
            if column not in self._columns and first:
                raise Undecided
            if column not in self._columns:
                problem = f"{spec.source}: no row has a column {column!r}, which is to be read as {key}"
                raise UserError(f"{problem}.{did_you_mean(column, self._columns)} Columns: {names(self._columns)}.")
        self.main = self._most(rows)
        self._decide(rows)

    def convert(self, row: Row) -> Example:
        """The row as an example. Raises `UserError` that names its location."""
        values, origins = self._view(row)
        formatter = self._choose(values, row) or self.main
        if self._first and formatter.decide is not None:
            raise Undecided
        self._add_names(values, origins)
        renamed = formatter.renamed(values)
        if missing := formatter.columns - values.keys() - renamed.keys():
            problem = f"has no {names(sorted(missing))}; its columns: {names(values)}"
            raise UserError(f"{row.location}: formatter {formatter.name}: {problem}")
        decided = self._decided.get(formatter.name, {})
        seen = Reading(formatter.view({**values, **decided} if decided else values, renamed))
        example = _convert(formatter, seen, row.location)
        given = self.spec.columns.keys() & seen.keys() - seen.read if self.spec.columns else ()
        for name in given:  # no formatter knows it: it is for rewards
            example.columns.setdefault(name, dict.__getitem__(seen, name))
        for name in seen.read & seen.keys() - decided.keys():  # nothing else of the row becomes tokens
            if not is_text(dict.__getitem__(seen, name)):
                column = origins.get(renamed.get(name, name), name)
                raise UserError(f"{row.location}: column {column!r} has half of a character, a lone surrogate")
        if decided and not is_text([getattr(example, part) for part in PARTS]):
            raise UserError(f"{row.location}: its text has half of a character, a lone surrogate")
        self.counts[formatter.name] += 1
        if "tools" in seen:  # chat templates get them
            example.columns.setdefault("tools", seen["tools"])
        looks = self.counts.total() <= LOOKED_AT
        for name in seen.read & seen.keys():
            origin = origins.get(renamed.get(name, name))
            if origin is not None:
                parts = self._parts.setdefault(origin, {})
                if looks:
                    parts |= dict.fromkeys(parts_of(dict.__getitem__(seen, name), example))
        return example

    def parts(self) -> dict[str, list[str]]:
        """{column: the parts of an example in which its text is found}, of the columns that were read."""
        return {name: list(self._parts[name]) for name in self._columns if name in self._parts}

    def unread(self) -> list[str]:
        """The columns that no formatter read and in which some row has something."""
        return [name for name in self._filled if name not in self._parts]

    def take(self) -> Found:
        """What was found in the rows that were converted since it was last taken."""
        found = dict(self.counts), {name: list(parts) for name, parts in self._parts.items()}, list(self._columns)
        self.counts.clear()
        return *found, list(self._filled)

    def add(self, found: Found) -> None:
        """What another process found in other rows of the source."""
        counts, parts, columns, filled = found
        self.counts.update(counts)
        for name, others in parts.items():
            self._parts.setdefault(name, {}).update(dict.fromkeys(others))
        self._columns |= dict.fromkeys(columns)
        self._filled |= dict.fromkeys(filled)

    def _add_names(self, values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
        """The columns of a row that the first rows had not."""
        for name, origin in origins.items():
            if origin not in self._filled:
                self._columns[origin] = None
                if not _is_empty(values[name]):
                    self._filled[origin] = None

    def _names(self, rows: Iterable[Row]) -> tuple[dict[str, None], dict[str, None]]:
        """(the columns that are not None in some row, those that some row has something in)."""
        given: dict[str, None] = {}
        filled: dict[str, None] = {}
        for row in rows:
            for name, value in opened(row.values, self._parents).items() if self._parents else row.values.items():
                if value is not None:
                    given[name] = None
                    if not _is_empty(value):
                        filled[name] = None
        return given, filled

    def _most(self, rows: Iterable[Row]) -> Formatter:
        """The formatter that fits most rows; a row's columns are in small letters if none fits else."""
        for self._small in (False, True):
            found = [chosen for row in rows if (chosen := self._choose(self._view(row)[0], row)) is not None]
            if found:
                name = Counter(formatter.name for formatter in found).most_common(1)[0][0]
                return next(formatter for formatter in found if formatter.name == name)
        self._small = False
        if self._first:
            raise Undecided
        raise BadData(self._misfit(list(itertools.islice(rows, LOOKED_AT))))

    def _decide(self, rows: Iterable[Row]) -> None:
        """Let formatters decide what one row can't tell, unless the user did."""
        deciding = {f.name: f.decide for group in self._groups for f in group if f.decide is not None}
        views: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows if deciding else ():
            values = self._view(row)[0]
            formatter = self._choose(values, row) or self.main
            if formatter.name in deciding and self._first:
                raise Undecided
            if formatter.name in deciding:
                views.setdefault(formatter.name, []).append(formatter.view(values, formatter.renamed(values)))
        for name, found in views.items():
            with library_errors(f"{self.spec.source}: formatter {name}"):
                self._decided[name], told = deciding[name](found)
            if self.spec.first_option is not None and "first_option" in self._decided[name]:
                self._decided[name], told = {"first_option": self.spec.first_option}, ""
            self.told += [f"{self.spec.source}: {told}"] if told else []

    def _view(self, row: Row) -> tuple[dict[str, Any], dict[str, str]]:
        """(the columns that are not None, under the names that the user gave them, the names that the data gives)."""
        values = opened(row.values, self._parents) if self._parents else row.values
        if not (self.spec.columns or self.spec.turns or self._small):
            found = {name: value for name, value in values.items() if value is not None}
            return found, {name: name for name in found}
        given = [name for name, value in values.items() if value is not None]
        named = {key: column for key, column in self.spec.columns.items() if column in given}
        others = [name for name in given if name not in named.values()]
        origins = {name.strip().lower() if self._small else name: name for name in reversed(others)}
        origins = {**dict(reversed(origins.items())), **named}
        if self.spec.turns:
            values = {name: with_roles(value, self.spec.turns) for name, value in values.items()}
        return {key: values[name] for key, name in origins.items()}, origins

    def _choose(self, values: Mapping[str, Any], row: Row) -> Formatter | None:
        """The best of the formatters that fit; a forced one fits where its columns are."""
        for candidates in self._candidates(frozenset(values)):
            for formatter, renamed in candidates:
                view = formatter.view(values, renamed)
                if self.spec.formatter is not None or self._matches(formatter, view, row):
                    return formatter
        return None

    def _matches(self, formatter: Formatter, view: Mapping[str, Any], row: Row) -> bool:
        """Whether it fits. One that fails on a row does not fit, which is told if no other does."""
        if formatter.matches is None:
            return True
        try:
            with library_errors(f"formatter {formatter.name}, on {row.location}"):
                return formatter.matches(view)
        except UserError as error:
            self._broken += [] if len(self._broken) > 9 else [f"\n  ({error})"]
            return False

    def _candidates(self, columns: frozenset[str]) -> list[list[Candidate]]:
        """The formatters that these columns allow, the one with the most columns first; a renamed one counts half."""
        if columns not in self._cache:
            row = dict.fromkeys(columns)
            found = [[(formatter, formatter.renamed(row)) for formatter in group] for group in self._groups]
            self._cache[columns] = [
                sorted((one for one in group if one[0].columns <= columns | one[1].keys()), key=self._rank)
                for group in found
            ]
        return self._cache[columns]

    def _rank(self, candidate: Candidate) -> tuple[float, ...]:
        """The smallest is the best."""
        formatter, renamed = candidate
        own = len(formatter.columns) - len(formatter.columns & renamed.keys()) / 2
        return -len(formatter.columns & self.spec.columns.keys()), -own, len(renamed), formatter.matches is None

    def _misfit(self, rows: Sequence[Row]) -> str:
        """Why no formatter reads the first of these rows."""
        location, values = rows[0].location, self._view(rows[0])[0]
        if self.spec.formatter is not None:
            [[forced]] = self._groups
            return forced_misfit(location, values, forced)
        problems = []
        for formatter, renamed in (one for group in self._candidates(frozenset(values)) for one in group):
            seen = Reading(formatter.view(values, renamed))
            try:
                _convert(formatter, seen, location)
            except UserError as error:  # worth telling if it is about what the columns hold
                problems += [f"{error}."] if seen.read <= seen.keys() else []
        known = [formatter for group in self._groups for formatter in group]
        views = [self._view(row)[0] for row in rows]
        return misfit(self.spec, location, views, known, problems) + "".join(self._broken)


def choose_formatter(row: Row, source: str, catalog: Catalog) -> Formatter:
    """The formatter for one row. Raises `UserError`."""
    return Formats([row], DataSpec(source), catalog).main


def convert(row: Row, formatter: Formatter) -> Example:
    """The row as an example. Raises `UserError` that names its location."""
    return _convert(formatter, formatter.view(row.values, formatter.renamed(row.values)), row.location)


def _convert(formatter: Formatter, row: Mapping[str, Any], location: str) -> Example:
    called = f"{location}: formatter {formatter.name}"
    with library_errors(called):
        try:
            return formatter.convert(row)
        except NothingToLearn as error:
            raise Unusable(f"{called}: {error}", "nothing to learn") from error
        except KeyError as error:
            raise UserError(f"{called}: has no {error}") from error
        except UserError as error:
            raise UserError(f"{called}: {error}") from error


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | Mapping) and not value)
