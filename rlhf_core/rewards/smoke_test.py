"""The rewards of a run, called once on its first rows before weights load. Needs no torch.

What fails here is reported and does not stop the run: a reward's error never does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from rlhf_core.data.loading import prompt_of
from rlhf_core.rewards.outcomes import Column
from rlhf_core.rewards.runtime import RewardBatch, RewardRuntime
from rlhf_core.ui.screen import number

ROWS = 4
PLACEHOLDER = "Yes."
# What TRL hands to rewards while it trains, for those that ask for it before or without training.
PLACEHOLDERS: Mapping[str, Any] = {
    "trainer_state": SimpleNamespace(global_step=0, max_steps=1, epoch=0.0),
    "log_metric": lambda name, value: None,
    "log_extra": lambda name, values: None,
}


@dataclass(frozen=True)
class SmokeTest:
    """What each reward said of `answers`: the data's own, or where it has none, a `placeholder`."""

    answers: list[str]
    placeholder: bool
    columns: dict[str, Column]

    def lines(self) -> list[tuple[str, str]]:
        """(label, text): one line for each reward, as a warning if it failed on every row."""
        kind = "placeholder" if self.placeholder else "reference"
        count = f"{len(self.answers)} {kind} answer{'s' * (len(self.answers) > 1)}"
        return [_line(name, column, count) for name, column in self.columns.items()]


def _line(name: str, column: Column, count: str) -> tuple[str, str]:
    scores = [score for score in column.scores if score is not None]
    error = next((error for error in column.errors if error is not None), None)
    size = len(column.scores)
    if column.failed == size:
        return "Warning", f"reward {name} failed on {'each of ' * (size > 1)}{count}: {error}"
    extremes = dict.fromkeys(number(extreme(scores)) for extreme in (min, max) if scores)
    failed = f", failed on {column.failed}: {error}" if column.failed else ""
    scored = " to ".join(extremes) or "applies to none"
    return "Test", f"{name} on {count}: {scored}{failed}, {column.seconds * 1000:.0f} ms"


def smoke_test(
    rows: Sequence[dict[str, Any]], runtime: RewardRuntime, encode: Callable[[str], list[int]]
) -> SmokeTest | None:
    """Score the first few of the projected `rows`. None where there are no rewards or no rows."""
    rows = rows[:ROWS]
    if not runtime.rewards or not rows:
        return None
    own = [_own_answer(row) for row in rows]
    answers = [PLACEHOLDER if answer is None else answer for answer in own]
    batch = RewardBatch(
        [prompt_of(row) for row in rows],
        [[{"role": "assistant", "content": answer}] for answer in answers],
        [encode(answer) for answer in answers],
        {key: [row.get(key) for row in rows] for key in rows[0] if key not in ("prompt", "messages")},
        PLACEHOLDERS,
    )
    return SmokeTest(answers, all(answer is None for answer in own), runtime.evaluate(batch))


def _own_answer(row: Mapping[str, Any]) -> str | None:
    """The reference answer, else the last of the assistant's turns, of a pair the chosen one's."""
    if row.get("answer") is not None:
        return str(row["answer"])
    turns = row.get("chosen") or row.get("messages") or []
    return next((turn["content"] for turn in reversed(turns) if turn["role"] == "assistant"), None)
