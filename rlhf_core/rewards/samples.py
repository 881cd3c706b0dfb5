"""What is kept of each scored answer: lines of samples.jsonl, and of reward_errors.jsonl for rows that failed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_core.rewards.batch import TEXT_PROMPT, RewardBatch
from rlhf_core.rewards.outcomes import Column


class Samples:
    """The scored answers of a run: `last` are those of the last batch, all are added to the files in `folder`.

    With `wait_for_advantages` a batch is written when `advantages` tells them, or at the next one.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.wait_for_advantages = False
        self.last: list[dict[str, Any]] = []
        self._waiting: list[dict[str, Any]] = []

    def add(
        self,
        batch: RewardBatch,
        columns: Mapping[str, Column],
        *,
        text_prompts: bool,
        finished: Callable[[Sequence[int]], bool],
    ) -> None:
        """Add a scored batch. `finished`: whether an answer's tokens end it."""
        self.write()
        state = batch.trl.get("trainer_state")
        step = state.global_step + 1 if state else 0
        self.last = self._waiting = [
            {
                "step": step,
                "prompt": batch.prompts[i],
                "completion": text,
                "rewards": {name: column.scores[i] for name, column in columns.items()},
                "columns": {name: values[i] for name, values in batch.columns.items()},
                "tokens": len(batch.completion_ids[i]),
                "finished": finished(batch.completion_ids[i]),
                **({"errors": errors} if (errors := _errors(columns, i)) else {}),
                **({TEXT_PROMPT: True} if text_prompts else {}),
            }
            for i, text in enumerate(batch.texts)
        ]
        if not self.wait_for_advantages:
            self.write()

    def advantages(self, values: Sequence[float | None]) -> None:
        """The advantage of each answer of the last batch: none, whatever is said, of one that no reward scored."""
        for sample, value in zip(self.last, values, strict=True):
            scored = any(score is not None for score in sample["rewards"].values())
            sample["advantage"] = value if scored else None
        self.write()

    def write(self) -> None:
        """Write what waits: the answers, and the rows on which a reward failed."""
        if self.folder is not None and self._waiting:
            record(self.folder, self._waiting)
        self._waiting = []


def _errors(columns: Mapping[str, Column], i: int) -> dict[str, str]:
    return {name: error for name, column in columns.items() if (error := column.errors[i]) is not None}


def record(folder: Path, samples: Sequence[Mapping[str, Any]]) -> None:
    failed = [
        {"step": one["step"], "reward": name, "error": error, "prompt": one["prompt"], "completion": one["completion"]}
        for one in samples
        for name, error in one.get("errors", {}).items()
    ]
    append(folder / "samples.jsonl", samples)
    append(folder / "reward_errors.jsonl", failed)


def scores_by_prompt(prompts: Sequence[Any], scores: Sequence[float | None]) -> list[Sequence[float | None]]:
    """The scores of each prompt's answers, where there are several; all of them, where each prompt has one."""
    sizes = [len(list(group)) for _, group in itertools.groupby(prompts)]
    sizes = [len(scores)] if max(sizes) == 1 else sizes
    ends = list(itertools.accumulate(sizes))
    return [scores[end - size : end] for end, size in zip(ends, sizes, strict=True) if size > 1]


def append(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append lines with one write, since all processes of a run write to the same file."""
    text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    data = text.encode("utf-8", "backslashreplace")  # a lone surrogate as JSON writes it
    with file.open("ab", buffering=0) as stream:
        stream.write(data)
