"""comparison.html: one file that needs no network and no script. Every text from data or models is escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from rlhf_core.commands import document, question
from rlhf_tools import table
from rlhf_tools.results import MODES

STYLE = """
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .4rem .9rem .4rem 0; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line) }
th:first-child { text-align: left; font-weight: 400 } thead th { color: var(--soft); font-weight: 600; min-width: 6rem }
td small { display: block; color: var(--soft); white-space: nowrap }
.chart { max-width: 46rem } .chart > div { display: grid; grid-template-columns: 12rem 1fr 7.5rem; gap: .8rem;
  align-items: center; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; margin: .4rem 0 }
.chart svg { width: 100%; height: 1.4rem; display: block; overflow: visible }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: .8rem;
  margin-top: .6rem }
.answers > div { background: var(--card); border-radius: .5rem; padding: .7rem .9rem; min-width: 0 }
@media (max-width: 34rem) { .chart > div { grid-template-columns: 1fr auto; gap: 0 .8rem }
  .chart svg { grid-column: 1 / -1; order: 1 } }
"""


def render(result: Mapping[str, Any]) -> str:
    """The HTML of the page."""
    names = [model["name"] for model in result["models"]]
    parts = [
        settings(result["models"], result["settings"]),
        *(f'<p class="note">{escape(note)}</p>' for note in result["notes"]),
        *(part for mode in MODES for part in _mode(mode, names, result)),
        "<h2>Answers</h2>",
        *(prompt(number, row) for number, row in enumerate(result["prompts"], start=1)),
    ]
    return document(" and ".join([", ".join(names[:-1]), names[-1]]) + " compared", parts, STYLE)


def settings(models: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """What was asked whom, with which rewards."""
    rows = [(model["name"], model["given"]) for model in models]
    rows.append(("prompts", f"{settings['prompts']} of {settings['data']}"))
    rows.append(("rewards", ", ".join(reward["spec"] for reward in settings["rewards"]) or "none"))
    if settings["system_prompt"]:
        rows.append(("system prompt", settings["system_prompt"]))
    rows.append(("longest answer", f"{settings['max_completion_length']} tokens"))
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows) + "</dl>"


def _mode(mode: str, names: Sequence[str], result: Mapping[str, Any]) -> Iterator[str]:
    """Heading, table, chart and notes of one mode."""
    summary = result["results"][mode]
    yield f"<h2>{escape(table.title(mode, result))}</h2>"
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr><th>{escape(label)}</th>" + "".join(_cell(*cell) for cell in cells) + "</tr>"
        for label, cells in table.rows(names, summary)
    )
    yield f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    if result["settings"]["rewards"]:
        yield f'<p class="soft">Below a mean reward: the difference to {escape(names[0])} with its 95% interval.</p>'
        yield _chart(names[0], summary["against_baseline"])
    else:
        yield '<p class="note">No reward was given, so there is no win rate.</p>'
    yield from (f'<p class="note">{escape(note)}</p>' for note in table.notes(summary))


def _cell(value: str, below: str) -> str:
    return f"<td>{escape(value)}" + (f"<small>{escape(below)}</small>" if below else "") + "</td>"


def _chart(baseline: str, others: Mapping[str, Any]) -> str:
    """Win rates as dots on their intervals; the line in the middle is 50%."""
    rows = "".join(
        f"<div><span>{escape(name)}</span>{_bar(other['win_rate'])}<span>{table.wins(other['win_rate'])}</span></div>"
        for name, other in others.items()
        if other["win_rate"]
    )
    said = f"Wins against {escape(baseline)} with their 95% interval; a tie is half a win, the line is 50%."
    return f'<p class="soft">{said}</p><div class="chart">{rows}</div>' if rows else ""


def _bar(win_rate: Mapping[str, Any]) -> str:
    low, high, rate = (100 * win_rate[key] for key in ("low", "high", "rate"))
    colour = "var(--good)" if low > 50 else "var(--bad)" if high < 50 else "var(--even)"
    return (
        f'<svg role="img" aria-label="{table.wins(win_rate)}">'
        '<rect width="100%" height="2" y="48%" fill="var(--line)"/>'
        '<rect x="50%" width="1" height="100%" fill="var(--soft)"/>'
        f'<rect x="{low:.2f}%" width="{high - low:.2f}%" y="32%" height="36%" rx="4" fill="{colour}" opacity=".45"/>'
        f'<circle cx="{rate:.2f}%" cy="50%" r="5" fill="{colour}"/></svg>'
    )


def prompt(number: int, row: Mapping[str, Any]) -> str:
    """One prompt and all answers to it, open for the first few."""
    cards = "".join(_card(name, answers) for name, answers in row["answers"].items())
    opened = " open" if number <= 3 else ""
    reference = row["columns"].get("answer")
    said = "" if reference is None else f'<div class="soft">reference: {escape(str(reference))}</div>'
    return (
        f"<details{opened}><summary>{number}. {escape(question(row['prompt']))}</summary>{said}"
        f'<div class="answers">{cards}</div></details>'
    )


def _card(name: str, answers: Mapping[str, Any]) -> str:
    parts = [f"<div><strong>{escape(name)}</strong>"]
    for mode in MODES:
        for answer in answers[mode]:
            parts.append(f'<div class="soft">{escape(_said(mode, answer))}</div>')
            parts.append(f'<div class="text">{escape(answer["text"].strip()) or "(empty)"}</div>')
    return "".join([*parts, "</div>"])


def _said(mode: str, answer: Mapping[str, Any]) -> str:
    """Mode, length and scores of one answer, in a line."""
    length = f"{answer['tokens']} tokens" + ("" if answer["finished"] else ", cut at the limit")
    errors = answer["errors"]
    scores = [f"{name} {table.number(score)}" for name, score in answer["scores"].items() if name not in errors]
    failed = [f"{name} failed: {error}" for name, error in errors.items()]
    return " · ".join([mode, *scores, *failed, length])
