"""What `rlhf data stats` prints: numbers, and histograms of lengths as bars of text, 80 columns wide."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_core.data_report.report import LABEL, left_out
from rlhf_core.ui.screen import Screen

WIDTH = 38  # columns of the longest bar
EIGHTHS = "▏▎▍▌▋▊▉█"
DONE = {"drop": "left out", "truncate": "cut", "error": "refused"}
PAIRS = {
    "identical": "identical",
    "empty": "with an empty answer",
    "prompt_in_chosen": "the chosen answer repeats the question",
    "prompt_in_rejected": "the rejected answer repeats the question",
}


def show(screen: Screen, result: Mapping[str, Any]) -> None:
    screen.say(f"{result['source']}: {result['total']:,} rows, for methods that need {result['need']}", "bold")
    for label, value in lines(result):
        screen.say(f"  {label:{LABEL}}{value}")
    lengths = result["lengths"]
    for part, found in lengths["parts"].items():
        screen.say("")
        screen.say(f"{part}, in tokens of {lengths['rows']:,} rows (model {lengths['model']})", "bold")
        for line in histogram(found, lengths["rows"], blocks=screen.console.is_terminal):
            screen.say(f"  {line}")
    if result["warnings"]:
        screen.say("")
    for warning in result["warnings"]:
        screen.say(f"Warning: {warning}", "yellow")


def lines(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(label, text) of each line."""
    yield "rows", f"{result['rows']:,} of {result['total']:,} can be read as {result['format']}"
    yield from left_out(result)
    total = max(1, sum(result["scripts"].values()))
    shares = ", ".join(f"{name} {count / total:.1%}" for name, count in result["scripts"].items())
    yield "script", f"{shares} (of rows, by most of their letters)"
    same = result["duplicates"]
    yield "duplicates", f"{same['rows']:,} rows repeat an earlier one; {same['different_prompts']:,} different prompts"
    yield from _near(result["near_duplicates"])
    if held_out := result["held_out"]:
        yield "held out", f"{held_out['source']}: {held_out['rows']:,} rows"
        yield "", f"trained on: {held_out['overlap']:,}; nearly: {held_out['near']:,}"
    if result["pairs"]:
        yield from _pairs(result["pairs"])
    elif leaks := result["prompt_in_answer"]["rows"]:
        yield "leaks", f"{leaks:,} answers repeat the question ({result['prompt_in_answer']['examples'][0]})"
    if labels := result["labels"]:
        count = sum(labels.values())
        yield "answers", ", ".join(f"{letter} {n / count:.1%}" for letter, n in labels.items())


def _near(near: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    groups = f", in {near['groups']:,} group{'s' * (near['groups'] != 1)}" if near["rows"] else ""
    yield "near ones", f"{near['rows']:,} rows are nearly the same as an earlier one{groups}"
    if near["rows"]:
        yield "", f"({near['similarity']:.0%} or more of their runs of 5 characters are in both)"
    for group in near["examples"]:
        file = re.sub(r"(line|row) \d+$", "", group["first"])
        like, more = [place.removeprefix(file) for place in group["like"]], group["rows"] - len(group["like"])
        others = f" and {more:,} more" if more else ""
        yield "", f"like {group['first']}: {', '.join(like)}{others}"
    if beyond := near.get("not_compared_with_each_other"):
        yield "", f"the last {beyond:,} rows were compared with those before them alone"


def _pairs(pairs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, text in PAIRS.items():
        if pairs[name]["rows"]:
            yield "pairs", f"{pairs[name]['rows']:,}: {text} (the first: {pairs[name]['first']})"
    d = pairs["cohens_d_of_length"]
    longer, shorter = f"{pairs['chosen_longer']:.1%}", f"{pairs['chosen_shorter']:.1%}"
    yield "pairs", f"the chosen answer is longer in {longer}, shorter in {shorter}"
    if d is not None:
        yield "", f"Cohen's d of length {d:+.2f} (in characters)"


def histogram(found: Mapping[str, Any], rows: int, *, blocks: bool) -> Iterator[str]:
    """The percentiles, a bar for each bin, and a line where the limit is."""
    yield ", ".join(f"{name} {tokens:,}" if name == "max" else f"{name} %: {tokens:,}"
                    for name, tokens in found["tokens"].items())  # fmt: skip
    limit, largest = found.get("limit"), max(each["count"] for each in found["histogram"])
    marked = limit is None
    for each in found["histogram"]:
        if not marked and limit < each["from"]:
            marked = True
            yield _limit(found, rows)
        ends = f"{each['from']:,}–{each['to']:,}" if each["to"] > each["from"] else f"{each['from']:,}"
        share = each["count"] / max(1, rows)
        yield f"{ends:>15} {bar(each['count'] / largest, blocks):{WIDTH}} {each['count']:>9,} {share:>6.1%}"
        if not marked and limit <= each["to"]:
            marked = True
            yield _limit(found, rows)
    if not marked:
        yield _limit(found, rows)


def _limit(found: Mapping[str, Any], rows: int) -> str:
    over = f"{found['over']:,} over ({found['over'] / max(1, rows):.1%}), {DONE[found['rule']]}"
    return f"{'limit':>15} {found['option']} {found['limit']:,}: {over if found['over'] else 'none over'}"


def bar(share: float, blocks: bool) -> str:
    """A bar of `share` of the width, of at least one mark if there is anything."""
    if not blocks:
        return "#" * max(round(share * WIDTH), share > 0)
    eighths = max(round(share * WIDTH * 8), share > 0)
    return EIGHTHS[-1] * (eighths // 8) + (EIGHTHS[eighths % 8 - 1] if eighths % 8 else "")
