"""The result of `rlhf score` as one HTML file. Every text from data or rewards is escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    """The whole page."""
    rows = [("completions", f"{result['completions']:,}"), ("read as", result["format"])]
    rows.append(("different prompts or pairs", f"{result['groups']:,}"))
    parts = [
        _list(rows),
        *(f'<p class="warning">{escape(text)}</p>' for text in result["warnings"]),
        *(part for name, reward in result["rewards"].items() for part in _reward(name, reward)),
        *_correlations(known(result["correlations"])),
    ]
    return document(f"Rewards on {result['source']}", parts, STYLE)


def _list(rows: Sequence[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows) + "</dl>"


def _reward(name: str, reward: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2>{escape(title(name, reward))}</h2>"
    yield _list([(label, text) for label, text in facts(reward) if label != "distribution"])
    if reward["histogram"]:
        yield _histogram(reward["histogram"])
    if reward["failures"]:
        cells = "".join(
            f"<tr><td>{kind['count']:,}</td><td>{escape(kind['message'])}</td><td>{escape(kind['location'])}</td></tr>"
            for kind in reward["failures"]
        )
        yield f'<p class="soft">Failures, with the location of the first of each kind:</p><table>{cells}</table>'
    for kind in kinds(reward):
        if reward[kind]:
            yield f"<details><summary>{kind} completions</summary>{''.join(map(_example, reward[kind]))}</details>"


def _histogram(histogram: Mapping[str, Any]) -> str:
    """Ten bars, each with its count as a tooltip, over their range."""
    counts, low, high = histogram["counts"], histogram["low"], histogram["high"]
    width, most = 100 / len(counts), max(counts)
    bars = "".join(
        f'<rect x="{i * width + 0.5:.1f}%" width="{width - 1:.1f}%" y="{100 - 100 * count / most:.1f}%" '
        f'height="{100 * count / most:.1f}%"><title>{count:,}</title></rect>'
        for i, count in enumerate(counts)
    )
    said = ", ".join(f"{count:,}" for count in counts)
    return (
        f'<figure><svg role="img" aria-label="counts from {number(low)} to {number(high)}: {said}">{bars}</svg>'
        f'<figcaption class="soft"><span>{number(low)}</span><span>{number(high)}</span></figcaption></figure>'
    )


def _example(example: Mapping[str, Any]) -> str:
    side = f", {example['side']}" if example["side"] else ""
    return (
        f'<div class="soft">{number(example["score"])} · {escape(example["location"])}{side}: '
        f"{escape(example['prompt'])}</div>"
        f'<div class="text">{escape(example["completion"].strip()) or "(empty)"}</div>'
    )


def _correlations(pairs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if pairs:
        cells = "".join(
            f"<tr><td>{correlation(pair['spearman'])}</td><td>{escape(' and '.join(pair['rewards']))}</td></tr>"
            for pair in pairs
        )
        yield f"<h2>Correlation between rewards (Spearman)</h2><table>{cells}</table>"
