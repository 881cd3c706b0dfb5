"""The rewards of a run, called once on its first rows before weights load. Errors are reported and don't stop the run.

Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from rlhf_core.data.projecting import prompt_of
from rlhf_core.rewards.batch import RewardBatch, columns_of
from rlhf_core.rewards.outcomes import Column
from rlhf_core.rewards.runtime import RewardRuntime
from rlhf_core.ui.screen import number

ROWS = 4
PLACEHOLDER = "Yes."
# What TRL passes to rewards while it trains, for those that take it outside of training.
PLACEHOLDERS: Mapping[str, Any] = {
    "trainer_state": SimpleNamespace(global_step=0, max_steps=1, epoch=0.0),
    "log_metric": lambda name, value: None,
    "log_extra": lambda name, values: None,
}


@dataclass(frozen=True)
class SmokeTest:
    """The outcome of each reward for `answers`: the data's, or a `placeholder` where it has none."""

    answers: list[str]
    placeholder: bool
    columns: dict[str, Column]

    def lines(self) -> list[tuple[str, str]]:
        """(label, text): one line for each reward, as a warning if it failed on every row."""
        return [self._line(name, column) for name, column in self.columns.items()]

    @property
    def failed(self) -> bool:
        """Whether a reward failed on every row."""
        return any(column.failed == len(self.answers) for column in self.columns.values())

    def _line(self, name: str, column: Column) -> tuple[str, str]:
        size = len(self.answers)
        count = f"{size} {'placeholder' if self.placeholder else 'reference'} answer{'s' * (size > 1)}"
        scores = [score for score in column.scores if score is not None]
        error = next((error for error in column.errors if error is not None), None)
        if column.failed == size:
            return "Warning", f"reward {name} failed on {'each of ' * (size > 1)}{count}: {error}"
        scored = " to ".join(dict.fromkeys(number(f(scores)) for f in (min, max) if scores)) or "applies to none"
        failed = f", failed on {column.failed}: {error}" if column.failed else ""
        return "Test", f"{name} on {count}: {scored}{failed}, {column.seconds * 1000:.0f} ms"


def smoke_test(
    rows: Sequence[dict[str, Any]], runtime: RewardRuntime, encode: Callable[[str], list[int]]
) -> SmokeTest | None:
    """Score the first few of the projected `rows`. None where there are no rewards or no rows."""
    rows = [row for row in rows[:ROWS] if prompt_of(row)]
    if not runtime.rewards or not rows:
        return None
    found = [_reference_answer(row) for row in rows]
    answers = [PLACEHOLDER if answer is None else answer for answer in found]
    batch = RewardBatch(
        [prompt_of(row) for row in rows],
        [[{"role": "assistant", "content": answer}] for answer in answers],
        [encode(answer.encode("utf-8", "replace").decode()) for answer in answers],  # half a character has no token
        columns_of(rows),
        PLACEHOLDERS,
        answers,
    )
    return SmokeTest(answers, all(answer is None for answer in found), runtime.evaluate(batch))


def _reference_answer(row: Mapping[str, Any]) -> str | None:
    """The reference answer, of several the first; else the last of the assistant's turns (of a pair: the chosen one's).

    NaN, with which a table marks an empty cell, is no answer.
    """
    value = row.get("answer")
    while isinstance(value, list | tuple):
        value = value[0] if value else None
    if value is not None and not isinstance(value, Mapping) and value == value:
        return str(value)
    turns = row.get("messages") or row.get("chosen")
    answers = [turn for turn in turns if turn["role"] == "assistant"] if isinstance(turns, list) else []
    return answers[-1]["content"] if answers else None
