"""What labelling comes to: agreement of the labellers, and the pairs on which more than half of them agree."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from rlhf_core import UserError
from rlhf_core.commands import (
    Screen,
    agreeing,
    agreement,
    by_pair,
    duration,
    of_people,
    own_order,
    pair_row,
    path_of,
    to_json,
    votes,
    write_whole,
)
from rlhf_tools.preferences.labelling import PAUSE, Row, Work
from rlhf_tools.preferences.words import say
from rlhf_tools.preferences.writing import copied

LEFT_OUT = ("tie", "no majority", "only skipped", "not labelled")
MADE_BY = "rlhf preferences label"
MARGINS = {"margin", "score_margin"}
OF_ANSWERS = {"score_chosen", "score_rejected", "model_chosen", "model_rejected", *MARGINS}  # what a judge wrote


def sheet_of(output: Path) -> Path:
    return output.with_name(f"{output.stem}.sheet.json")


def check_output(name: str, labels: Path) -> Path:
    """Where the pairs go: a file that is not there, or one that was made of the same labels. Raises `UserError`."""
    output = path_of(name, "--output")
    if output.suffix != ".jsonl":
        raise UserError(f"--output {output}: the name has to end in .jsonl")
    if output.resolve() == labels.resolve():
        raise UserError(f"--output {output} is the file of labels: give another name")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}")
    if output.exists() and not _is_ours(output, labels):
        raise UserError(f"--output {output} exists, and was not made of {labels}: give another name, or remove it")
    return output


def _is_ours(output: Path, labels: Path) -> bool:
    try:
        sheet = json.loads(sheet_of(output).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(sheet, dict) and (sheet.get("made_by"), sheet.get("labels_file")) == (
        MADE_BY,
        str(labels.resolve()),
    )


def result_of(work: Work) -> dict[str, Any]:
    """For JSON: how much is labelled, by whom, and how far they agree."""
    here = work.here()
    times: dict[str, list[float]] = {}
    for label in here:
        if label.seconds is not None:
            times.setdefault(label.labeller, []).append(label.seconds)
    return {
        "labels_file": str(work.path),
        "rows": len(work.rows),
        "labelled": len({label.id for label in here}),
        "added": dict(work.added),
        "verdicts": dict(Counter(label.better for label in here)),
        "seconds": {name: round(sum(values), 1) for name, values in times.items()},
        "pauses": work.paused,
        "people": of_people(here),
        "labels_of_other_pairs": work.elsewhere,
        "passed_over": len(work.passed_over),
    }


def finished(work: Work) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """(the pairs on which more than half of the labellers agree; how many rows are left out, and why)."""
    labels = by_pair(work.here())
    left_out = dict.fromkeys(LEFT_OUT, 0)
    rows = []
    for name, row in work.rows.items():
        said = labels.get(name, [])
        found = list(votes(said))
        verdict = agreement.majority(found)
        if verdict:
            rows.append(pair_of(row, verdict, found.count(verdict), len(found)))
        else:
            why = "tie" if verdict == 0 else "no majority" if found else "only skipped" if said else "not labelled"
            left_out[why] += 1
    return rows, left_out


def pair_of(row: Row, verdict: int, agree: int, count: int) -> dict[str, Any]:
    """A row of pairs.jsonl. What a judge wrote of either answer goes with the answer."""
    swapped = verdict != own_order(row.a, row.b)  # people prefer `b`
    chosen, rejected = (row.b, row.a) if swapped else (row.a, row.b)
    columns = {
        name: value for name, value in row.columns.items() if name in OF_ANSWERS or name in copied(row.columns)[0]
    }
    if swapped:
        columns = {_other_side(name): value for name, value in columns.items()}
        for name in MARGINS & columns.keys():
            value = columns[name]
            columns[name] = -value if isinstance(value, int | float) and not isinstance(value, bool) else value
    pair = pair_row(row.prompt, chosen, rejected)
    own = {"judge": "people", "labellers": count, "labellers_agree": agree}
    return {**pair, **{name: value for name, value in columns.items() if name not in pair}, **own}


def _other_side(name: str) -> str:
    for one, other in (("_chosen", "_rejected"), ("_rejected", "_chosen")):
        if name.endswith(one):
            return name.removesuffix(one) + other
    return name


def write_pairs(work: Work, output: Path) -> dict[str, Any]:
    """Write the pairs and their sheet, each whole; returns what the sheet says. Raises `UserError`."""
    rows, left_out = finished(work)
    sheet = {"made_by": MADE_BY, "labels_file": str(work.path.resolve()), "pairs": len(rows), "left_out": left_out}
    lengths = [(len(_text(row, "chosen")), len(_text(row, "rejected"))) for row in rows]
    sheet |= {"chosen_longer": agreement.length_bias([1] * len(rows), lengths), "people": of_people(work.here())}
    try:
        write_whole(sheet_of(output), to_json(sheet, indent=1) + "\n")
        write_whole(output, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))
    except OSError as error:
        raise UserError(
            f"--output {output} can't be written: {error.strerror}. The labels are saved in {work.path}"
        ) from error
    return sheet


def _text(row: Mapping[str, Any], side: str) -> str:
    value = row.get(f"response_{side}", row.get(side))
    return value if isinstance(value, str) else "\n".join(turn["content"] for turn in value)


def summary(result: Mapping[str, Any], lang: str) -> Iterator[tuple[str, str]]:
    """(label, text) of each line at the end."""
    counts = ", ".join(f"{name} +{count:,}" for name, count in result["added"].items())
    yield say(lang, "labelled"), f"{result['labelled']:,} / {result['rows']:,}" + (f"  ({counts})" if counts else "")
    if seconds := result["seconds"]:
        parts = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items())
        note = (
            say(lang, "; a pause counts as {minutes} minutes at most", minutes=f"{PAUSE / 60:g}")
            if result["pauses"]
            else ""
        )
        yield say(lang, "time"), parts + note
    about = result["people"]
    if len(about["labellers"]) > 1:
        yield from agreeing.several(about, lang)
    if about["first_shown_wins"]["count"]:
        share = agreeing.percent(about["first_shown_wins"])
        yield say(lang, "shown first wins"), say(lang, "{share}, without a bias half", share=share)
    if result["labels_of_other_pairs"]:
        yield (
            say(lang, "not counted"),
            say(lang, "{count:,} labels of pairs that are not in this file", count=result["labels_of_other_pairs"]),
        )
    if "output" in result:
        left = [f"{say(lang, name)} {count:,}" for name, count in result["left_out"].items() if count]
        without = say(lang, "; left out: {reasons}", reasons=", ".join(left)) if left else ""
        yield (
            say(lang, "pairs"),
            say(lang, "{count:,} in {file}", count=result["pairs"], file=result["output"]) + without,
        )


def show(screen: Screen, result: Mapping[str, Any], lang: str) -> None:
    rows = [(say(lang, "labels"), result["labels_file"]), *summary(result, lang)]
    width = max(cell_len(name) for name, _ in rows)
    for name, content in rows:
        screen.say(f"{name}{' ' * (width - cell_len(name))}  {content}")
