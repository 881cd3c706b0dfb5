"""`rlhf preferences audit`: what is doubtful in a file of pairs and in its labels, with results for JSON."""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_core import Messages
from rlhf_core.commands import Label, agreement, by_pair, current_labels, of_people, own_order, pair_id, text_of, votes
from rlhf_tools.preferences.contradictions import contradictions
from rlhf_tools.preferences.labelling import thoughts_apart
from rlhf_tools.preferences.likeness import likeness

FASTEST = 100.0  # characters a second: several times what the quickest readers read
AT_LEAST = 1.0  # seconds for any pair
ENOUGH = 20.0  # seconds after which a verdict on an answer of any length may be one
SIDES = {1: "chosen", 0: "tie", -1: "rejected"}
EXAMPLES = 5  # locations of each kind that are named
# What a row is looked at for, with its weight; those that weigh most together come first.
WEIGHTS = {
    "people prefer the rejected answer": 5.0,
    "both answers are the same": 4.0,
    "another row says the opposite": 4.0,
    "the judge prefers the rejected answer": 3.0,
    "part of a cycle": 3.0,
    "labellers disagree": 3.0,
    "people call it a tie": 1.5,
    "both answers are nearly the same": 1.5,
    "labelled faster than it can be read": 1.0,
    "a copy of another row": 1.0,
}


@dataclass(frozen=True)
class Said:
    """What a row says: the chosen answer is better than the rejected one, if it is `decided`. It is not for labels
    without a majority.
    """

    location: str
    prompt: Messages
    chosen: Messages
    rejected: Messages
    columns: Mapping[str, Any] = field(default_factory=dict)
    decided: bool = True

    @functools.cached_property
    def order(self) -> int:
        """1 if the chosen answer is first in the pair's own order, else -1: a side that is not always the same."""
        return own_order(self.chosen, self.rejected)


@dataclass
class Doubts:
    """The reasons to look at each row, by its number."""

    reasons: dict[int, dict[str, str]] = field(default_factory=dict)

    def add(self, number: int, reason: str, more: str = "") -> None:
        self.reasons.setdefault(number, {})[reason] = more

    def ranked(self) -> list[tuple[float, int]]:
        """(weight, number), the heaviest first."""
        found = [(sum(WEIGHTS[reason] for reason in why), number) for number, why in self.reasons.items()]
        return sorted(found, key=lambda one: (-one[0], one[1]))


def audited(
    rows: Sequence[Said],
    labels: Sequence[Label],
    others: Sequence[int | None] | None = None,
    *,
    of_labels: bool = False,
) -> tuple[dict[str, Any], Doubts]:
    """(what is found, the rows to look at). `others`: a judge's verdict on each row, 1 for the chosen answer.
    `of_labels`: rows say what the labels say, so there is nothing to compare them with.
    """
    doubts = Doubts()
    lengths = [(len(text_of(row.chosen)), len(text_of(row.rejected))) for row in rows]
    found: dict[str, Any] = {"rows": len(rows), "prompts": len({key(row.prompt) for row in rows})}
    found |= _of_answers(rows, doubts) | _of_each_other(rows, doubts)
    found["chosen_longer"] = agreement.length_bias([1 if row.decided else None for row in rows], lengths)
    found["people"] = _of_people(rows, labels, lengths, doubts) if labels else None
    if of_labels and found["people"]:
        found["people"] |= {"file": None, "by_margin": []}
    for number, verdict in enumerate(others or ()):
        if verdict == -1 and rows[number].decided:
            doubts.add(number, "the judge prefers the rejected answer")
    return found, doubts


def key(turns: Messages) -> Hashable:
    """What is equal for equal turns."""
    if len(turns) == 1 and turns[0].keys() == {"role", "content"}:
        return turns[0]["content"]
    return json.dumps(turns, sort_keys=True, default=str)


def _of_answers(rows: Sequence[Said], doubts: Doubts) -> dict[str, Any]:
    """Pairs whose answers are alike."""
    alike: dict[str, list[int]] = {"same": [], "nearly": []}
    names = {"same": "both answers are the same", "nearly": "both answers are nearly the same"}
    for number, row in enumerate(rows):
        kind = likeness(text_of(row.chosen), text_of(row.rejected))
        if kind is not None:
            alike[kind].append(number)
            doubts.add(number, names[kind])
    return {f"{kind}_answers": counted(rows, numbers) for kind, numbers in alike.items()}


def _of_each_other(rows: Sequence[Said], doubts: Doubts) -> dict[str, Any]:
    """Rows that contradict, or repeat, each other."""
    decided = [number for number, row in enumerate(rows) if row.decided]
    edges = [(key(rows[number].chosen), key(rows[number].rejected)) for number in decided]
    found = contradictions([key(rows[number].prompt) for number in decided], edges).numbered(decided)
    for name, groups in (("another row says the opposite", found.opposite), ("part of a cycle", found.cycles)):
        for numbers in groups:
            for number in numbers:
                other = next((i for i in numbers if i != number and rows[i].chosen != rows[number].chosen), numbers[0])
                doubts.add(number, name, rows[other].location)
    for first, *copies in found.duplicates:
        for number in copies:
            doubts.add(number, "a copy of another row", rows[first].location)
    return {
        "opposite": grouped(rows, found.opposite),
        "cycles": grouped(rows, found.cycles),
        "duplicates": counted(rows, [number for _, *copies in found.duplicates for number in copies]),
        "chosen_here_rejected_there": found.mixed,
    }


def counted(rows: Sequence[Said], numbers: Sequence[int]) -> dict[str, Any]:
    return {"rows": len(numbers), "first": [rows[number].location for number in numbers[:EXAMPLES]]}


def grouped(rows: Sequence[Said], groups: Sequence[Sequence[int]]) -> dict[str, Any]:
    first = [[rows[number].location for number in numbers[:EXAMPLES]] for numbers in groups[:EXAMPLES]]
    return {"groups": len(groups), "rows": sum(map(len, groups)), "first": first}


def _of_people(
    rows: Sequence[Said], labels: Sequence[Label], lengths: Sequence[tuple[int, int]], doubts: Doubts
) -> dict[str, Any]:
    """The file beside what people said of its pairs."""
    current = current_labels(labels)
    said = by_pair(current)
    verdicts: list[int | None] = []
    theirs: list[Label] = []
    seen: set[str] = set()
    prompts, labelled = [key(row.prompt) for row in rows], {key(label.prompt) for label in current}
    for number, row in enumerate(rows):
        name = pair_id(row.prompt, row.chosen, row.rejected) if prompts[number] in labelled else ""
        own = said.get(name, [])
        if not own:
            verdicts.append(None)
            continue
        found = [verdict * row.order for verdict in votes(own)]
        verdicts.append(agreement.majority(found))
        _doubt_labels(number, found, own, doubts)
        if name not in seen:
            theirs += own
            seen.add(name)
    sides = [0 if verdict is None else row.order for row, verdict in zip(rows, verdicts, strict=True)]
    return {
        **of_people(theirs),
        "labels_of_other_pairs": len(current) - len(theirs),
        "labelled": len(seen),
        "file": agreement.agreement(_turned(verdicts, sides), sides, prompts),
        "longer_wins": agreement.length_bias(verdicts, lengths),
        "file_longer_wins": agreement.length_bias([1 if v else None for v in verdicts], lengths),
        "by_margin": _by_margin(rows, verdicts),
        "each": [_of_labeller(name, theirs, said) for name in sorted({label.labeller for label in theirs})],
    }


def _turned(verdicts: Sequence[int | None], sides: Sequence[int]) -> list[int | None]:
    return [None if verdict is None else verdict * side for verdict, side in zip(verdicts, sides, strict=True)]


def _doubt_labels(number: int, found: Sequence[int], own: Sequence[Label], doubts: Doubts) -> None:
    """What labels of a row make doubtful; `found` are the verdicts on the chosen answer."""
    verdict = agreement.majority(found)
    counts = "/".join(f"{found.count(value)} {name}" for value, name in SIDES.items() if value in found)
    if verdict == -1:
        doubts.add(number, "people prefer the rejected answer", counts if len(found) > 1 else own[0].labeller)
    elif verdict == 0:
        doubts.add(number, "people call it a tie")
    if len(set(found)) > 1:
        doubts.add(number, "labellers disagree", counts)
    if quick := [label for label in own if too_fast(label)]:
        doubts.add(number, "labelled faster than it can be read", f"{quick[0].labeller} {quick[0].seconds:.1f} s")


def too_fast(label: Label) -> bool:
    """Whether a pair can't have been read in this time. Thoughts are folded, and a skip needs no reading."""
    if label.seconds is None or label.better == "skip":
        return False
    read = sum(len(text) for turns in (label.a, label.b) for thought, text in thoughts_apart(turns) if not thought)
    return label.seconds < min(ENOUGH, max(AT_LEAST, read / FASTEST))


def _by_margin(rows: Sequence[Said], verdicts: Sequence[int | None]) -> list[dict[str, Any]]:
    """How often people agree with the file, in the lower and the upper half of its margins; [] without any."""
    known = []
    for row, verdict in zip(rows, verdicts, strict=True):
        margin = next((row.columns[name] for name in ("score_margin", "margin") if name in row.columns), None)
        if verdict and isinstance(margin, int | float) and not isinstance(margin, bool):
            known.append((float(margin), verdict))
    known.sort()
    if len(known) < 10 or known[0][0] == known[-1][0]:
        return []
    halves = known[: len(known) // 2], known[len(known) // 2 :]
    return [
        {"from": half[0][0], "to": half[-1][0], **agreement.share(sum(v == 1 for _, v in half), len(half))}
        for half in halves
    ]


def _of_labeller(name: str, labels: Sequence[Label], said: Mapping[str, Sequence[Label]]) -> dict[str, Any]:
    """One labeller beside the others."""
    own = [label for label in labels if label.labeller == name]
    times = [label.seconds for label in own if label.seconds is not None]
    both = list(_with_others(own, said))
    decided = [label for label in own if label.verdict is not None]
    return {
        "labeller": name,
        "labels": len(own),
        "ties": sum(label.better == "tie" for label in own),
        "skipped": len(own) - len(decided),
        "median_seconds": statistics.median(times) if times else None,
        "too_fast": sum(map(too_fast, own)),
        "agrees_with_others": agreement.share(sum(a == b for a, b in both), len(both)),
        "kappa_with_others": agreement.cohen_kappa([a for a, _ in both], [b for _, b in both]),
        "first_shown_wins": agreement.first_shown_bias([x.verdict for x in decided], [x.first_shown for x in decided]),
    }


def _with_others(own: Sequence[Label], said: Mapping[str, Sequence[Label]]) -> Iterator[tuple[int, int]]:
    """(the labeller's verdict, another one's) of the same pairs."""
    for label in own:
        for other in said[label.id]:
            if other.labeller != label.labeller and label.verdict is not None and other.verdict is not None:
                yield label.verdict, other.verdict
