"""What people said of answers, for `rlhf score --against`: labels of ours, pairs of any format (the chosen answer is
the better one), or answers with a score each.

The two answers of a pair stand in an order of their own, so that `1` is not always the chosen one (`agreement`).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rlhf_core.catalog import Catalog
from rlhf_core.data import sources
from rlhf_core.data.files import Row
from rlhf_core.data.labels import Label, by_pair, current, is_label, own_order, read_labels, votes
from rlhf_core.data.left_out import LeftOut
from rlhf_core.data.llama_factory import resolved
from rlhf_core.data.pairs import pairs_of
from rlhf_core.errors import UserError
from rlhf_core.formatter import Messages
from rlhf_core.grammar import DataSpec
from rlhf_core.inputs import path_of
from rlhf_core.numbers import MAX_BAD_ROWS
from rlhf_core.reward_report import agreement
from rlhf_core.reward_report.answers import Answer, Answers, answers_of

SCORE = "score"  # the column of a person's score


@dataclass(frozen=True)
class Judged:
    """Two answers to a prompt, in their own order, and what people said: 1, -1, or 0 for a tie."""

    location: str
    prompt: Messages
    first: Messages
    second: Messages
    verdict: int
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Human:
    """Either `pairs`, or `scores` of `answers` by people (None where a row has none). `about` is what people say of
    themselves: labellers, their agreement, which side was shown first.
    """

    source: str
    kind: str
    answers: Answers
    pairs: list[Judged] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def first(self, limit: int | None) -> Human:
        """The first pairs, or answers with a score."""
        if limit is None or limit >= len(self.pairs or self.scores):
            return self
        pairs, scores = self.pairs[:limit], self.scores[:limit]
        answers = replace(self.answers, rows=self.answers.rows[: limit * (2 if pairs else 1)])
        return replace(self, pairs=pairs, scores=scores, answers=answers)


def read_human(source: str, catalog: Catalog, max_bad_rows: float = MAX_BAD_ROWS) -> Human:
    """Raises `UserError` where nothing can be compared."""
    spec, described = resolved(DataSpec.read(source))
    left_out = LeftOut(spec.source, max_bad_rows)
    rows, warnings = sources.read(spec, "train", left_out.add)
    if not rows:
        left_out.check(left_out.rows())
        raise UserError(f"--against {source}: there is no row in it")
    path = path_of(spec.source, "--against")
    if path.suffix == ".jsonl" and path.is_file() and any(is_label(row.values) for row in rows[:20]):
        labels = read_labels(path)
        return of_labels(source, labels.labels, labels.warnings())
    if any(_has_score(row, spec) for row in rows):
        return _of_scores(spec, rows, described + warnings, catalog, left_out)
    try:
        found = pairs_of(spec, rows, described + warnings, catalog, left_out)
    except UserError as error:
        ways = "labels of rlhf preferences label, pairs of a chosen and a rejected answer, or answers with a score"
        raise UserError(f"--against {source}: nothing to compare with: {ways} (FILE:score=COLUMN). {error}") from error
    pairs = []
    for pair in found.rows:
        order = own_order(pair.chosen, pair.rejected)
        first, second = (pair.chosen, pair.rejected)[::order]
        pairs.append(Judged(pair.location, pair.prompt, first, second, order, pair.columns))
    return _of_pairs(source, found.format, pairs, {}, found.warnings)


def of_labels(source: str, labels: list[Label], warnings: list[str]) -> Human:
    """One verdict for each pair: that of more than half of those who did not skip it."""
    counting = current(labels)
    pairs, undecided, skipped = [], 0, 0
    for same in by_pair(counting).values():
        said = list(votes(same))
        verdict = agreement.majority(said)
        skipped += not said
        undecided += verdict is None and bool(said)
        if verdict is not None:
            label = same[0]
            first, second = (label.a, label.b)[:: label.order]
            pairs.append(Judged(label.location, label.prompt, first, second, verdict))
    if not pairs:
        raise UserError(f"--against {source}: none of its pairs has a verdict of more than half of its labellers")
    return _of_pairs(
        source, "labels", pairs, {**of_people(counting), "no_majority": undecided, "skipped": skipped}, warnings
    )


def of_people(labels: list[Label]) -> dict[str, Any]:
    """Who labelled, how far they agree, and whether they prefer the side that they see first; of labels that count."""
    pairs = by_pair(labels)
    units = [list(votes(same)) for same in pairs.values()]
    several = [unit for unit in units if len(unit) > 1]
    said = [label for label in labels if label.verdict is not None]
    return {
        "labellers": sorted({label.labeller for label in labels}),
        "labels": len(labels),
        "labelled_by_several": len(several),
        "krippendorff_alpha": agreement.krippendorff_alpha(several),
        "alpha_without_ties": agreement.krippendorff_alpha([[v for v in unit if v] for unit in several]),
        "all_agree": agreement.share(sum(len(set(unit)) == 1 for unit in several), len(several)),
        "first_shown_wins": agreement.first_shown_bias([x.verdict for x in said], [x.first_shown for x in said]),
    }


def _of_pairs(source: str, kind: str, pairs: list[Judged], about: dict[str, Any], warnings: list[str]) -> Human:
    answers = [
        Answer(pair.location, pair.prompt, turns, pair.columns, f"{number}")
        for number, pair in enumerate(pairs)
        for turns in (pair.first, pair.second)
    ]
    return Human(source, kind, Answers(source, kind, answers, []), pairs, [], about, warnings)


def _has_score(row: Row, spec: DataSpec) -> bool:
    """Whether the row is an answer with a score, and not one of several with a score each."""
    return _number(row.values.get(spec.columns.get(SCORE, SCORE))) is not None


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) else None


def _of_scores(spec: DataSpec, rows: list[Row], warnings: list[str], catalog: Catalog, left_out: LeftOut) -> Human:
    column = spec.columns.get(SCORE, SCORE)
    others = {key: name for key, name in spec.columns.items() if key != SCORE}
    plain = DataSpec(spec.source, spec.weight, spec.config, spec.formatter, spec.first_option, others, spec.turns)
    found = answers_of(plain, rows, warnings, catalog, left_out)
    if any(answer.side for answer in found.rows):
        raise UserError(
            f"--against {spec.source}: its rows have pairs and a column {column!r}: which is it? Leave one out"
        )
    scores = [_number(answer.columns.get(column)) for answer in found.rows]
    if sum(score is not None for score in scores) < 3:
        raise UserError(f"--against {spec.source}: fewer than three of its answers have a number in {column!r}")
    return Human(spec.source, f"scores in {column!r}", found, [], scores, {}, [])


def prompts_of(pairs: list[Judged]) -> list[Hashable]:
    return [repr(pair.prompt) for pair in pairs]
