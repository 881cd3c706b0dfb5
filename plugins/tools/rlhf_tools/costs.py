"""What a choice of `rlhf recommend` costs: the estimate of its run, and the flags with which it fits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_core import Catalog, UserError, resolve
from rlhf_core.commands import ESTIMATED_REWARD, Device, Question
from rlhf_tools.choosing import Choice

CROWDED = 0.8  # share of a card that 16-bit weights may take before nothing but 4 bits is tried


@dataclass(frozen=True)
class Cost:
    """`memory` in bytes, and the `seconds` of all `steps`, where they are known, with the `changes` of options that make
    it fit. `problem`: why it can't be run.
    """

    memory: int = 0
    fits: bool = True
    steps: int | None = None
    seconds: float | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


class Costs:
    """Estimates for one model, its data and a device. `model` is its full name once `look` was called."""

    def __init__(self, model: str, data: Sequence[str], device: Device, catalog: Catalog) -> None:
        self.model, self.data, self.device, self.catalog = model, list(data), device, catalog

    def look(self, choice: Choice) -> int | None:
        """Bytes of the model's weights in 16 bits, if they leave no room on the device; else None."""
        with self._question(choice) as question:
            self.model, info = question.planned.config.model, question.planned.info
            size = 2 * info.parameters
            crowded = self.device.is_gpu and not info.quantized and size > CROWDED * self.device.memory
            return size if crowded else None

    def of(self, choice: Choice) -> Cost:
        try:
            with self._question(choice) as question:
                answer = question.answer()
                for _ in question.remedies(answer):
                    pass
                last = answer.last
                changes = answer.tried[-1].changes if answer.tried and answer.fits else {}
                return Cost(last.needed, last.fits, answer.steps, answer.seconds, changes)
        except UserError as error:  # such as rows that are too long for this method
            return Cost(problem=str(error))

    @contextmanager
    def _question(self, choice: Choice) -> Iterator[Question]:
        values = {"method": choice.method, "model": self.model, "data": self.data, **choice.values}
        if choice.pipeline:
            values["reward"] = [ESTIMATED_REWARD]
        config, method = resolve(values, self.catalog)
        with tempfile.TemporaryDirectory() as folder:
            yield Question(config, method, self.catalog, self.device, Path(folder))
