"""Labels of people: which of two answers is better. A file of JSON lines that only grows, one label a line.

{"id", "question", "response_a", "response_b", "better": "a"|"b"|"tie"|"skip", "labeller", "seconds",
 "shown_first": "a"|"b", "time"}

A prompt of more than a user's turn is in `prompt`, as messages, in the place of `question`. Several processes may
write to one file: each line is appended under a lock, flushed and on disk before the next row is shown. Where a
labeller has labelled a row twice, the later label counts. What is no label, such as half a line that a killed process
left, is passed over and told. A label of ours can be read as a pair by the formatter `compared`.
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import functools
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_core.data.pairs import is_turns, question_of, reply, turns_of
from rlhf_core.errors import UserError
from rlhf_core.formatter import Messages
from rlhf_core.inputs import is_text, open_file
from rlhf_core.outputs import LONGEST_LINE, object_in

BETTER = {"a": 1, "b": -1, "tie": 0, "skip": None}
SUFFIX = ".labels.jsonl"


def pair_id(prompt: Messages, one: Messages, other: Messages) -> str:
    """Of a prompt and two answers, whichever comes first."""
    parts = [_text(prompt), *sorted((_text(one), _text(other)))]
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def own_order(one: Messages, other: Messages) -> int:
    """1 if two answers are in an order that depends on them alone, -1 if they are in the other one."""
    texts = _text(one), _text(other)
    keys = [(zlib.crc32(text.encode("utf-8", "surrogatepass")), text) for text in texts]
    return 1 if keys[0] <= keys[1] else -1


def _text(turns: Messages) -> str:
    """Different for different turns."""
    if len(turns) == 1 and turns[0].keys() == {"role", "content"}:
        return f"{turns[0]['role']} {turns[0]['content']}"
    return json.dumps(turns, ensure_ascii=False, sort_keys=True, default=str)


@dataclass(frozen=True)
class Label:
    """What one labeller said of one pair. `seconds`: None where it is not known."""

    id: str
    prompt: Messages
    a: Messages
    b: Messages
    better: str
    labeller: str
    seconds: float | None
    shown_first: str
    time: str = ""
    location: str = ""

    @functools.cached_property
    def order(self) -> int:
        return own_order(self.a, self.b)

    @property
    def verdict(self) -> int | None:
        """1, -1 or 0 for a tie, from the side of the answer that is first in the pair's own order; None if skipped."""
        better = BETTER[self.better]
        return None if better is None else better * self.order

    @property
    def first_shown(self) -> int:
        """1 if the answer that is first in the pair's own order was shown first, else -1."""
        return self.order if self.shown_first == "a" else -self.order

    def line(self) -> dict[str, Any]:
        asked = question_of(self.prompt)
        return {
            "id": self.id,
            **({"prompt": self.prompt} if "history" in asked else asked),
            "response_a": reply(self.a),
            "response_b": reply(self.b),
            "better": self.better,
            "labeller": self.labeller,
            "seconds": self.seconds,
            "shown_first": self.shown_first,
            "time": self.time,
        }


@dataclass
class Labels:
    """What a file holds: labels in their order, and (location, why) of each line that is none. `end`: the bytes of the
    lines that were read.
    """

    path: Path
    end: int = 0
    labels: list[Label] = field(default_factory=list)
    others: list[tuple[str, str]] = field(default_factory=list)

    def warnings(self) -> list[str]:
        if not self.others:
            return []
        (where, why), count = self.others[0], len(self.others)
        return [f"{self.path}: {count:,} line{'s' * (count > 1)} passed over, which hold no label: {where}, {why}"]


def is_label(values: Mapping[str, Any]) -> bool:
    """Whether a row looks like one of a file of labels."""
    return {"response_a", "response_b", "better", "labeller"} <= values.keys()


def labels_in(path: Path) -> bool:
    """Whether a file of JSON lines holds labels, by its first object."""
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    with open_file(path, "labels") as stream:
        for _ in range(20):
            line = stream.readline(LONGEST_LINE)
            if not line:
                return path.name.endswith(SUFFIX)
            if (values := object_in(line)) is not None:
                return is_label(values)
    return False


def read_labels(path: Path, start: int = 0, *, growing: bool = False) -> Labels:
    """All labels of a file, or those from the byte `start` on; none of one that is not there. `growing`: what is after
    the last line end is being written. Raises `UserError` for a file that can't be read.
    """
    found = Labels(path, start)
    if not os.path.lexists(path):
        return found
    with open_file(path, "labels") as stream:
        stream.seek(start)
        for number, line in enumerate(iter(lambda: stream.readline(LONGEST_LINE), b""), start=1):
            if growing and not line.endswith(b"\n"):
                break
            found.end += len(line)
            if line.strip():
                _add(found, line, f"{path.name} {f'after byte {start}, ' if start else ''}line {number}")
    return found


def _add(found: Labels, line: bytes, location: str) -> None:
    values = object_in(line)
    label: Label | str = "not one JSON object"
    if values is not None:
        halves = b"\\ud" in line.lower() and not is_text(values)  # only escapes can be half of a character
        label = "it has half of a character, a lone surrogate" if halves else parse_label(values, location)
    if isinstance(label, Label):
        found.labels.append(label)
    else:
        found.others.append((location, label))


def parse_label(values: Mapping[str, Any], location: str = "") -> Label | str:
    """The label in a line, or why it is none."""
    prompt = _prompt(values)
    one, other = turns_of(values.get("response_a")), turns_of(values.get("response_b"))
    better, labeller = values.get("better"), values.get("labeller")
    if prompt is None:
        return "it has no question"
    if one is None or other is None:
        return "it has no response_a and response_b"
    if not isinstance(better, str) or better not in BETTER:
        return f"better is {better!r:.40}, not one of {', '.join(BETTER)}"
    if not isinstance(labeller, str) or not labeller.strip():
        return "it has no labeller"
    shown = values.get("shown_first")
    return Label(
        pair_id(prompt, one, other), prompt, one, other, better, labeller, number(values.get("seconds")),
        shown if shown in ("a", "b") else "a", str(values.get("time", "")), location,
    )  # fmt: skip


def number(value: Any) -> float | None:
    """A number that is one, from 0 on."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) and value >= 0 else None


def _prompt(values: Mapping[str, Any]) -> Messages | None:
    question, system, given = values.get("question"), values.get("system"), values.get("prompt")
    if isinstance(given, str):
        question = given
    elif is_turns(given):
        return given
    if not isinstance(question, str) or not question.strip():
        return None
    before = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    return [*before, {"role": "user", "content": question}]


def now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def append_label(path: Path, label: Label) -> None:
    """Write a label, on disk when this returns. Raises `OSError`."""
    line = json.dumps(label.line(), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":  # half a line, of a process that was killed
            line = b"\n" + line
        written = os.write(descriptor, line)
        if written < len(line):  # the disk is full
            os.ftruncate(descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(path: Path, flag: str) -> None:
    """Raise `UserError` if labels can't be added to a file, before anybody has labelled anything."""
    if os.path.lexists(path) and not path.is_file():
        raise UserError(f"{flag} {path} is no file")
    place = path if path.is_file() else path.parent
    if not place.exists():
        raise UserError(f"{flag} {path}: there is no folder {path.parent}")
    if not os.access(place, os.W_OK):
        raise UserError(f"{flag} {path} can't be written: permission denied. Name another file: --labels FILE")


def current(labels: Iterable[Label]) -> list[Label]:
    """The labels that count, of each labeller the latest of a pair, in the order of their first ones."""
    return list({(label.id, label.labeller): label for label in labels}.values())


def by_pair(labels: Iterable[Label]) -> dict[str, list[Label]]:
    """{id: its labels}, in the order of their first labels."""
    found: dict[str, list[Label]] = {}
    for label in labels:
        found.setdefault(label.id, []).append(label)
    return found


def votes(labels: Iterable[Label]) -> Iterator[int]:
    """The verdicts of labels that are not skipped, in the pair's own order."""
    return (verdict for label in labels if (verdict := label.verdict) is not None)
