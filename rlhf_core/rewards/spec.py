"""`--reward SPEC[:key=value,…]`: the grammar. `binding.py` makes a reward that can be called of it.

SPEC is an installed name, `distribution/name`, `package.module:attribute` or `./file.py:attribute`. Values may be
JSON. `weight`, `name` (which allows the same reward twice) and `concurrent` belong to rlhf, every other key is a
parameter of the reward. In YAML a reward is such a string or a mapping, `{length: {target: 200, weight: 0.5}}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlhf_core import grammar
from rlhf_core.errors import UserError


@dataclass(frozen=True)
class RewardSpec:
    """What the user wrote. `concurrent` is None where that is left to the reward's own declaration."""

    target: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    name: str | None = None
    concurrent: bool | None = None

    @classmethod
    def read(cls, entry: str | Mapping[str, Any]) -> RewardSpec:
        """Read `SPEC[:key=value,…]`, or the mapping of one SPEC to its values. Raises `UserError`."""
        target, values = grammar.read(entry, "--reward", "NAME")
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
        return grammar.join(self.target, {**self.parameters, **{k: v for k, v in own.items() if v is not None}})
