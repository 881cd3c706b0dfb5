"""What a choice of `rlhf recommend` costs: the estimate of its run, and the flags with which it fits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlhf_core import Catalog, resolve
from rlhf_core.commands import BadData, Device, Question
from rlhf_tools.choosing import Choice

CROWDED = 0.8  # share of a card that 16-bit weights may take before nothing but 4 bits is tried


@dataclass(frozen=True)
class Cost:
    """`memory` in bytes, and the `seconds` of all `steps`, where they are known, with the `changes` of options that
    make it fit.
    """

    memory: int = 0
    fits: bool = True
    steps: int | None = None
    seconds: float | None = None
    changes: dict[str, Any] = field(default_factory=dict)


class Costs:
    """Estimates for one model, its data and a device. `look` comes first: it finds the model's full name, its number of
    parameters, and `crowded`: the bytes of its 16-bit weights, if they leave no room on the device.
    """

    def __init__(self, model: str, data: Sequence[str], device: Device, catalog: Catalog) -> None:
        self.model, self.data, self.device, self.catalog = model, list(data), device, catalog
        self.parameters = 0
        self.crowded: int | None = None

    def look(self, choice: Choice) -> str:
        """Why a run would refuse the rows, with the model's template and limits; empty if it would not."""
        try:
            for stage in choice.stages:
                with self._question(stage, self.device) as question:
                    self.model, info = question.planned.config.model, question.planned.info
        except BadData as error:
            return str(error)
        self.parameters, size = info.parameters, 2 * info.parameters
        if self.device.is_gpu and not info.quantized and size > CROWDED * self.device.memory:
            self.crowded = size
        return ""

    def of(self, choice: Choice) -> Cost:
        """What it costs with as few changes as it needs to fit."""
        beside = self._reward_model(choice)
        if beside >= self.device.memory:
            return Cost(beside, fits=False)
        left = replace(self.device, memory=self.device.memory - beside)
        with self._question(choice.stages[-1], left) as question:
            answer = question.answer()
            for _ in question.remedies(answer):
                pass
            changes = answer.tried[-1].changes if answer.tried and answer.fits else {}
            return Cost(answer.last.needed + beside, answer.fits, answer.steps, answer.seconds, changes)

    def _reward_model(self, choice: Choice) -> int:
        """Bytes of the reward model that the classic pipeline is still to train, which has the model's size. The
        estimate counts one that is there.
        """
        size = 2 if self.device.is_gpu and self.device.bfloat16 else 4
        return size * self.parameters if choice.pipeline else 0

    @contextmanager
    def _question(self, stage: Choice, device: Device) -> Iterator[Question]:
        values = {"method": stage.method, "model": self.model, "data": self.data, **stage.values}
        config, method = resolve(values, self.catalog)
        with tempfile.TemporaryDirectory() as folder:
            yield Question(config, method, self.catalog, device, Path(folder))
