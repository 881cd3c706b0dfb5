"""The result of `rlhf score`: in the terminal, as plain lines in a pipe, or as one HTML file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from rlhf_core.ui.page import document
from rlhf_core.ui.screen import Screen, number, text
from rlhf_core.ui.text import shown

BARS = "▁▂▃▄▅▆▇█"
EXAMPLES = 3  # best and worst answers that are shown
FAILURES = 5  # kinds of errors that are shown
STYLE = """
figure { margin: 1rem 0; max-width: 34rem } figcaption { display: flex; justify-content: space-between }
.bars { display: block; width: 100%; height: 8rem; border-bottom: 1px solid var(--line) }
.warning { border-left: 3px solid var(--bad); padding-left: .8rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); overflow-wrap: anywhere }
td:first-child { text-align: right }
"""


def show(screen: Screen, result: Mapping[str, Any]) -> None:
    screen.say(f"{result['source']}, {result['format']}: {result['completions']:,} completions", "bold")
    for name, reward in result["rewards"].items():
        screen.say("")
        screen.say(visible(title(name, reward)), "bold")
        for label, value in facts(reward):
            screen.say(f"  {label:20}  {value}")
        for failure in reward["failures"][:FAILURES]:
            screen.say(f"  {failure['count']:,} × {visible(failure['message'])} (first: {failure['location']})", "red")
        if left := reward["failures"][FAILURES:]:
            screen.say(f"  {sum(kind['count'] for kind in left):,} × errors of {len(left)} other kinds", "red")
        for kind in kinds(reward):
            _examples(screen, kind, reward[kind][:EXAMPLES])
    if pairs := known(result["correlations"]):
        screen.say("\nCorrelation between rewards (Spearman)", "bold")
        for pair in pairs:
            screen.say(f"  {correlation(pair['spearman']):>6}  {' and '.join(pair['rewards'])}")
    if result["warnings"]:
        screen.say("")
    for warning in result["warnings"]:
        screen.say(f"Warning: {warning}", "yellow")


def title(name: str, reward: Mapping[str, Any]) -> str:
    spec = "" if reward["spec"] == name else f"{reward['spec']}; "
    return f"{name}  ({spec}{reward['distribution'] or 'by path'})"


def facts(reward: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(label, text) of each line."""
    timed_out = f", {reward['timed_out']:,} of them timeouts" if reward["timed_out"] else ""
    errors = f"errors {reward['errors']:,}{timed_out}"
    yield "scored", f"{reward['scored']:,}, not applicable {reward['not_applicable']:,}, {errors}"
    if reward["histogram"]:
        yield "mean", f"{number(reward['mean'])}, standard deviation {number(reward['std'])}"
        low, high, counts = (reward["histogram"][key] for key in ("low", "high", "counts"))
        yield "lowest, highest", f"{number(reward['min'])}, {number(reward['max'])}"
        yield "distribution", f"{number(low)} ▕{bars(counts)}▏ {number(high)}"
    groups, pairs = reward["groups"], reward["pairs"]
    if pairs and (total := sum(pairs.values())):
        higher, tied, lower = (f"{pairs[key] / total:.1%}" for key in ("chosen_higher", "tied", "rejected_higher"))
        yield "chosen scores higher", f"in {higher} of {total:,} pairs, tied in {tied}, lower in {lower}"
    elif pairs:
        yield "chosen scores higher", "–, no pair has two scores"
    elif compared := groups["compared"]:
        share = groups["with_signal"] / compared
        yield "groups with signal", f"{share:.1%} of {compared:,} groups have scores that differ"
    else:
        yield "groups with signal", "–, no prompt has two scored completions"
    yield "length correlation", f"{correlation(reward['length_correlation'])} (Spearman, with the number of characters)"
    yield "time", f"{seconds(reward['seconds_per_row'])} a row, {seconds(reward['seconds_per_batch'])} a batch of 64"


def bars(counts: Sequence[int]) -> str:
    """Two characters for each count, dots for zero."""
    most = max(counts)
    return "".join(2 * (BARS[round(count / most * (len(BARS) - 1))] if count else "·") for count in counts)


def known(correlations: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The correlations that are defined: both rewards vary over the completions that both score."""
    return [pair for pair in correlations if pair["spearman"] is not None]


def kinds(reward: Mapping[str, Any]) -> tuple[str, ...]:
    """The best and the worst answers, which are the same if all scores are."""
    return ("best",) if reward["min"] == reward["max"] else ("best", "worst")


def correlation(value: float | None) -> str:
    return "–" if value is None else f"{value + 0.0:+.2f}"


def seconds(value: float) -> str:
    size, unit = next(((size, unit) for size, unit in ((1, "s"), (1e-3, "ms")) if value >= size), (1e-6, "µs"))
    return f"{value / size:.1f} {unit}" if value / size < 10 else f"{value / size:,.0f} {unit}"


def _examples(screen: Screen, kind: str, examples: Sequence[Mapping[str, Any]]) -> None:
    """Two lines for each example, cut to the width of the screen."""
    if examples:
        screen.say(f"  {kind}")
    for example in examples:
        side = f" ({example['side']})" if example["side"] else ""
        first = f"{number(example['score']):>8}  {example['location']}{side}: {visible(example['prompt'])}"
        for line, style in ((first, "dim"), (" " * 10 + (visible(example["completion"]) or "(empty)"), "")):
            screen.console.print(text(line, style), no_wrap=True, overflow="ellipsis")


def visible(content: str) -> str:
    """`content` on one line, with symbols for control and formatting characters."""
    return shown(content.strip()).replace("\n", "↵").replace("\t", "␉")


def render(result: Mapping[str, Any]) -> str:
    """The result as one HTML page. Every text from data or rewards is escaped."""
    completions, groups = f"{result['completions']:,}", f"{result['groups']:,}"
    parts = [
        _list([("completions", completions), ("read as", result["format"]), ("different prompts or pairs", groups)]),
        *(f'<p class="warning">{escape(text)}</p>' for text in result["warnings"]),
        *(part for name, reward in result["rewards"].items() for part in _reward_html(name, reward)),
    ]
    if pairs := known(result["correlations"]):
        rows = ((correlation(pair["spearman"]), " and ".join(pair["rewards"])) for pair in pairs)
        parts.append(f"<h2>Correlation between rewards (Spearman)</h2>{_table(rows)}")
    return document(f"Rewards on {result['source']}", parts, STYLE)


def _list(rows: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows) + "</dl>"


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    cells = ("".join(f"<td>{escape(text)}</td>" for text in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _reward_html(name: str, reward: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2>{escape(title(name, reward))}</h2>"
    yield _list((label, text) for label, text in facts(reward) if label != "distribution")
    if reward["histogram"]:
        yield _histogram(reward["histogram"])
    if reward["failures"]:
        rows = ((f"{kind['count']:,}", kind["message"], kind["location"]) for kind in reward["failures"])
        yield f'<p class="soft">Failures, with the location of the first of each kind:</p>{_table(rows)}'
    for kind in kinds(reward):
        if reward[kind]:
            yield f"<details><summary>{kind} completions</summary>{''.join(map(_example_html, reward[kind]))}</details>"


def _histogram(histogram: Mapping[str, Any]) -> str:
    """A bar for each count, with the count as a tooltip, above their range."""
    low, high, counts = number(histogram["low"]), number(histogram["high"]), histogram["counts"]
    most, listed = max(counts), ", ".join(f"{count:,}" for count in counts)
    width, heights = 100 / len(counts), [100 * count / most for count in counts]
    bars = "".join(
        f'<rect x="{i * width:.2f}%" y="{100 - height:.1f}%" width="{0.9 * width:.2f}%" height="{height:.1f}%" '
        f'fill="var(--even)"><title>{count:,}</title></rect>'
        for i, (height, count) in enumerate(zip(heights, counts, strict=True))
    )
    return (
        f'<figure><svg class="bars" role="img" aria-label="counts from {low} to {high}: {listed}">{bars}</svg>'
        f'<figcaption class="soft"><span>{low}</span><span>{high}</span></figcaption></figure>'
    )


def _example_html(example: Mapping[str, Any]) -> str:
    side = f", {example['side']}" if example["side"] else ""
    return (
        f'<div class="soft">{number(example["score"])} · {escape(example["location"])}{side}: '
        f"{escape(example['prompt'])}</div>"
        f'<div class="text">{escape(example["completion"].strip()) or "(empty)"}</div>'
    )
