"""The rule on hackability: no cheap text may score as high as a golden answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlhf_core.testing import probes
from rlhf_core.testing.bench import Bench
from rlhf_core.testing.golden import Case, shown
from rlhf_core.testing.report import Report

SAME = 1e-6


@dataclass(frozen=True)
class Probed:
    """The best text that one probe made from one golden answer: its score, also as a share of the answer's."""

    case: Case
    probe: str
    text: str
    score: float
    golden: float
    share: float

    @property
    def reaches(self) -> bool:
        return self.score >= self.golden - SAME


def examine(report: Report, cases: Sequence[tuple[Case, Bench]]) -> None:
    """Add the rule to `report`. A case that `allows` a probe is shown with its reason."""
    rule = report.rule("scores no cheap text as high as a golden answer")
    found: list[Probed] = []
    for case, bench in cases:
        (answer,) = bench.scores([case.row])
        if answer.score is None:
            rule.fault(f"{case.row.location}: the reward returns None; a full case needs a score to compare with")
            continue
        found += _probe(case, bench, answer.score)
    allowed: dict[tuple[str, str], list[str]] = {}
    for each in found:
        if each.reaches and each.probe in each.case.allows:
            allowed.setdefault((each.probe, each.case.allows[each.probe]), []).append(each.case.row.location)
        elif each.reaches:
            rule.fault(_message(each))
    for (probe, reason), locations in allowed.items():
        where = ", ".join([locations[0], *(location.partition(" ")[2] for location in locations[1:])])
        rule.note(f"allowed, {probe} ({probes.PROBES[probe]}), {where}: {reason}")
    if found:
        rule.note(_cheapest(found))


def _message(each: Probed) -> str:
    earns = f"earns {shown(each.score)}, the golden answer {shown(each.golden)}"
    allows = json.dumps({"allows": {each.probe: "…"}}, ensure_ascii=False)
    return (
        f"{each.case.row.location}: {each.probe} ({probes.PROBES[each.probe]}) {earns}: make the reward see the "
        f"difference, or say why it is right, {allows}. The text: {_cut(each.text)}"
    )


def _probe(case: Case, bench: Bench, golden: float) -> list[Probed]:
    """The best text of each probe: the highest score, and of several such texts the shortest."""
    texts = list(dict.fromkeys((name, text) for name, text in probes.variants(case.row) if text != case.row.completion))
    rows = [replace(case.row, location=f"{case.row.location}, {name}", completion=text) for name, text in texts]
    best: dict[str, Probed] = {}
    limits = bench.bound.reward.range
    low = limits[0] if limits else min(0.0, golden)
    for (name, text), outcome in zip(texts, bench.scores(rows), strict=True):
        if outcome.score is None:
            continue
        share = (outcome.score - low) / (golden - low) if golden > low else 1.0
        probed = Probed(case, name, text, outcome.score, golden, share)
        if name not in best or (-probed.score, len(text)) < (-best[name].score, len(best[name].text)):
            best[name] = probed
    return list(best.values())


def _cheapest(found: Sequence[Probed]) -> str:
    if reaching := [each for each in found if each.reaches]:
        cheapest = min(reaching, key=lambda each: len(each.text))
        return f"the cheapest exploit: {cheapest.probe}, {len(cheapest.text)} characters: {_cut(cheapest.text)}"
    best = max(found, key=lambda each: (each.share, -len(each.text)))
    return f"the best probe, {best.probe}, earns {best.share:.0%} of a golden answer: {_cut(best.text)}"


def _cut(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:40] + " … " + text[-15:])
