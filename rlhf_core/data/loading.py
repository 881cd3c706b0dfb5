"""From sources to the rows that a method trains on.

Rows are read, a formatter is chosen for each by its columns, each row becomes an `Example`, which is projected onto
what the method needs: `prompts`, `preferences` or `conversations`. Every error names the row's location. Sources of
`cache.LARGE` bytes and more stay on disk (`large`).
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf_core import builtin
from rlhf_core.catalog import Catalog
from rlhf_core.config import BUILTIN
from rlhf_core.data import cache, sources
from rlhf_core.data.checks import Checks
from rlhf_core.data.formats import LOOKED_AT, Formats
from rlhf_core.data.large import Large
from rlhf_core.data.left_out import NO_FORMAT, NO_TEMPLATE, BadData, LeftOut
from rlhf_core.data.llama_factory import resolved
from rlhf_core.data.misfit import way_on
from rlhf_core.data.parts import Conversion, Part, Row
from rlhf_core.data.progress import Progress, silent
from rlhf_core.data.projecting import Need
from rlhf_core.data.sources import Source, Use
from rlhf_core.data.stored import View
from rlhf_core.grammar import DataSpec
from rlhf_core.numbers import MAX_BAD_ROWS

HELD_OUT_SHARE = 0.1  # at most, of data without a held-out part


@dataclass(frozen=True)
class Data:
    """Projected `rows`: first those to `train` on, which come from `parts`, then those `held_out`, to evaluate on.

    Rows have the columns of all sources, with None where their source has no such column; `columns` are (each source,
    also of those to evaluate on; the columns that some row of it has). `warnings` name the rows and files that were
    left out. `text_prompts`: all training prompts are plain text in a column `prompt`, TRL's standard format, as
    against messages.
    """

    train: Sequence[Row]
    held_out: list[Row]
    parts: list[Part]
    columns: list[tuple[str, list[str]]]
    warnings: list[str]
    need: Need
    text_prompts: bool = False
    rows: Sequence[Row] = ()


def load(
    specs: Sequence[DataSpec],
    need: Need,
    catalog: Catalog,
    *,
    eval_specs: Sequence[DataSpec] = (),
    held_out: int = 0,
    seed: int = 0,
    max_bad_rows: float = MAX_BAD_ROWS,
    preparation: Callable[[], Checks] | None = None,
    progress: Progress = silent,
) -> Data:
    """Read the sources and convert them for a method that needs `need`.

    The held-out rows are those of `eval_specs`, or of the built-in set if that is the only source, else `held_out` rows
    chosen by `seed`, a tenth at most; which these are does not depend on the rows that are left out. Several sources
    are mixed by `seed`; their weights are shares of the mixture, which is as large as possible without a row twice.
    Rows that can't be used are left out and counted, and too many of a source are an error (`LeftOut`). `preparation()`
    gives what changes projected rows, and may refuse some; it is called once the rows of a source are converted.
    `progress` is told what is being read.
    """

    def read(specs: Sequence[DataSpec], use: Use = "train") -> list[Part]:
        return [_part(spec, need, catalog, max_bad_rows, preparation, progress, use) for spec in specs]

    parts = _weigh(read(specs), random.Random(f"{seed} weights"))
    eval_parts = read(eval_specs, "evaluate")
    if not sum(part.total for part in eval_parts) and [spec.source for spec in specs] == [BUILTIN]:
        eval_parts = read(specs, "evaluate")
    order = _numbers(parts, 0)
    others = [n for n in _numbers(eval_parts, sum(part.total for part in parts)) if n is not None]
    if not others or len(parts) > 1:
        random.Random(seed).shuffle(order)
    count = 0 if others else min(held_out, int(len(order) * HELD_OUT_SHARE))
    train = [n for n in order[count:] if n is not None]
    others = others[:held_out] if others else [n for n in order[:count] if n is not None]
    both = [*parts, *(eval_parts if eval_specs else ())]
    rows = _rows([*parts, *eval_parts], train + others)
    return Data(
        rows[: len(train)],
        list(rows[len(train) :]),
        parts,
        [(part.spec.source, list(part.names)) for part in both],
        [text for part in both for text in part.warnings],
        need,
        all(part.text_prompts for part in parts),
        rows,
    )


def _numbers(parts: Sequence[Part], first: int) -> list[int | None]:
    """The number of each row that was read, counted from `first` on through all rows; None for those left out."""
    found: list[int | None] = []
    for part in parts:
        if part.chosen is not None:
            found += [first + position for position in part.chosen]
        else:
            slots: list[int | None] = [None] * part.read
            for position, number in enumerate(part.numbers, start=first):
                slots[number] = position
            found += slots
        first += part.total
    return found


def _rows(parts: Sequence[Part], order: Sequence[int]) -> Sequence[Row]:
    """The rows of all parts in this order, each with the columns of all."""
    if any(not isinstance(part.rows, list) for part in parts):
        names = dict.fromkeys(name for part in parts for name in part.names)
        return View([part.rows for part in parts], array("q", order), list(names))
    every = [row for part in parts for row in part.rows]
    rows = [every[number] for number in order]
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def _part(
    spec: DataSpec,
    need: Need,
    catalog: Catalog,
    max_bad_rows: float,
    preparation: Callable[[], Checks] | None,
    progress: Progress,
    use: Use,
) -> Part:
    """The rows of one source to train on, or to evaluate on."""
    spec, described = resolved(spec)
    left_out = LeftOut(spec.source, max_bad_rows)
    if spec.source == BUILTIN:
        file = Path(builtin.data_file(need, "train" if use == "train" else "heldout"))
        source = Source(spec.source, [(file, file.name)])
    else:
        source = sources.find(spec, use)
        source = replace(source, warnings=[*described, *source.warnings])
    if source.size >= cache.LARGE:
        checks = preparation() if preparation else None
        return Large(source, spec, need, catalog, left_out, checks, progress).part()
    rows = list(source.rows(left_out.add))
    total = len(rows) + left_out.rows()
    left_out.check(total)
    if not rows:
        raise BadData(f"{spec.source}: there is no row in it")
    conversion = Conversion(Formats(rows, spec, catalog), need, left_out)
    converted = conversion.convert(rows)
    ways = NO_FORMAT
    if left_out.rows() >= total:
        ways = way_on(spec, need, [row.values for row in rows[:LOOKED_AT]], conversion.formats.unread())
    left_out.check(total, ways)
    if preparation is not None:
        converted = conversion.prepare(rows, converted, preparation())
        left_out.check(total, NO_TEMPLATE)
    numbers, usable = conversion.usable(converted)
    return conversion.part(usable, numbers, len(rows), total, source.warnings)


def _weigh(parts: list[Part], rng: random.Random) -> list[Part]:
    """Draw rows from each part so that their numbers have the ratio of the weights."""
    weights = [part.spec.weight for part in parts if part.spec.weight]
    if len(weights) < 2:
        return parts
    size = min(part.total / weight for part, weight in zip(parts, weights, strict=True))
    counts = [max(1, round(size * weight)) for weight in weights]
    return [
        replace(part, chosen=rng.sample(range(part.total), count)) if count < part.total else part
        for part, count in zip(parts, counts, strict=True)
    ]
