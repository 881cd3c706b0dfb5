"""What is in one source: its format, what is left out, lengths, languages, duplicates, pairs, answers."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rlhf_core.catalog import Catalog
from rlhf_core.data.parts import Row
from rlhf_core.data.projecting import Need, prompt_of
from rlhf_core.data_report import texts
from rlhf_core.data_report.pairs import Pairs, decided_by_length
from rlhf_core.data_report.reading import Reader, held_out_of
from rlhf_core.data_report.tokens import Tokens, method_for
from rlhf_core.data_report.view import Examples
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
    """What is counted of the rows of a source while they are read."""

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

    def add(self, location: str, row: Row) -> None:
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


def prompt_digest(row: Row) -> bytes:
    """Of the prompt, or of plain text."""
    return texts.digest(prompt_of(row) or row["messages"])


def inspect(
    given: str,
    catalog: Catalog,
    *,
    method: str | None = None,
    model: str = "builtin",
    chat_template: str | None = None,
    eval_data: str | None = None,
    examples: int = 1,
) -> dict[str, Any]:
    """Everything that `rlhf data inspect` shows, as plain data. Raises `UserError`."""
    spec = DataSpec.read(given)
    need = method_for(method, "prompts", catalog).data if method else None
    reader = Reader(spec, need, catalog)
    tokens = Tokens(method_for(method, reader.need, catalog), model, reader.rows_read, chat_template)
    seen, usable = Seen(reader.need), 0
    shown = Examples(examples, reader.need, tokens.options, tokens.template)
    for location, row, left_in in reader.rows(tokens.checks):
        usable += left_in
        seen.add(location, row)
        tokens.add(row)
        if left_in:
            shown.add(location, row)
    used, unused = reader.columns()
    result = {
        "source": str(given),
        "need": reader.need,
        **reader.choice(catalog),
        "used": used,
        "unused": unused,
        "total": reader.total,
        "usable": usable,
        "left_out": reader.left_out.to_dict(),
        "lengths": tokens.to_dict(),
        "scripts": dict(seen.scripts.most_common()),
        "duplicates": {"rows": seen.same, "examples": seen.duplicates, "different_prompts": len(seen.prompts)},
        "held_out": overlap(spec, reader.need, catalog, seen.prompts, eval_data),
        "pairs": seen.pairs.to_dict() if seen.pairs.chosen else None,
        "prompt_in_answer": {"rows": len(seen.leaks), "examples": seen.leaks[:EXAMPLES]},
        "labels": texts.label_balance(seen.answers),
        "examples": shown.to_list(),
    }
    result["warnings"] = [
        *reader.warnings,
        *reader.formats.told,
        *reader.conversion.told(),
        *tokens.checks.warnings(),
        *concluded(result),
    ]
    return result


def overlap(
    spec: DataSpec, need: Need, catalog: Catalog, prompts: dict[bytes, str], eval_data: str | None
) -> dict[str, Any] | None:
    """How many held-out rows have a prompt that is trained on; None if nothing is held out."""
    other = Reader(DataSpec.read(eval_data), need, catalog) if eval_data else held_out_of(spec, need, catalog)
    if other is None:
        return None
    found: list[tuple[str, str]] = []
    count = 0
    for location, row, _ in other.rows():
        first = prompts.get(prompt_digest(row))
        if first is not None:
            count += 1
            found += [(location, first)][: EXAMPLES - len(found)]
    name = eval_data or ", ".join(name for _, name in other.source.files[:3])
    return {"source": name, "rows": other.total, "overlap": count, "examples": found}


def concluded(result: dict[str, Any]) -> list[str]:
    """Warnings that follow from the numbers."""
    found = [] if result["usable"] else ["no row can be used, for the reasons above"]
    if result["duplicates"]["rows"]:
        location, first = result["duplicates"]["examples"][0]
        found.append(f"{result['duplicates']['rows']:,} rows repeat an earlier one ({location} is {first})")
    held_out = result["held_out"]
    if held_out and held_out["overlap"]:
        location, first = held_out["examples"][0]
        found.append(
            f"{held_out['overlap']:,} of {held_out['rows']:,} held-out rows have a prompt that is trained on, so they "
            f"do not show what was learned ({location} is {first})"
        )
    if result["pairs"] and (text := decided_by_length(result["pairs"])):
        found.append(text)
    if (labels := result["labels"]) and sum(labels.values()) >= ENOUGH:
        letter, count = max(labels.items(), key=lambda item: item[1])
        share = count / sum(labels.values())
        if share > (ONE_SIDED if len(labels) > 2 else (1 + ONE_SIDED) / 2):
            found.append(
                f"the answer is {letter} in {share:.0%} of rows: a model that always says so is right as often"
            )
    return found
