"""What `rlhf data inspect` and `rlhf data validate` print."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rlhf_core.data_report import view_show
from rlhf_core.data_report.texts import PERCENTS
from rlhf_core.ui.screen import Screen

LABEL = 14  # columns


def show(screen: Screen, result: Mapping[str, Any]) -> None:
    screen.say(f"{result['source']}: {result['total']:,} rows, for methods that need {result['need']}", "bold")
    for label, value in lines(result):
        screen.say(f"  {label:{LABEL}}{value}")
    view_show.show(screen, result["examples"])
    _warn(screen, result["warnings"])


def _warn(screen: Screen, warnings: Iterable[str]) -> None:
    for warning in warnings:
        screen.say(f"Warning: {warning}", "yellow")


def lines(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(label, text) of each line."""
    yield from _format(result)
    yield "usable", f"{result['usable']:,} of {result['total']:,} rows"
    for reason in result["left_out"]:
        longest = f", the longest {reason['longest']:,}" if "longest" in reason else ""
        yield "left out", f"{reason['rows']:,} {reason['kind']}: {reason['text']}{longest} ({reason['first']})"
    yield from _lengths(result["lengths"])
    total = max(1, sum(result["scripts"].values()))
    shares = ", ".join(f"{name} {count / total:.1%}" for name, count in result["scripts"].items())
    yield "script", f"{shares} (of rows, by most of their letters)"
    same = result["duplicates"]
    yield "duplicates", f"{same['rows']:,} rows repeat an earlier one; {same['different_prompts']:,} different prompts"
    if held_out := result["held_out"]:
        yield "held out", f"{held_out['source']}: {held_out['overlap']:,} of {held_out['rows']:,} rows are trained on"
    if result["pairs"]:
        yield from _pairs(result["pairs"])
    elif leaks := result["prompt_in_answer"]["rows"]:
        yield "leaks", f"{leaks:,} answers repeat the question ({result['prompt_in_answer']['examples'][0]})"
    if labels := result["labels"]:
        count = sum(labels.values())
        yield "answers", ", ".join(f"{letter} {n / count:.1%}" for letter, n in labels.items())


def _format(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    matched = ", ".join(own if own == name else f"{own} (here {name})" for own, name in result["columns"].items())
    yield "format", f"{result['format']}, by the columns {matched}" if matched else result["format"]
    if len(result["rows"]) > 1:
        yield "", ", ".join(f"{name}: {count:,} rows" for name, count in result["rows"].items())
    if others := result["runners_up"]:
        yield "also fits", "; ".join(f"{name} ({', '.join(columns)})" for name, columns in others.items())
    for part, columns in result["used"].items():
        yield part, f"from {', '.join(columns)}"
    if result["unused"]:
        yield "not used", ", ".join(name or "(no name)" for name in result["unused"])


def _lengths(lengths: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    heads = [*(f"{p} %" for p in PERCENTS), "max"]
    yield (
        "tokens",
        "".join(f"{head:>9}" for head in heads)
        + f"  ({lengths['rows']:,} rows; {lengths['method']}, model {lengths['model']})",
    )
    for part, found in lengths["parts"].items():
        cut = ""
        if "limit" in found:
            share = found["over"] / max(1, lengths["rows"])
            cut = f"  over {found['option']} {found['limit']:,}: {found['over']:,} ({share:.1%}), {found['rule']}"
        yield f"  {part}", "".join(f"{tokens:>9,}" for tokens in found["tokens"].values()) + cut


def _pairs(pairs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    names = {"identical": "identical", "empty": "with an empty answer", "prompt_in_chosen": "the chosen answer repeats "
             "the question", "prompt_in_rejected": "the rejected answer repeats the question"}  # fmt: skip
    for name, text in names.items():
        if pairs[name]["rows"]:
            yield "pairs", f"{pairs[name]['rows']:,}: {text} (the first: {pairs[name]['first']})"
    d = pairs["cohens_d_of_length"]
    effect = "" if d is None else f"; Cohen's d of length {d:+.2f}"
    longer, shorter = f"{pairs['chosen_longer']:.1%}", f"{pairs['chosen_shorter']:.1%}"
    yield "pairs", f"the chosen answer is longer in {longer}, shorter in {shorter}{effect} (in characters)"


def show_checks(screen: Screen, result: Mapping[str, Any]) -> None:
    """A line for each check, then one for every row that can't be used."""
    screen.say(f"{result['source']}: {'passed' if result['passed'] else 'failed'}", "bold")
    for check in result["checks"]:
        mark, style = ("✓", "green") if check["passed"] else ("✗", "red")
        screen.say(f"  {mark} {check['check']}: {check['text']}", style)
    for row in result["bad_rows"]:
        where = row["file"] if row["line"] is None else f"{row['file']}:{row['line']}"
        screen.say(f"{where}: {row['kind']}: {row['reason']}")
    _warn(screen, result["warnings"])
