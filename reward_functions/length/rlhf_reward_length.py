"""Reward answers whose length is within a range, softly penalized outside.

    rlhf run --method grpo --reward length:min=100,max=300
    rlhf run --method grpo --reward length:max=384,tolerance=128,unit=tokens,penalty=true

The second is DAPO's soft overlong punishment (Yu et al., 2025, equation 13: https://arxiv.org/abs/2503.14476) for at
most 512 tokens with a soft zone of 128.
"""

from __future__ import annotations

from typing import Literal

from rlhf_core import Reward, hookimpl


@hookimpl
def rlhf_rewards():
    return [Reward(Length, range=(-1.0, 1.0), name="length")]


class Length:
    """1.0 from `min` to `max`, falling linearly to 0.0 at `tolerance` beyond either; with `penalty`, one less.

    `unit`: characters (a run of white space is one) or tokens (the end token is one). With a `min` above zero an empty
    answer gets the lowest score. The content is not judged: combine it with a reward that does.
    """

    def __init__(
        self,
        *,
        min: int = 0,
        max: int = 400,
        tolerance: int = 100,
        unit: Literal["characters", "tokens"] = "characters",
        penalty: bool = False,
    ) -> None:
        if not 0 <= min <= max:
            raise ValueError(f"min={min} and max={max}: needs 0 <= min <= max")
        if tolerance <= 0:
            raise ValueError(f"tolerance={tolerance}: needs a number above 0")
        self.min, self.max, self.tolerance, self.unit = min, max, tolerance, unit
        self.best = 0.0 if penalty else 1.0

    def __call__(self, completions: list[str], completion_ids: list[list[int]] | None = None, **_) -> list[float]:
        if self.unit == "tokens":
            if completion_ids is None:
                raise ValueError("unit=tokens needs completion_ids, which only a run with a tokenizer has")
            return [self._score(len(ids)) for ids in completion_ids]
        return [self._score(len(" ".join(text.split()))) for text in completions]

    def _score(self, length: int) -> float:
        outside = max(self.min - length, length - self.max, 0)
        if length == 0 and self.min > 0:
            return self.best - 1.0
        return self.best - min(1.0, outside / self.tolerance)
