"""What is counted of the rows of a source while they are read, and what is to be said of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rlhf_core.catalog import Catalog
from rlhf_core.data.parts import Row
from rlhf_core.data.projecting import Need, prompt_of
from rlhf_core.data_report import texts
from rlhf_core.data_report.near import Near
from rlhf_core.data_report.pairs import Pairs, decided_by_length
from rlhf_core.data_report.reading import Reader, held_out_of
from rlhf_core.grammar import DataSpec

EXAMPLES = 3  # of duplicates, and of rows in both parts
ENOUGH = 20  # answers, before anything is said of their balance
ONE_SIDED = 0.5  # share of one letter among three or more; with two, three quarters
PARTS: dict[Need, tuple[str, ...]] = {
    "prompts": ("prompt", "answer"),
    "preferences": ("prompt", "chosen", "rejected"),
    "conversations": ("messages",),
}


class Seen:
    """What is counted of the rows of a source."""

    def __init__(self, need: Need) -> None:
        self.need = need
        self.rows: dict[bytes, str] = {}  # the first location of each different row
        self.prompts: dict[bytes, str] = {}
        self.duplicates: list[tuple[str, str]] = []
        self.same: int = 0
        self.scripts: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.leaks: list[str] = []
        self.pairs = Pairs()

    def add(self, location: str, row: Row) -> bool:
        """Whether no earlier row is the same."""
        first = self.rows.setdefault(texts.digest([{k: row.get(k) for k in PARTS[self.need]}]), location)
        if first != location:
            self.same += 1
            self.duplicates += [(location, first)][: EXAMPLES - len(self.duplicates)]
        self.prompts.setdefault(prompt_digest(row), location)
        words = [texts.content(row[key]) for key in PARTS[self.need] if isinstance(row.get(key), list)]
        self.scripts[texts.script("\n".join(words))] += 1
        if isinstance(row.get("answer"), str):
            self.answers[row["answer"].strip()] += 1
        if self.need == "preferences":
            self.pairs.add(location, row["prompt"], row["chosen"], row["rejected"])
        elif self.need == "conversations" and texts.leaked(prompt_of(row), texts.content(row["messages"][-1:])):
            self.leaks.append(location)
        return first == location

    def to_dict(self) -> dict[str, Any]:
        return {
            "scripts": dict(self.scripts.most_common()),
            "duplicates": {"rows": self.same, "examples": self.duplicates, "different_prompts": len(self.prompts)},
            "pairs": self.pairs.to_dict() if self.pairs.chosen else None,
            "prompt_in_answer": {"rows": len(self.leaks), "examples": self.leaks[:EXAMPLES]},
            "labels": texts.label_balance(self.answers),
        }


def prompt_digest(row: Row) -> bytes:
    """Of the prompt, or of plain text."""
    return texts.digest(prompt_of(row) or row["messages"])


def prompt_text(row: Row) -> str:
    """The prompt without its system message, which many rows share; or plain text."""
    return texts.content([turn for turn in prompt_of(row) or row["messages"] if turn["role"] != "system"])


def row_text(row: Row, need: Need) -> str:
    """All turns of a row, without system messages."""
    turns = [turn for part in PARTS[need] if isinstance(row.get(part), list) for turn in row[part]]
    return texts.content([turn for turn in turns if turn["role"] != "system"])


def held_out_reader(spec: DataSpec, need: Need, catalog: Catalog, eval_data: str | None) -> Reader | None:
    """The rows of `eval_data`, or those that the source itself holds out, if any."""
    return Reader(DataSpec.read(eval_data), need, catalog) if eval_data else held_out_of(spec, need, catalog)


def overlap(other: Reader | None, prompts: Mapping[bytes, str], near: Near | None = None) -> dict[str, Any] | None:
    """How many held-out rows have a prompt that is trained on, or nearly one; None if nothing is held out.

    `prompts`: the location of each prompt that is trained on, by its digest; `near`: the same prompts.
    """
    if other is None:
        return None
    found: dict[str, list[tuple[str, str]]] = {"same": [], "near": []}
    for location, row, _ in other.rows():
        if (first := prompts.get(prompt_digest(row))) is not None:
            found["same"].append((location, first))
        elif near and (like := near.find(near.hashed(prompt_text(row)))) is not None:
            found["near"].append((location, like))
    name = other.spec.source if other.use == "train" else ", ".join(name for _, name in other.source.files[:3])
    result = {"source": name, "rows": other.total, "overlap": len(found["same"]), "examples": found["same"][:EXAMPLES]}
    more = {"near": len(found["near"]), "near_examples": found["near"][:EXAMPLES]} if near else {}
    return {**result, **more}


def concluded(numbers: Mapping[str, Any]) -> list[str]:
    """Warnings that follow from the numbers of `Seen.to_dict`, of `overlap`, and of `near_duplicates`, if there are."""
    found = []
    if numbers["duplicates"]["rows"]:
        location, first = numbers["duplicates"]["examples"][0]
        found.append(f"{numbers['duplicates']['rows']:,} rows repeat an earlier one ({location} is {first})")
    if (near := numbers.get("near_duplicates")) and near["rows"]:
        group = near["examples"][0]
        found.append(
            f"{near['rows']:,} rows are nearly the same as an earlier one ({group['like'][0]} is like "
            f"{group['first']}): a model sees them more often than the others"
        )
    held_out = numbers["held_out"]
    if held_out and held_out["overlap"]:
        location, first = held_out["examples"][0]
        found.append(
            f"{held_out['overlap']:,} of {held_out['rows']:,} held-out rows have a prompt that is trained on, so they "
            f"do not show what was learned ({location} is {first})"
        )
    if held_out and held_out.get("near"):
        location, first = held_out["near_examples"][0]
        found.append(
            f"{held_out['near']:,} of {held_out['rows']:,} held-out rows have nearly a prompt that is trained on "
            f"({location} is like {first})"
        )
    if numbers["pairs"] and (text := decided_by_length(numbers["pairs"])):
        found.append(text)
    if (labels := numbers["labels"]) and sum(labels.values()) >= ENOUGH:
        letter, count = max(labels.items(), key=lambda item: item[1])
        share = count / sum(labels.values())
        if share > (ONE_SIDED if len(labels) > 2 else (1 + ONE_SIDED) / 2):
            found.append(
                f"the answer is {letter} in {share:.0%} of rows: a model that always says so is right as often"
            )
    return found
