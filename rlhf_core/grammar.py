"""What `--reward` and `--data` take, and how it is written: `TARGET:key=value,key=value`, where values may be JSON.

In YAML it is such a text, or a mapping of one entry: `{TARGET: {key: value}}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_core.errors import UserError, did_you_mean

_KEY = re.compile(r"([A-Za-z_]\w*)=")
_FIRST_KEY = re.compile(r":(?=[A-Za-z_]\w*=)")
_NEXT_KEY = re.compile(r",(?=[A-Za-z_]\w*=)")
DATA_KEYS = ("weight", "config", "formatter")


@dataclass(frozen=True)
class RewardSpec:
    """`--reward TARGET[:key=value,…]`, as the user wrote it; `rewards/binding.py` makes a reward of it.

    `target` is an installed name, `distribution/name`, `package.module:attribute` or `./file.py:attribute`. `weight`,
    `name` (which allows the same reward twice) and `concurrent` (None: as the reward declares) belong to rlhf, every
    other key is a parameter of the reward.
    """

    target: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    name: str | None = None
    concurrent: bool | None = None

    @classmethod
    def read(cls, entry: str | Mapping[str, Any]) -> RewardSpec:
        """Read `SPEC[:key=value,…]`, or the mapping of one SPEC to its values. Raises `UserError`."""
        target, values = read_entry(entry, "--reward", "NAME")
        weight, name, concurrent = (values.pop(key, None) for key in ("weight", "name", "concurrent"))
        weight = 1.0 if weight is None else weight
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise UserError(f"--reward {target}: weight is a number, not {weight!r}")
        if not isinstance(concurrent, bool | None):
            raise UserError(f"--reward {target}: concurrent is true or false, not {concurrent!r}")
        return cls(target, values, float(weight), None if name is None else str(name), concurrent)

    def __str__(self) -> str:
        """The text that `read` reads back."""
        own = {"weight": None if self.weight == 1.0 else self.weight, "name": self.name, "concurrent": self.concurrent}
        return join(self.target, {**self.parameters, **{k: v for k, v in own.items() if v is not None}})


@dataclass(frozen=True)
class DataSpec:
    """`--data SOURCE[:key=value,…]`, as the user wrote it; `data/loading.py` reads its rows.

    `source` is a file, a folder, a Hub id, or `builtin`. `weight` is the share of the training rows that come from it
    when several are mixed, `config` the configuration of a Hub data set, `formatter` the format of its rows.
    """

    source: str
    weight: float | None = None
    config: str | None = None
    formatter: str | None = None

    @classmethod
    def read(cls, entry: str | Mapping[str, Any]) -> DataSpec:
        """Read `SOURCE[:key=value,…]`, or the mapping of one SOURCE to its values. Raises `UserError`."""
        source, values = read_entry(entry, "--data", "SOURCE")
        for key in values:
            if key not in DATA_KEYS:
                raise UserError(f"--data {source}: there is no setting {key!r}.{did_you_mean(key, DATA_KEYS)}")
        weight = values.get("weight")
        if weight is not None and (isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0):
            raise UserError(f"--data {source}: weight is a number above 0, not {weight!r}")
        source = "builtin" if source == "embedded" else source  # the name that earlier versions gave it
        texts = {key: None if values.get(key) is None else str(values[key]) for key in ("config", "formatter")}
        return cls(source, weight, **texts)

    def __str__(self) -> str:
        values = {key: value for key in DATA_KEYS if (value := getattr(self, key)) is not None}
        return join(self.source, values)


def read_data(entries: Sequence[str | Mapping[str, Any]], config: str | None, formatter: str | None) -> list[DataSpec]:
    """All sources of one run. `config` and `formatter` hold for those that say nothing of their own."""
    given = [DataSpec.read(entry) for entry in entries]
    specs = [DataSpec(s.source, s.weight, s.config or config, s.formatter or formatter) for s in given]
    if any(spec.weight for spec in specs) and not all(spec.weight for spec in specs):
        without = ", ".join(spec.source for spec in specs if not spec.weight)
        raise UserError(f"--data: either every source has a weight or none; missing for {without}")
    return specs


def read_entry(entry: str | Mapping[str, Any], flag: str, target: str) -> tuple[str, dict[str, Any]]:
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
