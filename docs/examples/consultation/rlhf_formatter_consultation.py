"""Data whose rows have a patient's `complaint`, the doctor's `advice` and, in some, a `diagnosis`.

    rlhf run --method sft --data data.jsonl:formatter=consultation

Rows to try are in rlhf_formatter_consultation_examples.jsonl.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_core import Example, Formatter, hookimpl


@hookimpl
def rlhf_formatters():
    return [Formatter("consultation", columns={"complaint", "advice"}, convert=convert)]


def convert(row: Mapping[str, Any]) -> Example:
    """One row. The diagnosis, if there is one, is the reference answer. Rewards get the other columns as they are."""
    return Example(
        prompt=[{"role": "user", "content": text(row, "complaint")}],
        completion=[{"role": "assistant", "content": text(row, "advice")}],
        answer=row.get("diagnosis"),
    )


def text(row: Mapping[str, Any], column: str) -> str:
    """The column's text. Raises `ValueError` where there is none; rlhf adds which row it is."""
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{column} is not text: {value!r}")
    return value
