"""What of a data set a method can learn from, and whether it is enough. `rlhf recommend` uses it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhf_core import Catalog, commands
from rlhf_core.commands import BadData, DataSpec, RewardRuntime, RewardSpec
from rlhf_tools.lengths import WARNING, decided_by_length

Kind = Literal["pairs", "checkable", "conversations", "text", "prompts"]
CALLED: Mapping[Kind, str] = {
    "pairs": "pairs of a better and a worse answer",
    "checkable": "questions whose answers can be checked",
    "conversations": "conversations to learn from",
    "text": "text to learn from",
    "prompts": "prompts without answers",
}
LOOKED_AT = 10_000  # rows that are compared with each other
FEW, SMALL = 50, 500  # different rows: with fewer a model learns them by heart, or it is a first try
JUDGES = ("verifier", "medical_keyword")  # rewards that compare an answer with the data's
JUDGED = 200  # reference answers that they are given
SHARE = 0.5  # of which they must find that many right


@dataclass
class Findings:
    """`rows` that can be used, `different` of those that were looked at. `learnable`: sft can learn from them;
    `prompts`: they have prompts to answer.

    `judges` are the rewards that can judge answers by the data's, with the share that they judge, and `columns` those
    that a reward may read, of each source. `problem`: why the
    data is not good enough for any method; `few`: more of such rows would be.
    """

    sources: list[str] = field(default_factory=list)
    kind: Kind | None = None
    rows: int = 0
    different: int = 0
    learnable: bool = False
    prompts: bool = True
    judges: dict[str, float] = field(default_factory=dict)
    columns: list[tuple[str, list[str]]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problem: str = ""
    few: bool = False


def look(specs: Sequence[DataSpec], catalog: Catalog) -> Findings:
    """Read the data for every kind of method. Raises `UserError` for data that is not there, or can't be read."""
    loaded: dict[str, Any] = {}
    refused: dict[str, BadData] = {}
    for need in ("preferences", "conversations", "prompts"):
        try:
            loaded[need] = commands.load_data(specs, need, catalog)
        except BadData as error:
            refused[need] = error
            if need == "preferences" and error.alike:
                return Findings(problem=str(error))
    if not loaded:
        return Findings(problem=str(refused["prompts"]))
    data = loaded.get("preferences") or loaded.get("conversations") or loaded["prompts"]
    found = Findings([str(part) for part in data.parts], rows=len(data.train), warnings=list(data.warnings))
    found.learnable, found.prompts = "conversations" in loaded, "prompts" in loaded
    if found.prompts:
        found.columns = loaded["prompts"].columns
        found.judges = _judges(loaded["prompts"], catalog)
    if "preferences" in loaded:
        found.kind = "pairs"
    elif found.judges.get("verifier", 0) >= SHARE:
        found.kind = "checkable"
    elif found.learnable:
        found.kind = "conversations" if found.prompts else "text"
    else:
        found.kind = "prompts"
    _check(found, data.train)
    return found


def _check(found: Findings, rows: Sequence[Mapping[str, Any]]) -> None:
    """Look for what makes learning pointless."""
    seen = [rows[i] for i in range(0, len(rows), -(-len(rows) // LOOKED_AT))]
    if found.kind == "pairs":
        pairs = [row for row in seen if row["chosen"] != row["rejected"]]
        if not pairs:
            found.problem = "The two answers are the same in every pair: none is better."
            return
        if len(pairs) < len(seen):
            found.warnings.append(f"the two answers are the same in {len(seen) - len(pairs):,} of {len(seen):,} pairs")
        seen = pairs
    found.different = len({_text(row) for row in seen})
    if found.different < FEW:
        what = f"{found.different:,} different row{'s' * (found.different != 1)}"
        of = "" if found.different == len(seen) else f" among {len(seen):,}"
        found.few = True
        found.problem = f"It has {what}{of}: a model would learn them by heart. Give at least {FEW}, better {SMALL:,}."
        return
    if found.kind == "checkable" and len({str(row.get("answer")) for row in seen}) == 1:
        found.problem = f"Every answer is {str(seen[0].get('answer'))!r}: a model would learn to say that to all."
        return
    if found.different < min(SMALL, len(seen)) or len(seen) < SMALL:
        found.warnings.append(f"{found.different:,} different rows are few: enough for a first try")
    elif found.different < len(seen) / 2:
        found.warnings.append(f"{found.different:,} of {len(seen):,} rows are different, the others are copies")
    if found.kind == "pairs":
        found.warnings += _decided_by_length(seen)


def _decided_by_length(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A warning if the length of the answers tells which is better."""
    found = decided_by_length([_length(row["chosen"]) - _length(row["rejected"]) for row in pairs])
    return [WARNING.format(which=found[0], share=f"{found[1]:.0%}")] if found else []


def _text(row: Mapping[str, Any]) -> str:
    """What a method would see of a row."""
    parts = ("prompt", "messages", "chosen", "rejected", "answer")
    return json.dumps([row.get(part) for part in parts], ensure_ascii=False, sort_keys=True, default=str)


def _length(turns: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(str(turn.get("content") or "")) for turn in turns)


def _judges(data: Any, catalog: Catalog) -> dict[str, float]:
    """{reward: the share of the data's own answers that it finds right}, of those that find enough."""
    rows = [row for row in itertools.islice(data.train, JUDGED) if row.get("answer") not in (None, "")]
    installed = {entry.name for entry in catalog.entries("rewards") if entry.problem is None}
    names = [name for name in JUDGES if name in installed] if rows else []
    if not names:
        return {}
    runtime = RewardRuntime(
        commands.bind_rewards([RewardSpec.read(name) for name in names], catalog),
        lambda ids: "".join(map(chr, ids)),
    )
    answers = [f"<answer>{row['answer']}</answer>" for row in rows]
    try:
        runtime.start()
        columns = runtime.evaluate(runtime.batch(rows, [list(map(ord, answer)) for answer in answers]))
    finally:
        runtime.close()
    total = min(JUDGED, len(data.train))
    shares = {name: sum((score or 0) > 0.5 for score in columns[name].scores) / total for name in names}
    return {name: share for name, share in shares.items() if share >= SHARE}
