"""Which pair a labeller sees next, and what they said: shared by the terminal and the page of `rlhf preferences label`.

The file of labels is the only memory. Every process reads what others have added before it chooses a row, so a
labeller who comes back, after a kill as well, goes on where they were, and two servers can share one file.
"""

from __future__ import annotations

import os
import random
import re
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_core import Catalog, Messages, UserError
from rlhf_core.commands import (
    Label,
    Labels,
    append_label,
    by_pair,
    labels_in,
    now,
    pair_id,
    path_of,
    read_labels,
    read_pairs,
    text_of,
)

PAUSE = 300.0  # seconds: nobody reads two answers for longer, and what is above is a pause
RECENT = 30  # labels by whose times what is left is estimated
AWAY = 900.0  # seconds after which a row that was shown and not labelled is given to others
THOUGHT = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.DOTALL)
ANSWERS = ("a", "b", "tie", "skip")


@dataclass(frozen=True)
class Row:
    """A pair to label. `a` is the chosen answer, where the file says which is."""

    id: str
    location: str
    prompt: Messages
    a: Messages
    b: Messages
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A row as one labeller sees it: which answer is on the left, what they said before, and since when it is shown."""

    row: Row
    first: str
    said: str | None
    since: float

    @property
    def sides(self) -> tuple[Messages, Messages]:
        return (self.row.a, self.row.b) if self.first == "a" else (self.row.b, self.row.a)

    def better(self, key: str) -> str:
        """What `1` (the one on the left), `2`, `tie` or `skip` means."""
        other = "b" if self.first == "a" else "a"
        return {"1": self.first, "2": other}.get(key, key)

    @property
    def said_key(self) -> str | None:
        """What was said before, as a key."""
        return {"a": "1" if self.first == "a" else "2", "b": "2" if self.first == "a" else "1"}.get(
            self.said or "", self.said
        )


def read_rows(source: str, catalog: Catalog, max_bad_rows: float, progress: Any) -> tuple[dict[str, Row], list[str]]:
    """({id: row}, what to tell) of a file of pairs in any format, or of labels."""
    path = path_of(source, "FILE")
    if labels_in(path):
        labels = read_labels(path)
        if not labels.labels:
            raise UserError(f"{source}: there is no label in it")
        firsts = [same[0] for same in by_pair(labels.labels).values()]
        return {one.id: Row(one.id, one.location, one.prompt, one.a, one.b) for one in firsts}, labels.warnings()
    found = read_pairs(source, catalog, max_bad_rows, progress)
    rows: dict[str, Row] = {}
    for pair in found.rows:
        name = pair_id(pair.prompt, pair.chosen, pair.rejected)
        rows.setdefault(name, Row(name, pair.location, pair.prompt, pair.chosen, pair.rejected, dict(pair.columns)))
    alike = len(found.rows) - len(rows)
    told = [f"{alike:,} rows have the prompt and both answers of another row, and are labelled once"] if alike else []
    return rows, [*found.warnings, *told]


class Work:
    """The rows, and what everybody said of them. Safe for several threads and processes."""

    def __init__(self, rows: dict[str, Row], path: Path, seed: int, labels_per_row: int | None = None) -> None:
        self.rows, self.path, self.seed, self.labels_per_row = rows, path, seed, labels_per_row
        self.said: dict[tuple[str, str], Label] = {}  # (id, labeller), in the order in which they were last said
        self.counts: dict[str, int] = {}  # labels of a row that say something
        self.paused = self.elsewhere = 0  # labels whose time was cut; labels of pairs that are not in this file
        self.passed_over: list[tuple[str, str]] = []  # (location, why)
        self.added: dict[str, int] = {}  # labels of each labeller that this process wrote
        self._read = 0  # bytes of the file
        self._shown: dict[str, Task] = {}
        self._back: dict[str, int] = {}
        self._orders: dict[str, list[str]] = {}
        self._lock = threading.RLock()
        self.refresh()

    def refresh(self) -> None:
        """Read what was added to the file, by this process or by others."""
        with self._lock:
            size = os.stat(self.path).st_size if self.path.exists() else 0
            if size < self._read:  # another file is there
                self.said.clear()
                self.counts.clear()
                self._read = self.elsewhere = 0
            if size == self._read:
                return
            labels = read_labels(self.path, self._read, growing=True)
            self._read = labels.end
            self.passed_over += labels.others
            for label in labels.labels:
                self._add(label)

    def _add(self, label: Label) -> None:
        key = label.id, label.labeller
        self.elsewhere += label.id not in self.rows and key not in self.said
        before = self.said.pop(key, None)
        self.said[key] = label
        change = (label.better != "skip") - (before is not None and before.better != "skip")
        self.counts[label.id] = self.counts.get(label.id, 0) + change

    def next(self, labeller: str) -> Task | None:
        """The row to label next; None when there is none left."""
        with self._lock:
            self.refresh()
            self._back.pop(labeller, None)
            if labeller not in self._orders:
                self._orders[labeller] = sorted(self.rows)
                random.Random(f"{self.seed} {labeller}").shuffle(self._orders[labeller])
            name = next((name for name in self._orders[labeller] if self._open(name, labeller)), None)
            if name is None:
                self._shown.pop(labeller, None)
                return None
            return self._show(name, labeller)

    def _open(self, name: str, labeller: str) -> bool:
        """Whether a row is to be labelled by this labeller."""
        if (name, labeller) in self.said:
            return False
        if self.labels_per_row is None:
            return True
        soon = time.monotonic() - AWAY
        reading = sum(
            task.row.id == name and task.since > soon and other != labeller and (name, other) not in self.said
            for other, task in self._shown.items()
        )
        return self.counts.get(name, 0) + reading < self.labels_per_row

    def _show(self, name: str, labeller: str) -> Task:
        before = self.said.get((name, labeller))
        first = random.Random(f"{self.seed} {labeller} {name}").choice("ab")
        shown = self._shown.get(labeller)
        since = shown.since if shown is not None and shown.row.id == name else time.monotonic()
        self._shown[labeller] = Task(self.rows[name], first, None if before is None else self._as_here(before), since)
        return self._shown[labeller]

    def _as_here(self, label: Label) -> str:
        """What a label says, in the sides of this file's row: another process may have had them the other way."""
        row = self.rows[label.id]
        return label.better if label.a == row.a or label.better not in "ab" else "ab".replace(label.better, "")

    def back(self, labeller: str) -> Task | None:
        """The row that they labelled before the one that is shown; None at the first one."""
        with self._lock:
            mine = [name for name, who in self.said if who == labeller and name in self.rows]
            at = self._back.get(labeller, len(mine)) - 1
            if at < 0:
                return None
            self._back[labeller] = at
            return self._show(mine[at], labeller)

    def answer(self, labeller: str, name: str, better: str, shown_first: str) -> Label:
        """Write what a labeller says of a row. Raises `KeyError` for a row that is not here, and `OSError`."""
        with self._lock:
            row, task = self.rows[name], self._shown.get(labeller)
            seconds = None
            if task is not None and task.row.id == name:
                took = time.monotonic() - task.since
                self.paused += took > PAUSE
                seconds = round(min(took, PAUSE), 1)
            label = Label(name, row.prompt, row.a, row.b, better, labeller, seconds, shown_first, now())
            append_label(self.path, label)
            self.added[labeller] = self.added.get(labeller, 0) + 1
            self.refresh()
            return label

    def done(self, labeller: str) -> int:
        return sum(who == labeller and name in self.rows for name, who in self.said)

    def progress(self, labeller: str) -> dict[str, Any]:
        """`done` and `total` rows of a labeller, and the `seconds` that the rest will take, once that can be told."""
        with self._lock:
            done = self.done(labeller)
            left = (
                sum(self._open(name, labeller) for name in self.rows) if self.labels_per_row else len(self.rows) - done
            )
            mine = [label.seconds for (_, who), label in self.said.items() if who == labeller and label.seconds]
            pace = statistics.median(mine[-RECENT:]) if len(mine) > 2 else None
            return {"done": done, "total": done + left, "seconds": None if pace is None else pace * left}

    def warnings(self) -> list[str]:
        """What the file holds beside labels."""
        return Labels(self.path, others=self.passed_over).warnings()

    def here(self) -> list[Label]:
        """The labels that count, of this file's rows."""
        with self._lock:
            self.refresh()
            return [label for (name, _), label in self.said.items() if name in self.rows]


def thoughts_apart(turns: Messages) -> list[tuple[bool, str]]:
    """(whether it is a thought, text) of the parts of an answer. A thought may have been begun by the prompt."""
    text = text_of(turns)
    if "think>" not in text:
        return [(False, text.strip())] if text.strip() else []
    if "</think>" in text and "<think>" not in text.partition("</think>")[0]:
        text = "<think>" + text
    parts, at = [], 0
    for found in THOUGHT.finditer(text):
        parts += [(False, text[at : found.start()].strip()), (True, found[1].strip())]
        at = found.end()
    return [part for part in [*parts, (False, text[at:].strip())] if part[1]]


def conversation(prompt: Messages) -> list[tuple[str, str]]:
    """(role, text) of each turn before the answers."""
    return [(turn["role"], text_of([turn])) for turn in prompt]


def names(labels: Sequence[Label]) -> list[str]:
    return sorted({label.labeller for label in labels})
