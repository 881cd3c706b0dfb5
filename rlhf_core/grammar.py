"""How a reward or a data set is written with its settings: `TARGET:key=value,key=value`. Values may be JSON.

In YAML it is such a text, or a mapping of one entry: `{TARGET: {key: value}}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from rlhf_core.errors import UserError

_KEY = re.compile(r"([A-Za-z_]\w*)=")
_FIRST_KEY = re.compile(r":(?=[A-Za-z_]\w*=)")
_NEXT_KEY = re.compile(r",(?=[A-Za-z_]\w*=)")


def read(entry: str | Mapping[str, Any], flag: str, target: str) -> tuple[str, dict[str, Any]]:
    """(target, values) of `entry`, a text or a mapping of one target to its values. Raises `UserError`."""
    if isinstance(entry, str):
        return split(entry, flag, target)
    if len(entry) != 1 or not isinstance(next(iter(entry.values())), Mapping | None):
        raise UserError(f"{flag} {dict(entry)!r} can't be read: write a string or {{{target}: {{key: value}}}}")
    name, values = next(iter(entry.items()))
    return name, dict(values or {})


def split(text: str, flag: str, target: str) -> tuple[str, dict[str, Any]]:
    """(target, values) of `text`. `flag` and `target` are for the message of the `UserError` where it can't be read."""
    start = _FIRST_KEY.search(text)
    before = text[: start.start()] if start else text
    if not before or (start is None and text.endswith(":")):
        raise UserError(f"{flag} {text!r} can't be read: write {target} or {target}:key=value,key=value")
    return before, _parse_values(text, start.end(), flag) if start else {}


def join(target: str, values: Mapping[str, Any]) -> str:
    """The text that `split` reads back."""
    return target + (":" if values else "") + ",".join(f"{key}={write(value)}" for key, value in values.items())


def write(value: Any) -> str:
    """One value as it is read back."""
    if isinstance(value, str) and _parse_value(value, 0) == (value, len(value) + 1):
        return value
    return json.dumps(value, ensure_ascii=False)


def _parse_values(text: str, position: int, flag: str) -> dict[str, Any]:
    """`key=value,key=value` from `position` on. A value that is not JSON runs to the next `,key=` or the end."""
    values: dict[str, Any] = {}
    while position < len(text):
        key = _KEY.match(text, position)
        if key is None:
            raise UserError(f"{flag} {text!r}: {text[position:]!r} is not key=value")
        if key[1] in values:
            raise UserError(f"{flag} {text!r}: {key[1]} is given twice")
        values[key[1]], position = _parse_value(text, key.end())
    return values


def _parse_value(text: str, position: int) -> tuple[Any, int]:
    try:
        value, end = json.JSONDecoder().raw_decode(text, position)
        if end == len(text) or (text[end] == "," and _KEY.match(text, end + 1)):
            return value, end + 1
    except json.JSONDecodeError:
        pass
    following = _NEXT_KEY.search(text, position)
    end = following.start() if following else len(text)
    return text[position:end], end + 1
