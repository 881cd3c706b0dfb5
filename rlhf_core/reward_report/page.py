"""The result of `rlhf score` as one HTML file. Every text from data or rewards is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

from rlhf_core.reward_report.report import correlation, facts, kinds, known, title
from rlhf_core.ui.page import document
from rlhf_core.ui.screen import number

STYLE = """
figure { margin: 1rem 0; max-width: 34rem } figure svg { width: 100%; height: 8rem; display: block;
  border-bottom: 1px solid var(--line) }
figure rect { fill: var(--even) } figcaption { display: flex; justify-content: space-between }
.warning { border-left: 3px solid var(--bad); padding-left: .8rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); overflow-wrap: anywhere }
td:first-child { text-align: right }
"""


def render(result: Mapping[str, Any]) -> str:
    """The HTML of the page."""
    completions, groups = f"{result['completions']:,}", f"{result['groups']:,}"
    parts = [
        _list([("completions", completions), ("read as", result["format"]), ("different prompts or pairs", groups)]),
        *(f'<p class="warning">{escape(text)}</p>' for text in result["warnings"]),
        *(part for name, reward in result["rewards"].items() for part in _reward(name, reward)),
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


def _reward(name: str, reward: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2>{escape(title(name, reward))}</h2>"
    yield _list((label, text) for label, text in facts(reward) if label != "distribution")
    if reward["histogram"]:
        yield _histogram(reward["histogram"])
    if reward["failures"]:
        rows = ((f"{kind['count']:,}", kind["message"], kind["location"]) for kind in reward["failures"])
        yield f'<p class="soft">Failures, with the location of the first of each kind:</p>{_table(rows)}'
    for kind in kinds(reward):
        if reward[kind]:
            yield f"<details><summary>{kind} completions</summary>{''.join(map(_example, reward[kind]))}</details>"


def _histogram(histogram: Mapping[str, Any]) -> str:
    """A bar for each count, with the count as a tooltip, above their range."""
    counts, low, high = histogram["counts"], histogram["low"], histogram["high"]
    width, most = 100 / len(counts), max(counts)
    bars = "".join(
        f'<rect x="{i * width + 0.5:.1f}%" width="{width - 1:.1f}%" y="{100 - 100 * count / most:.1f}%" '
        f'height="{100 * count / most:.1f}%"><title>{count:,}</title></rect>'
        for i, count in enumerate(counts)
    )
    listed = ", ".join(f"{count:,}" for count in counts)
    return (
        f'<figure><svg role="img" aria-label="counts from {number(low)} to {number(high)}: {listed}">{bars}</svg>'
        f'<figcaption class="soft"><span>{number(low)}</span><span>{number(high)}</span></figcaption></figure>'
    )


def _example(example: Mapping[str, Any]) -> str:
    side = f", {example['side']}" if example["side"] else ""
    return (
        f'<div class="soft">{number(example["score"])} · {escape(example["location"])}{side}: '
        f"{escape(example['prompt'])}</div>"
        f'<div class="text">{escape(example["completion"].strip()) or "(empty)"}</div>'
    )
