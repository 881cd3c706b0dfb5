"""A source in numbers: lengths, scripts, duplicates and near-duplicates, overlap with held-out rows, pairs, answers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from rlhf_core.catalog import Catalog
from rlhf_core.data import parallel
from rlhf_core.data.parts import Row
from rlhf_core.data.progress import Progress, silent
from rlhf_core.data.projecting import Need
from rlhf_core.data_report.measuring import (
    Seen,
    concluded,
    held_out_reader,
    overlap,
    prompt_digest,
    prompt_text,
    row_text,
)
from rlhf_core.data_report.near import Near, NearRows
from rlhf_core.data_report.reading import Reader
from rlhf_core.data_report.tokens import Tokens, method_for
from rlhf_core.grammar import DataSpec

CHUNK = 500  # rows
MANY = 5000  # rows, from which on they are counted in a process of its own
Chunk = list[tuple[str, Row]]


def stats(
    given: str,
    catalog: Catalog,
    *,
    method: str | None = None,
    model: str = "builtin",
    chat_template: str | None = None,
    eval_data: str | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Everything that `rlhf data stats` shows, as plain data. Raises `UserError`."""
    spec = DataSpec.read(given)
    need = method_for(method, "prompts", catalog).data if method else None
    reader = Reader(spec, need, catalog)
    other = held_out_reader(spec, reader.need, catalog, eval_data)
    tokens = Tokens(method_for(method, reader.need, catalog), model, reader.rows_read, chat_template)

    def chunks() -> Iterator[Chunk]:
        rows = ((location, row) for location, row, _ in reader.rows())
        while chunk := list(itertools.islice(rows, CHUNK)):
            yield chunk
            for _, row in chunk:
                tokens.add(row)
            progress(f"{given}: {reader.total:,} rows …", reader.share)

    def count(chunks: Iterator[Chunk]) -> dict[str, Any]:
        return counted(chunks, reader.need, other)

    numbers = count(chunks()) if reader.rows_read < MANY else parallel.beside(count, chunks())
    return {
        "source": str(given),
        "need": reader.need,
        "format": reader.formats.main.name,
        "total": reader.total,
        "rows": reader.total - reader.left_out.rows(),
        "left_out": reader.left_out.to_dict(),
        "lengths": tokens.to_dict(),
        **numbers,
        "warnings": [*reader.warnings, *reader.conversion.told(), *concluded(numbers)],
    }


def counted(chunks: Iterator[Chunk], need: Need, other: Reader | None) -> dict[str, Any]:
    """What is counted of all rows, and of the rows of `other`, which are held out."""
    seen, near, prompts = Seen(need), NearRows(), Near() if other else None
    for location, row in itertools.chain.from_iterable(chunks):
        if prompts and prompt_digest(row) not in seen.prompts:
            prompts.add(prompts.hashed(prompt_text(row)), location)
        if seen.add(location, row):
            near.add(location, row_text(row, need))
    return {
        **seen.to_dict(),
        "near_duplicates": near.to_dict(),
        "held_out": overlap(other, seen.prompts, prompts),
    }
