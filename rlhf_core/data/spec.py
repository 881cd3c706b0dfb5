"""`--data SOURCE[:key=value,…]`: one source of rows and its settings.

SOURCE is a file, a folder, a Hub id, or `builtin`. `weight` is the share of the training rows that come from it when
several are mixed, `config` the configuration of a Hub data set, `formatter` the format of its rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_core import grammar
from rlhf_core.errors import UserError, did_you_mean

KEYS = ("weight", "config", "formatter")


@dataclass(frozen=True)
class DataSpec:
    """What the user wrote about one source."""

    source: str
    weight: float | None = None
    config: str | None = None
    formatter: str | None = None

    @classmethod
    def read(cls, entry: str | Mapping[str, Any]) -> DataSpec:
        """Read `SOURCE[:key=value,…]`, or the mapping of one SOURCE to its values. Raises `UserError`."""
        source, values = grammar.read(entry, "--data", "SOURCE")
        for key in values:
            if key not in KEYS:
                raise UserError(f"--data {source}: there is no setting {key!r}.{did_you_mean(key, KEYS)}")
        weight = values.get("weight")
        if weight is not None and (isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0):
            raise UserError(f"--data {source}: weight is a number above 0, not {weight!r}")
        source = "builtin" if source == "embedded" else source  # the name that earlier versions gave it
        texts = {key: None if values.get(key) is None else str(values[key]) for key in ("config", "formatter")}
        return cls(source, weight, **texts)

    def __str__(self) -> str:
        values = {key: value for key in KEYS if (value := getattr(self, key)) is not None}
        return grammar.join(self.source, values)


def read_all(entries: Sequence[str | Mapping[str, Any]], config: str | None, formatter: str | None) -> list[DataSpec]:
    """All sources of one run. `config` and `formatter` hold for those that say nothing of their own."""
    read = [DataSpec.read(entry) for entry in entries]
    specs = [DataSpec(s.source, s.weight, s.config or config, s.formatter or formatter) for s in read]
    if any(spec.weight for spec in specs) and not all(spec.weight for spec in specs):
        without = ", ".join(spec.source for spec in specs if not spec.weight)
        raise UserError(f"--data: either every source has a weight or none; missing for {without}")
    return specs
