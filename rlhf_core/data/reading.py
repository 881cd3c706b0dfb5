"""What a formatter reads of a row, and where in an example it went."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_core.formatter import Example

PARTS = ("prompt", "completion", "chosen", "rejected", "text", "answer")


class Reading(dict[str, Any]):
    """A row that knows which of its columns were read. Who copies it reads all."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def __iter__(self) -> Iterator[str]:
        self.read.update(super().keys())
        return super().__iter__()

    def items(self) -> Any:
        self.read.update(super().keys())
        return super().items()


def parts_of(value: Any, example: Example) -> list[str]:
    """The parts of the example that are one of the texts of `value`, or else those that contain one."""
    texts = {part: _texts(getattr(example, part)) for part in PARTS}
    found: dict[str, None] = {}
    for text in _texts(value):
        same = [part for part in PARTS if text in texts[part]]
        if not same and len(text.encode(errors="replace")) > 3:  # a letter or a number is in every text
            same = [part for part in PARTS if any(text in other for other in texts[part])]
        found |= dict.fromkeys(same)
    return list(found)


def _texts(value: Any) -> list[str]:
    """All texts and numbers in a value, but for the roles of turns."""
    if isinstance(value, Mapping):
        return [text for key, item in value.items() if key not in ("role", "from") for text in _texts(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    text = "" if value is None or isinstance(value, bool) else str(value).strip()
    return [text] if text else []
