"""The result of `rlhf score`: in the terminal, as plain lines in a pipe, or as one HTML file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from rlhf_core.reward_report import agreeing
from rlhf_core.ui.page import document, template
from rlhf_core.ui.screen import Screen, number, text
from rlhf_core.ui.text import shown
from rlhf_core.words import language

BARS = "▁▂▃▄▅▆▇█"
EXAMPLES = 3  # best and worst answers that are shown
FAILURES = 5  # kinds of errors that are shown
STYLE = """
figure { margin: 0; max-width: 34rem } figcaption { display: flex; justify-content: space-between }
.bars { display: block; width: 100%; height: 9rem; border-bottom: 1px solid var(--line) }
.bars rect { fill: var(--accent) }
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
    if "against" in result:
        against(screen, result["against"])
    if pairs := known(result["correlations"]):
        screen.say("\nCorrelation between rewards (Spearman)", "bold")
        for pair in pairs:
            screen.say(f"  {correlation(pair['spearman']):>6}  {' and '.join(pair['rewards'])}")
    if result["warnings"]:
        screen.say("")
    for warning in result["warnings"]:
        screen.say(f"Warning: {warning}", "yellow")


def against(screen: Screen, found: Mapping[str, Any]) -> None:
    """How far the rewards agree with people."""
    lang = language()
    screen.say("\n" + visible(agreeing.title(found, lang)), "bold")
    for name, lines in agreeing.sections(found, lang):
        screen.say(f"  {visible(name)}", "bold")
        for label, value in lines:
            screen.say(f"    {padded(label, 18)}  {visible(value)}")
    for note in agreeing.notes(found, lang):
        screen.say(f"  {visible(note)}", "yellow")


def padded(label: str, width: int) -> str:
    return label + " " * max(0, width - cell_len(label))


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
    """The result as one HTML page."""
    counts = [("completions", f"{result['completions']:,}"), ("read as", result["format"])]
    pairs = known(result["correlations"])
    body = template(Path(__file__).parent, "score.html").render(
        facts=[*counts, ("different prompts or pairs", f"{result['groups']:,}")],
        warnings=result["warnings"],
        rewards=[_reward(name, reward) for name, reward in result["rewards"].items()],
        against=_against(result["against"]) if "against" in result else None,
        correlations=[(correlation(pair["spearman"]), " and ".join(pair["rewards"])) for pair in pairs],
    )
    return document(f"Rewards on {result['source']}", [body], STYLE)


def _against(found: Mapping[str, Any]) -> dict[str, Any]:
    lang = language()
    sections, notes = list(agreeing.sections(found, lang)), agreeing.notes(found, lang)
    return {"title": agreeing.title(found, lang), "sections": sections, "notes": notes}


def _reward(name: str, reward: Mapping[str, Any]) -> dict[str, Any]:
    """One reward as the page needs it."""
    return {
        "title": title(name, reward),
        "facts": [(label, value) for label, value in facts(reward) if label != "distribution"],
        "histogram": _bars(reward["histogram"]) if reward["histogram"] else None,
        "failures": [{**kind, "count": f"{kind['count']:,}"} for kind in reward["failures"]],
        "examples": [(kind, [_example(one) for one in reward[kind]]) for kind in kinds(reward) if reward[kind]],
    }


def _bars(histogram: Mapping[str, Any]) -> dict[str, Any]:
    """A bar for each count, in percent of width and height."""
    counts = histogram["counts"]
    width, most = 100 / len(counts), max(counts)
    bars = [
        {"x": f"{i * width:.2f}", "width": f"{0.9 * width:.2f}", "count": f"{count:,}"}
        | {"y": f"{100 - 100 * count / most:.1f}", "height": f"{100 * count / most:.1f}"}
        for i, count in enumerate(counts)
    ]
    listed = ", ".join(f"{count:,}" for count in counts)
    return {"low": number(histogram["low"]), "high": number(histogram["high"]), "listed": listed, "bars": bars}


def _example(example: Mapping[str, Any]) -> dict[str, str]:
    side = f", {example['side']}" if example["side"] else ""
    said = f"{number(example['score'])} · {example['location']}{side}: {example['prompt']}"
    return {"said": said, "text": example["completion"].strip()}
