"""What is kept of each scored answer: lines of samples.jsonl, and of reward_errors.jsonl for rows that failed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_core.rewards.batch import TEXT_PROMPT, RewardBatch
from rlhf_core.rewards.outcomes import Column


def samples(batch: RewardBatch, columns: Mapping[str, Column], *, text_prompts: bool) -> list[dict[str, Any]]:
    """A line of samples.jsonl for each answer of a scored batch."""
    state = batch.trl.get("trainer_state")
    step = state.global_step + 1 if state else 0
    return [
        {
            "step": step,
            "prompt": batch.prompts[i],
            "completion": text,
            "rewards": {name: column.scores[i] for name, column in columns.items()},
            "columns": {name: values[i] for name, values in batch.columns.items()},
            **({TEXT_PROMPT: True} if text_prompts else {}),
        }
        for i, text in enumerate(batch.texts)
    ]


def record(folder: Path, found: Sequence[Mapping[str, Any]], columns: Mapping[str, Column]) -> None:
    """Add the answers of a batch, and the rows that failed, to the run's files."""
    failed = [
        {"step": one["step"], "reward": name, "error": error, "prompt": one["prompt"], "completion": one["completion"]}
        for name, column in columns.items()
        for one, error in zip(found, column.errors, strict=True)
        if error is not None
    ]
    _append(folder / "samples.jsonl", found)
    _append(folder / "reward_errors.jsonl", failed)


def scores_by_prompt(prompts: Sequence[Any], scores: Sequence[float | None]) -> list[Sequence[float | None]]:
    """The scores of each prompt's answers, where there are several; all of them, where each prompt has one."""
    sizes = [len(list(group)) for _, group in itertools.groupby(prompts)]
    sizes = [len(scores)] if max(sizes) == 1 else sizes
    ends = list(itertools.accumulate(sizes))
    return [scores[end - size : end] for end, size in zip(ends, sizes, strict=True) if size > 1]


def _append(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append lines with one write, since all processes of a run write to the same file."""
    text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    data = text.encode("utf-8", "backslashreplace")  # a lone surrogate as JSON writes it
    with file.open("ab", buffering=0) as stream:
        stream.write(data)
