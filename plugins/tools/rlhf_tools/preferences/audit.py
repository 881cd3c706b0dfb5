"""`rlhf preferences audit`: pairs beside people's labels, and beside each other."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click

from rlhf_core.numbers import COUNT, max_bad_rows


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", metavar="FILE")
@click.option(
    "--labels", metavar="FILE", help="Labels of people.  [FILE with .labels.jsonl as its ending, if it is there]"
)
@click.option("--judge", metavar="SPEC", help="A reward to ask about each pair, as --reward of rlhf run.")
@click.option("--rows", "count", type=COUNT, default=20, metavar="N", help="How many rows to look at are listed.  [20]")
@max_bad_rows
@click.option("--json", "as_json", is_flag=True, help="The result as one JSON object.")
@click.option("--lang", metavar="en|zh", help="Language.  [that of RLHF_LANG, else en]")
def audit(
    source: str, labels: str | None, judge: str | None, count: int, max_bad_rows: float, as_json: bool, lang: str | None
) -> None:
    """Look for pairs that contradict people, or each other.

    FILE has pairs, in any format that `rlhf run` reads, or labels. Shown are: how far the file (or --judge) agrees with
    the labels, rows that say the opposite of each other or form a cycle, copies, answers that are the same or nearly,
    whether length decides, labellers who disagree or are too fast to have read, and the rows to look at first.

    rlhf preferences audit pairs.jsonl --labels pairs.labels.jsonl
    """
    from rlhf_core import Catalog, RunStopped
    from rlhf_core.commands import RewardSpec, Screen, bind_rewards, language, stdout_to_stderr, to_json
    from rlhf_tools.preferences import audit_showing
    from rlhf_tools.preferences.auditing import audited
    from rlhf_tools.preferences.judging import judged, planned
    from rlhf_tools.preferences.words import say

    lang = language(lang)
    catalog, screen = Catalog(), Screen(quiet=as_json)
    with stdout_to_stderr() if as_json else nullcontext(), without_collection():
        rewards = bind_rewards([RewardSpec.read(judge)], catalog) if judge else []
        with screen.working(say(lang, "Reading {file} …", file=source)) as progress:
            rows, said, told = read(source, labels, catalog, max_bad_rows, progress)
            verdicts = None
            result: dict[str, Any] = {"source": source}
            for reward in rewards:
                for name, line in planned(reward, rows):
                    screen.say(f"{name:8}{line}")
                result["judge"], verdicts = judged(reward, rows, said, progress, lang)
            progress(say(lang, "Comparing {count:,} pairs …", count=len(rows)))
            of_labels = told["labels_file"] == source
            found, doubts = audited(rows, said, verdicts, of_labels=of_labels)
            if of_labels and rewards:
                result["judge"]["file"] = None
        ranked = doubts.ranked()
        result |= found | {
            "labels_file": told.pop("labels_file"),
            "warnings": told["warnings"],
            "doubtful": len(ranked),
            "look_at": [audit_showing.entry(rows[n], doubts.reasons[n], weight) for weight, n in ranked[:count]],
        }
    if as_json:
        click.echo(to_json(result))
    else:
        audit_showing.show(screen, result, lang)
    if "judge" in result and result["judge"]["stopped"]:
        raise RunStopped(result["judge"]["stopped"])


@contextmanager
def without_collection() -> Iterator[None]:
    """Let Python not look for circles among the rows, of which there are none: that takes a quarter of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def read(
    source: str, labels: str | None, catalog: Any, max_bad_rows: float, progress: Any
) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """(the rows, the labels, what to tell). Raises `UserError`."""
    from rlhf_core import UserError
    from rlhf_core.commands import SUFFIX, DataSpec, labels_in, path_of, read_labels, read_pairs
    from rlhf_tools.preferences.auditing import Said
    from rlhf_tools.preferences.majorities import pairs_in

    path = path_of(source, "FILE")
    if labels_in(path):
        if labels is not None:
            raise UserError(f"--labels has no effect: {source} has labels itself")
        found = read_labels(path)
        return pairs_in(found.labels, source), found.labels, {"labels_file": source, "warnings": found.warnings()}
    pairs = read_pairs(source, catalog, max_bad_rows, progress)
    rows = [Said(pair.location, pair.prompt, pair.chosen, pair.rejected, pair.columns) for pair in pairs.rows]
    place = path_of(DataSpec.read(source).source, "FILE")
    file = path_of(labels, "--labels") if labels else place.with_name(place.name.partition(".")[0] + SUFFIX)
    if labels is not None and not Path(file).is_file():
        raise UserError(f"--labels {file}: there is no such file")
    if labels is not None and not labels_in(file):
        raise UserError(f"--labels {file} holds no labels of rlhf preferences label")
    if not Path(file).is_file():
        return rows, [], {"labels_file": None, "warnings": pairs.warnings}
    found = read_labels(file)
    return rows, found.labels, {"labels_file": str(file), "warnings": [*pairs.warnings, *found.warnings()]}
