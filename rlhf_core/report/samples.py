"""samples.jsonl as groups for the page: all of them, or as many as have room, with some of every step.

Where there are more answers than a page can hold, each step keeps those groups that tell most (a failed reward, the
largest spread, the longest answer, by turns), and what is best, worst, longest, tied or failed in the whole run stays;
where that is still too much, the middle of long answers goes.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_core.ui.text import shown

BYTES = 4_000_000  # of samples.jsonl that are kept for a page
STEPS = 2000  # that are read, at most
LONGEST = 20_000  # characters of a text
SHORTEST = 160  # to which long answers are cut before steps are left out
KEPT = 12  # of the whole run, of each kind
CUT = " […] "
# Of lines as samples.jsonl has them.
STEP = re.compile(rb'\{"step": (\d+)')
TOKENS = re.compile(rb'"tokens": (\d+)')
COMPLETION, REWARDS, ERRORS = b', "completion": ', b', "rewards": {', b', "errors": {'


@dataclass
class Samples:
    """`groups`: [step, number of the prompt, answers]. An answer is [text, scores, advantage, tokens, finished,
    errors]; of a pair the chosen one and the rejected one, with metrics for scores. `names`: of these. `total`: groups
    that the run has in the steps that were read.
    """

    kind: str = "answers"
    names: list[str] = field(default_factory=list)
    prompts: list[Any] = field(default_factory=list)
    groups: list[list[Any]] = field(default_factory=list)
    total: int = 0


def read_samples(file: Path, size: int = BYTES) -> Samples:
    """The groups of a run, those that fit into `size` bytes."""
    steps = _steps(file)
    samples = Samples()
    if not steps:
        return samples
    read = [steps[round(i * (len(steps) - 1) / (STEPS - 1))] for i in range(STEPS)] if len(steps) > STEPS else steps
    share = min(1.0, size / max(1, sum(end - start for _, start, end in read)))
    notable = _Notable()
    kept: list[Group] = []
    with file.open("rb") as stream:
        for turn, (_, start, end) in enumerate(read):
            stream.seek(start)
            groups = list(_groups(stream.read(end - start)))
            samples.total += len(groups)
            for group in groups:
                notable.add(group)
            keep = max(1, int(len(groups) * share))
            kept += groups if keep >= len(groups) else _telling(groups, keep, turn)
    kept = [*{id(group): group for group in [*kept, *notable.groups()]}.values()]
    kept.sort(key=lambda group: group.step)
    parsed = [rows for group in kept if (rows := group.parsed())]
    while (longest := _longest(parsed, size)) < SHORTEST and len(parsed) > 1:
        parsed = parsed[::2]
    numbers: dict[str, int] = {}
    for rows in parsed:
        _add(samples, rows, numbers, longest)
    return samples


@dataclass
class Group:
    """Lines of samples.jsonl that belong together, and by what they may be notable; larger is more so. Most are never
    parsed as a whole, which would take most of the time.
    """

    step: int
    lines: list[bytes]
    features: dict[str, float]

    def parsed(self) -> list[dict[str, Any]]:
        return [row for line in self.lines if (row := _sample(line)) is not None]


def _longest(groups: Sequence[Sequence[dict[str, Any]]], size: int) -> int:
    """The characters to which all texts have to be cut for `groups` to fit into `size` bytes."""
    texts = [text for group in groups for row in group for text in _texts(row)]
    each = [min(len(text), LONGEST) for text in texts]
    bytes_each = sum(len(text.encode("utf-8", "replace")) for text in texts[:1000]) / max(
        1, sum(map(len, texts[:1000]))
    )
    room, left = size / max(1.0, bytes_each), len(each)
    for length in sorted(each):
        if length * left > room:
            return int(room / left)
        room, left = room - length, left - 1
    return LONGEST


def _texts(row: dict[str, Any]) -> list[str]:
    return [row["chosen"], row["rejected"]] if "chosen" in row else [row["completion"]]


def _steps(file: Path) -> list[tuple[int, int, int]]:
    """(step, first byte, end) of each step's lines, which stand together."""
    found: list[tuple[int, int, int]] = []
    at = 0
    try:
        with file.open("rb") as stream:
            for line in stream:
                start, at = at, at + len(line)
                if (match := STEP.match(line)) is None:
                    continue
                step = int(match[1])
                if found and found[-1][0] == step:
                    found[-1] = (step, found[-1][1], at)
                else:
                    found.append((step, start, at))
    except OSError:
        return []
    return found


def _groups(data: bytes) -> Iterator[Group]:
    """The groups in a step's lines: one prompt's answers that follow each other, or a pair."""
    for _, lines in itertools.groupby(data.splitlines(), key=_prompt):
        group = list(lines)
        match = STEP.match(group[0])
        if match is not None:
            yield Group(int(match[1]), group, _features(group))


def _prompt(line: bytes) -> bytes:
    """What lines of one group have alike: all before the completion. Quotes within a text are escaped in JSON, so that
    this is a key. Pairs have none, and are groups of their own.
    """
    end = line.find(COMPLETION)
    return line if end < 0 else line[:end]


def _features(lines: Sequence[bytes]) -> dict[str, float]:
    if COMPLETION not in lines[0]:
        row = _sample(lines[0])
        if row is None:
            return {}
        margin = _number(row["metrics"].get("rewards/margins")) or 0.0
        return {"best": margin, "worst": -margin, "longest": float(len(row["chosen"]))}
    totals = [total for line in lines if (total := _total(line)) is not None]
    found = {"longest": float(max(int(match[1]) if (match := TOKENS.search(line)) else len(line) for line in lines))}
    if totals:
        found |= {"best": max(totals), "worst": -min(totals), "spread": max(totals) - min(totals)}
        if len(totals) > 1 and max(totals) == min(totals):
            found["ties"] = 1.0
    if failed := sum(ERRORS in line for line in lines):
        found["errors"] = float(failed)
    return found


def _total(line: bytes) -> float | None:
    """The sum of an answer's scores."""
    start = line.find(REWARDS, line.find(COMPLETION)) + len(REWARDS) - 1
    return _sum(line[start : line.find(b"}", start) + 1])


@functools.lru_cache(4096)
def _sum(written: bytes) -> float | None:
    try:
        scores = json.loads(written)
    except ValueError:  # a name with a bracket in it
        return None
    known = [score for score in scores.values() if isinstance(score, int | float)] if isinstance(scores, dict) else []
    return sum(known) if known else None


def _sample(line: bytes) -> dict[str, Any] | None:
    """The object in a line; None if it is damaged, or no sample."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int) or "prompt" not in row:
        return None
    if "chosen" in row:
        valid = isinstance(row.get("metrics"), dict) and isinstance(row["chosen"], str)
        return row if valid and isinstance(row.get("rejected"), str) else None
    return row if isinstance(row.get("completion"), str) and isinstance(row.get("rewards"), dict) else None


def _telling(groups: list[Group], keep: int, turn: int) -> list[Group]:
    """`keep` of a step's groups."""
    kinds = ("errors", ("spread", "longest", "ties")[turn % 3])
    order = sorted(groups, key=lambda group: [-group.features.get(kind, 0.0) for kind in kinds])
    return order[:keep]


class _Notable:
    """The groups of the whole run that have most of something."""

    def __init__(self) -> None:
        self.heaps: dict[str, list[tuple[float, int, Group]]] = {}
        self.number = itertools.count()

    def add(self, group: Group) -> None:
        for kind, value in group.features.items():
            heap = self.heaps.setdefault(kind, [])
            if len(heap) < KEPT:
                heapq.heappush(heap, (value, next(self.number), group))
            elif value > heap[0][0]:
                heapq.heapreplace(heap, (value, next(self.number), group))

    def groups(self) -> Iterator[Group]:
        for heap in self.heaps.values():
            yield from (group for _, _, group in heap)


def _add(samples: Samples, group: list[dict[str, Any]], numbers: dict[str, int], longest: int) -> None:
    first = group[0]
    key = repr(first["prompt"])
    if key not in numbers:
        numbers[key] = len(numbers)
        samples.prompts.append(prompt_turns(first["prompt"]))
    pair = "chosen" in first
    scores = first["metrics"] if pair else first["rewards"]
    if not samples.names:
        samples.kind, samples.names = "pairs" if pair else "answers", [str(name) for name in scores]
    if pair:
        tokens = first.get("tokens") or [None, None]
        metrics = [_number(scores.get(name)) for name in samples.names]
        answers = [
            [cut(first[side], longest), metrics, None, tokens[i], True, None]
            for i, side in enumerate(("chosen", "rejected"))
        ]
    else:
        answers = [_answer(row, samples.names, longest) for row in group]
    samples.groups.append([first["step"], numbers[key], answers])


def _answer(row: dict[str, Any], names: Sequence[str], longest: int) -> list[Any]:
    errors = row.get("errors")
    said = (
        {shown(str(name)): cut(str(text), 300) for name, text in errors.items()} if isinstance(errors, dict) else None
    )
    scores = [_number(row["rewards"].get(name)) for name in names]
    return [
        *(cut(row["completion"], longest), scores, _number(row.get("advantage"))),
        *(row.get("tokens"), row.get("finished", True) is not False, said),
    ]


def prompt_turns(prompt: Any) -> list[list[str]]:
    """[role, text] of each message of a prompt, which may be text."""
    if isinstance(prompt, str):
        return [["", cut(prompt, LONGEST)]]
    turns = prompt if isinstance(prompt, list) else []
    return [
        [shown(str(turn.get("role", ""))), cut(str(turn.get("content") or ""), LONGEST)]
        for turn in turns
        if isinstance(turn, dict)
    ]


def cut(text: str, longest: int) -> str:
    """`text` with its control characters shown, and without its middle where it is longer than `longest`."""
    if len(text) > longest:
        head = longest * 2 // 3
        text = text[:head] + CUT + text[len(text) - (longest - head) :]
    return shown(text)


def _number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(f"{value:.4g}") if known else None
