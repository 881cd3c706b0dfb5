"""The syntax of `--reward` and `--data`: `TARGET:key=value,key=value`, where values may be JSON.

In YAML: the same text, or a mapping of one entry, `{TARGET: {key: value}}`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlhf_core.credentials import masked, refuse
from rlhf_core.errors import UserError, did_you_mean, excerpt
from rlhf_core.inputs import plain

_KEY = re.compile(r"([A-Za-z_]\w*)=")
_FIRST_KEY = re.compile(r":(?=[A-Za-z_]\w*=)")
_NEXT_KEY = re.compile(r",(?=[A-Za-z_]\w*=)")
SMALLEST, LARGEST = 1e-6, 1e6  # weights of rewards and data, as _WEIGHT says
_WEIGHT = "a number from 0.000001 to 1000000"
DATA_KEYS = ("weight", "config", "formatter", "first_option", "turns")
TURN_KEYS = ("role", "content", "system", "user", "assistant", "tool", "function_call")
# What a column of the data can be named as: what the usual formats call it.
COLUMN_KEYS = (
    *("prompt", "question", "instruction", "input", "system", "history", "messages", "conversations", "tools"),
    *("completion", "response", "answer", "output", "chosen", "rejected", "options", "query", "text"),
    *("response_chosen", "response_rejected", "rejected_response", "score"),
)


@dataclass(frozen=True)
class RewardSpec:
    """`--reward TARGET[:key=value,…]`, as the user wrote it.

    `target` is an installed name, `distribution/name`, `package.module:attribute` or `./file.py:attribute`. Keys other
    than `weight`, `name` (to use a reward twice) and `concurrent` (None: as it declares) are the reward's parameters.
    """

    target: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    name: str | None = None
    concurrent: bool | None = None

    @classmethod
    def read(cls, entry: str | Mapping[str, Any]) -> RewardSpec:
        """Read a command-line text or a YAML entry. Raises `UserError`."""
        target, values = read_entry(entry, "--reward", "NAME")
        weight, name, concurrent = (values.pop(key, None) for key in ("weight", "name", "concurrent"))
        weight = 1.0 if weight is None else weight
        if not (_is_weight(weight) or weight == 0) or isinstance(weight, bool):
            raise UserError(f"--reward {target}: weight must be 0 or {_WEIGHT}, or the negative of one, not {weight!r}")
        if not isinstance(concurrent, bool | None):
            raise UserError(f"--reward {target}: concurrent must be true or false, not {concurrent!r}")
        if name is not None and not (isinstance(name, str | int) and str(name).isprintable() and str(name).strip()):
            raise UserError(f"--reward {target}: name must be text that can be printed, not {name!r}")
        return cls(target, values, float(weight), None if name is None else str(name), concurrent)

    @property
    def label(self) -> str:
        """Its name in metrics and samples, as far as the text tells: of the entry point, or of what is at the path.
        A `Reward` that is given by path may have a name of its own.
        """
        _, colon, attribute = self.target.rpartition(":")
        return self.name or (attribute.rpartition(".")[2] if colon else attribute.rpartition("/")[2])

    def __str__(self) -> str:
        """The text that `read` reads back."""
        weight = None if self.weight == 1.0 else self.weight
        return _write(self.target, self.parameters, weight=weight, name=self.name, concurrent=self.concurrent)


@dataclass(frozen=True)
class DataSpec:
    """`--data SOURCE[:key=value,…]`, as the user wrote it.

    `source` is a file, a folder, a Hub id, or `builtin`. `weight` is its share of the rows when several sources are
    mixed, `config` the configuration of a Hub data set, `formatter` the format of its rows. `first_option` is 0 or 1,
    the number of an exam's first option. `columns` says which column is read as what: {"prompt": "my_question"}, and
    {"prompt": "input.0.text"} for what is within a column. Written as `prompt=my_question`, or as `columns={…}`, which
    also takes names that only some formatter or reward knows. `turns` says what turns of conversations call their role,
    their text, and who speaks: {"role": "speaker", "content": "text", "user": "Patient"}.
    """

    source: str
    weight: float | None = None
    config: str | None = None
    formatter: str | None = None
    first_option: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    turns: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, entry: str | Mapping[str, Any]) -> DataSpec:
        """Read a command-line text or a YAML entry. Raises `UserError`."""
        if isinstance(entry, str) and ":" in entry and os.path.exists(os.path.expanduser(entry)):
            return cls(entry)  # a file whose name looks like settings
        source, values = read_entry(entry, "--data", "SOURCE")
        known = (*DATA_KEYS, "columns", *COLUMN_KEYS)
        for key in values:
            if key not in known:
                hint = did_you_mean(key, known)
                raise UserError(f"--data {source}: there is no setting {key!r}.{hint} Settings: {', '.join(known)}.")
        weight = values.get("weight")
        if weight is not None and not (_is_weight(weight) and weight > 0):
            raise UserError(f"--data {source}: weight must be {_WEIGHT}, not {weight!r}")
        source = "builtin" if source == "embedded" else source  # its name in earlier versions
        first = values.get("first_option")
        if first is not None and (type(first) is not int or first not in (0, 1)):
            raise UserError(f"--data {source}: first_option must be 0 or 1, not {first!r}")
        columns = _columns(source, values)
        texts = {key: None if values.get(key) is None else str(values[key]) for key in ("config", "formatter")}
        turns = {} if values.get("turns") is None else values["turns"]
        if not isinstance(turns, Mapping) or not all(key in TURN_KEYS and isinstance(turns[key], str) for key in turns):
            allowed = ", ".join(TURN_KEYS)
            raise UserError(f"--data {source}: turns must be {{key: TEXT}} with keys of {allowed}, not {turns!r}")
        return cls(source, weight, **texts, first_option=first, columns=columns, turns=dict(turns))

    def __str__(self) -> str:
        settings = {key: getattr(self, key) for key in DATA_KEYS} | {"turns": self.turns or None}
        usual = {key: column for key, column in self.columns.items() if key in COLUMN_KEYS}
        others = {key: column for key, column in self.columns.items() if key not in usual}
        return _write(self.source, usual, columns=others or None, **settings)


def _columns(source: str, values: Mapping[str, Any]) -> dict[str, str]:
    """{what a column is read as: its name in the data}. Raises `UserError`."""
    named = {key: values[key] for key in COLUMN_KEYS if values.get(key) is not None}
    others = {} if values.get("columns") is None else values["columns"]
    if not isinstance(others, Mapping) or not all(isinstance(key, str) and key for key in others):
        raise UserError(f"--data {source}: columns must be {{what it is read as: COLUMN}}, not {others!r}")
    if twice := next((key for key in others if key in named), None):
        raise UserError(f"--data {source}: {twice} is given twice")
    for key, column in (named := {**named, **others}).items():
        if isinstance(column, bool) or not isinstance(column, str | int) or column == "":
            raise UserError(f"--data {source}: {key} must be the name of a column, not {column!r}")
    return {key: str(column) for key, column in named.items()}


def read_data(entries: Sequence[str | Mapping[str, Any]], config: str | None, formatter: str | None) -> list[DataSpec]:
    """All sources of one run. `config` and `formatter` are for the sources that do not set them."""
    given = [DataSpec.read(entry) for entry in entries]
    specs = [replace(s, config=s.config or config, formatter=s.formatter or formatter) for s in given]
    without = [spec.source for spec in specs if not spec.weight]
    if without and len(without) < len(specs):
        raise UserError(f"--data: either every source has a weight or none; missing for {', '.join(without)}")
    return specs


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and SMALLEST <= abs(value) <= LARGEST


def read_entry(entry: str | Mapping[str, Any], flag: str, target: str) -> tuple[str, dict[str, Any]]:
    """(target, values) of a text or a mapping. `flag` and `target` are for the message of the `UserError`."""
    shown = f"{flag} {excerpt(repr(entry))}"
    if isinstance(entry, Mapping):
        entry = dict(entry)
        name, given = next(iter(entry.items()), (None, None))
        if len(entry) != 1 or not isinstance(given, Mapping | None) or not (isinstance(name, str) and name):
            raise UserError(f"{shown} can't be read: write a string or {{{target}: {{key: value}}}}")
        for key in given or ():
            if not (isinstance(key, str) and _KEY.fullmatch(f"{key}=")):
                raise UserError(f"{flag} {name}: {key!r} is no name of a parameter")
        given = plain(dict(given or {}), shown)
        refuse(given, f"{flag} {name}")
        return str(name), given
    start = _FIRST_KEY.search(entry)
    name = entry[: start.start()] if start else entry
    if not name or (start is None and entry.endswith(":")):
        raise UserError(f"{shown} can't be read: write {target} or {target}:key=value,key=value")
    values: dict[str, Any] = {}
    position = start.end() if start else len(entry)
    while position < len(entry):
        key = _KEY.match(entry, position)
        if key is None:
            raise UserError(f"{shown}: {excerpt(repr(entry[position:]))} is not key=value")
        if key[1] in values:
            raise UserError(f"{shown}: {key[1]} is given twice")
        values[key[1]], position = _parse_value(entry, key.end())
    plain(values, shown)
    refuse([{"": name}, values], f"{flag} {excerpt(masked(name))}")
    return name, values


def _write(target: str, parameters: Mapping[str, Any], **settings: Any) -> str:
    """The text of an entry, without the settings that are None."""
    values = {**parameters, **{key: value for key, value in settings.items() if value is not None}}
    return target + (":" if values else "") + ",".join(f"{key}={write(value)}" for key, value in values.items())


def write(value: Any) -> str:
    """The text that is read back as `value`."""
    if isinstance(value, str) and _parse_value(value, 0) == (value, len(value) + 1):
        return value
    return json.dumps(value, ensure_ascii=False)


def _parse_value(text: str, position: int) -> tuple[Any, int]:
    """(value at `position`, position of the next key). A value that is not JSON ends at the next `,key=` or the end."""
    try:
        value, end = json.JSONDecoder().raw_decode(text, position)
        if end == len(text) or (text[end] == "," and _KEY.match(text, end + 1)):
            return value, end + 1
    except (ValueError, RecursionError):  # not JSON, or more digits or levels than Python reads: it is text
        pass
    following = _NEXT_KEY.search(text, position)
    end = following.start() if following else len(text)
    return text[position:end], end + 1
