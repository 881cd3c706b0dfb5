"""The result of `rlhf score` in the terminal, or as plain lines in a pipe."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from rlhf_core.ui.screen import Screen, number

BARS = "▁▂▃▄▅▆▇█"
EXAMPLES = 3  # best and worst answers that are shown
FAILURES = 5  # kinds of errors that are shown


def show(screen: Screen, result: Mapping[str, Any]) -> None:
    screen.say(f"{result['source']}, {result['format']}: {result['completions']:,} completions", "bold")
    for name, reward in result["rewards"].items():
        screen.say("")
        screen.say(visible(title(name, reward)), "bold")
        for label, text in facts(reward):
            screen.say(f"  {label:20}  {text}")
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
    for text in result["warnings"]:
        screen.say(f"Warning: {text}", "yellow")


def title(name: str, reward: Mapping[str, Any]) -> str:
    spec = "" if reward["spec"] == name else f"{reward['spec']}; "
    return f"{name}  ({spec}{reward['distribution'] or 'by path'})"


def facts(reward: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(label, text) of each line."""
    timed_out = f", {reward['timed_out']:,} of them timeouts" if reward["timed_out"] else ""
    yield (
        "scored",
        f"{reward['scored']:,}, not applicable {reward['not_applicable']:,}, errors {reward['errors']:,}{timed_out}",
    )
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
            text = Text(line, style=style)
            text.truncate(screen.console.width, overflow="ellipsis")
            screen.console.print(text, soft_wrap=True)


def visible(text: str) -> str:
    """`text` on one line, with symbols for control and formatting characters."""
    spaces = "".join(" " if unicodedata.category(character) == "Zs" else character for character in text.strip())
    symbols = spaces.translate({code: "↵" if code == ord("\n") else chr(0x2400 + code) for code in range(0x20)})
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in symbols)
