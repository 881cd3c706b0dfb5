"""What is within a column, where the user names it: `question=input.text`, `answer=answers.0.text`, keys of turns."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from rlhf_core.errors import UserError
from rlhf_core.inputs import parse_json


def parents(columns: Collection[str], names: Collection[str]) -> frozenset[str]:
    """The columns to open for those of `columns` that are no name in the data: `a` and `a.b` for `a.b.c`."""
    parts = [column.split(".") for column in columns if column not in names]
    return frozenset(".".join(part[:i]) for part in parts for i in range(1, len(part)))


def opened(values: Mapping[str, Any], parents: Collection[str]) -> dict[str, Any]:
    """`values`, with what is in the columns `parents` in their place: objects by key, lists by number from 0."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        inner = _items(value) if name in parents else None
        found |= {name: value} if inner is None else opened({f"{name}.{key}": v for key, v in inner}, parents)
    return found


def _items(value: Any) -> list[tuple[Any, Any]] | None:
    """The entries of an object or a list, also of one that a cell of a CSV file has as JSON text."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            value = parse_json(value, "")
        except UserError:
            return None
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple) else None


def with_roles(value: Any, names: Mapping[str, str]) -> Any:
    """`value`; turns in it, whose keys and roles have the `names` {"role": "speaker", "user": "Patient"}, with ours."""
    role, content = names.get("role", "role"), names.get("content", "content")
    speakers = {name: ours for ours, name in names.items() if ours not in ("role", "content")}

    def turn(given: Any) -> Any:
        if not isinstance(given, Mapping) or role not in given or content not in given:
            return given
        others = {key: inner for key, inner in given.items() if key not in (role, content)}
        return {**others, "role": speakers.get(given[role], given[role]), "content": given[content]}

    return [turn(each) for each in value] if isinstance(value, list) else turn(value)
