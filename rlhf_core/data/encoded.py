"""Conversations that are too many for memory, as token ids in a table on disk, which is kept in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rlhf_core.data import cache, parallel
from rlhf_core.data.encoding import encode_within, learns, tools_of
from rlhf_core.data.stored import View

if TYPE_CHECKING:
    import datasets
    import pyarrow

    from rlhf_core.data.chat_template import ChatTemplate

CHUNK = 500  # rows that a process is given at a time


def conversations(rows: View, template: ChatTemplate, max_length: int) -> datasets.Dataset:
    """As `encode_conversations`."""
    import datasets
    import pyarrow

    tokens = pyarrow.list_(pyarrow.int32())
    schema = pyarrow.schema([("input_ids", tokens), ("labels", tokens)])

    def encode(numbers: range) -> pyarrow.RecordBatch:
        some = [rows[number] for number in numbers]
        cut = (part for row in some for part in encode_within(template, row["messages"], tools_of(row), max_length))
        found = [part for part in cut if learns(part[1])]
        return pyarrow.record_batch([[ids for ids, _ in found], [labels for _, labels in found]], schema=schema)

    def chunks() -> Iterator[range]:
        return (range(start, min(start + CHUNK, len(rows))) for start in range(0, len(rows), CHUNK))

    decides = {"rows": rows.digest(), "template": template.identity(), "max_length": max_length}
    key = cache.key_of([], encoded=decides, code=cache.code_of())
    with cache.locked(key):
        found = cache.find(key)
        if found is None:
            with cache.writing(key) as (stream, _, path), pyarrow.ipc.new_stream(stream, schema) as table:
                for batch in parallel.in_order(encode, chunks(), parallel.cores()):
                    table.write_batch(batch)
        else:
            path = found[0]
    return datasets.Dataset.from_file(str(path))
