"""samples.jsonl as groups for the page: all of them, or as many as have room, with some of every step.

Where there are more answers than a page can hold, each step keeps those groups that tell most (a failed reward, the
largest spread, the longest answer, by turns), and what is best, worst, longest, tied or failed in the whole run stays;
where that is still too much, the middle of long answers goes.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_core.report.groups import TEXTS, Group, Weights, groups_of, rounded, steps_of, without_middle
from rlhf_core.report.metrics import finite
from rlhf_core.ui.text import shown

BYTES = 4_000_000  # of samples.jsonl that are kept for a page
STEPS = 2000  # that are read, at most
PROMPTS = 0.3  # the prompts' share of these
LONGEST = 20_000  # characters of a text
SHORTEST = 160  # to which long answers are cut before steps are left out
KEPT = 12  # of the whole run, of each kind


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


def read_samples(file: Path, size: int = BYTES, weights: Weights = ()) -> Samples:
    """The groups of a run, those that fit into `size` bytes. `weights` are those of the rewards."""
    steps = steps_of(file)
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
            groups = list(groups_of(stream.read(end - start), weights))
            samples.total += len(groups)
            for group in groups:
                notable.add(group)
            keep = max(1, int(len(groups) * share))
            chosen = groups if keep >= len(groups) else _telling(groups, keep, turn)
            answers = sum(group.answers for group in chosen)
            for group in chosen:
                group.shrink(max(2 * SHORTEST, 4 * size // (len(read) * answers)))
            kept += chosen
    kept = [*{id(group): group for group in [*kept, *notable.groups()]}.values()]
    kept.sort(key=lambda group: group.step)
    for group in kept:
        group.shrink(LONGEST)
    parsed = [group.rows for group in kept if group.rows]
    for_prompts = int(size * PROMPTS)
    while True:
        longest = fitting([text for rows in parsed for row in rows for text in _texts(row)], size - for_prompts)
        prompts = {repr(rows[0]["prompt"]): rows[0]["prompt"] for rows in parsed}
        of_prompt = fitting([text for prompt in prompts.values() for _, text in _turns(prompt)], for_prompts)
        if min(longest, of_prompt) >= SHORTEST or len(parsed) < 2:
            break
        parsed = parsed[::2]
    numbers = {key: number for number, key in enumerate(prompts)}
    samples.prompts = [prompt_turns(prompt, of_prompt) for prompt in prompts.values()]
    for rows in parsed:
        _add(samples, rows, numbers, longest)
    return samples


def fitting(texts: Sequence[str], size: int) -> int:
    """The characters to which `texts` have to be cut to fit into `size` bytes."""
    each = [min(len(text), LONGEST) for text in texts]
    some = texts[:1000]
    bytes_each = sum(len(text.encode("utf-8", "replace")) for text in some) / max(1, sum(map(len, some)))
    room, left = size / max(1.0, bytes_each), len(each)
    for length in sorted(each):
        if length * left > room:
            return int(room / left)
        room, left = room - length, left - 1
    return LONGEST


def _texts(row: dict[str, Any]) -> list[str]:
    return [row[name] for name in TEXTS if name in row]


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
    pair = "chosen" in first
    scores = first["metrics"] if pair else first["rewards"]
    if not samples.names:
        samples.kind, samples.names = "pairs" if pair else "answers", [str(name) for name in scores]
    if pair:
        tokens = first.get("tokens")
        tokens = tokens if isinstance(tokens, list) and len(tokens) == 2 else [None, None]
        metrics = [rounded(scores.get(name)) for name in samples.names]
        answers = [
            [cut(first[side], longest), metrics, None, finite(tokens[i]), True, None]
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
    scores = [rounded(row["rewards"].get(name)) for name in names]
    return [
        *(cut(row["completion"], longest), scores, rounded(row.get("advantage"))),
        *(finite(row.get("tokens")), row.get("finished", True) is not False, said),
    ]


def _turns(prompt: Any) -> list[tuple[str, str]]:
    """(role, text) of each message of a prompt, which may be text."""
    if isinstance(prompt, str):
        return [("", prompt)]
    turns = prompt if isinstance(prompt, list) else []
    return [(str(turn.get("role", "")), str(turn.get("content") or "")) for turn in turns if isinstance(turn, dict)]


def prompt_turns(prompt: Any, longest: int = LONGEST) -> list[list[str]]:
    """[role, text] of each message, as they are shown."""
    return [[shown(role), cut(text, longest)] for role, text in _turns(prompt)]


def cut(text: str, longest: int) -> str:
    """`text` with its control characters shown, and without its middle where it is longer than `longest`."""
    return shown(without_middle(text, longest))
