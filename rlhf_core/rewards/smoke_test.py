"""The rewards of a run, called once on its first rows before weights load. Needs no torch.

What fails here is told and does not stop the run: a reward's error never does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from rlhf_core.data.loading import prompt_of
from rlhf_core.rewards.runtime import Batch, Column, RewardRuntime
from rlhf_core.ui.screen import number

ROWS = 4
MADE_UP = "Yes."
# What TRL hands to rewards while it trains, for those that ask for it before or without training.
STAND_INS: Mapping[str, Any] = {
    "trainer_state": SimpleNamespace(global_step=0, max_steps=1, epoch=0.0),
    "log_metric": lambda name, value: None,
    "log_extra": lambda name, values: None,
}


@dataclass(frozen=True)
class Tried:
    """What each reward said of `answers`: the data's own, or where it has none, `made_up` ones."""

    answers: list[str]
    made_up: bool
    columns: dict[str, Column]

    def lines(self) -> list[tuple[str, str]]:
        """(label, text): one line for each reward, as a warning if it failed on every row."""
        kind = "made-up" if self.made_up else "reference"
        count = f"{len(self.answers)} {kind} answer{'s' * (len(self.answers) > 1)}"
        return [_line(name, column, count) for name, column in self.columns.items()]


def _line(name: str, column: Column, count: str) -> tuple[str, str]:
    scores = [score for score in column.scores if score is not None]
    size = len(column.scores)
    if column.failed == size:
        return "Warning", f"reward {name} failed on {'each of ' * (size > 1)}{count}: {_first_error(column)}"
    ends = dict.fromkeys(number(end(scores)) for end in (min, max) if scores)
    said = " to ".join(ends) or "applies to none"
    failed = f", failed on {column.failed}: {_first_error(column)}" if column.failed else ""
    return "Tried", f"{name} on {count}: {said}{failed}, {column.seconds * 1000:.0f} ms"


def _first_error(column: Column) -> str:
    return next(error for error in column.errors if error is not None)


def try_rewards(
    rows: Sequence[dict[str, Any]], runtime: RewardRuntime, encode: Callable[[str], list[int]]
) -> Tried | None:
    """Score the first few of the projected `rows`. None where there are no rewards or no rows."""
    rows = rows[:ROWS]
    if not runtime.rewards or not rows:
        return None
    own = [_own_answer(row) for row in rows]
    made_up = all(answer is None for answer in own)
    answers = [MADE_UP if answer is None else answer for answer in own]
    prompts = [prompt_of(row) for row in rows]
    messages = [[{"role": "assistant", "content": answer}] for answer in answers]
    columns = {key: [row.get(key) for row in rows] for key in rows[0] if key not in ("prompt", "messages")}
    batch = Batch(prompts, messages, [encode(answer) for answer in answers], columns, STAND_INS)
    return Tried(answers, made_up, runtime.evaluate(batch))


def _own_answer(row: Mapping[str, Any]) -> str | None:
    """The reference answer, else the last of the assistant's turns, of a pair the better one's."""
    if row.get("answer") is not None:
        return str(row["answer"])
    turns = row.get("chosen") or row.get("messages") or []
    return next((turn["content"] for turn in reversed(turns) if turn["role"] == "assistant"), None)
