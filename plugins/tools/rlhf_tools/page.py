"""comparison.html: one file that needs no network and no script, made of compare.html. What it is given is escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_core.commands import document, question, template
from rlhf_tools import table
from rlhf_tools.results import MODES

HERE = Path(__file__).parent
STYLE = """
thead th { min-width: 6rem }
.chart { max-width: 50rem; margin: .6rem 0 } .chart > div { display: grid; grid-template-columns: 12rem 1fr 7.5rem;
  gap: .8rem; align-items: center; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; margin: .4rem 0 }
.chart svg { width: 100%; height: 1.4rem; display: block; overflow: visible; fill: var(--even) }
.chart svg.better { fill: var(--good) } .chart svg.worse { fill: var(--bad) }
.chart .line { fill: var(--line) } .chart .half { fill: var(--soft) } .chart .interval { opacity: .45 }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: .8rem;
  margin-top: .6rem } .answers .card { overflow-wrap: anywhere }
@media (max-width: 34rem) { .chart > div { grid-template-columns: 1fr auto; gap: 0 .8rem }
  .chart svg { grid-column: 1 / -1; order: 1 } }
"""


def render(result: Mapping[str, Any]) -> str:
    """The HTML of the page."""
    names = [model["name"] for model in result["models"]]
    body = template(HERE, "compare.html").render(
        settings=settings(result["models"], result["settings"]),
        notes=result["notes"],
        names=names,
        rewards=result["settings"]["rewards"],
        modes=[_mode(mode, names, result) for mode in MODES],
        prompts=[prompt(row) for row in result["prompts"]],
    )
    return document(" and ".join([", ".join(names[:-1]), names[-1]]) + " compared", [body], STYLE)


def settings(models: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was asked whom, with which rewards."""
    rows = [(model["name"], model["given"]) for model in models]
    rows.append(("prompts", f"{settings['prompts']} of {settings['data']}"))
    rows.append(("rewards", ", ".join(reward["spec"] for reward in settings["rewards"]) or "none"))
    rows += [("judge", settings["judge"])] if settings.get("judge") else []
    if settings["system_prompt"]:
        rows.append(("system prompt", settings["system_prompt"]))
    rows.append(("longest answer", f"{settings['max_completion_length']} tokens"))
    return rows


def _mode(mode: str, names: Sequence[str], result: Mapping[str, Any]) -> dict[str, Any]:
    """Heading, table, win rates and notes of one mode."""
    summary = result["results"][mode]
    return {
        "title": table.title(mode, result),
        "rows": list(table.rows(names, summary)),
        "wins": list(_wins(summary["against_baseline"])),
        "judged": list(_wins({name: other.get("judged") or {} for name, other in summary["against_baseline"].items()})),
        "notes": list(table.notes(summary)),
    }


def _wins(others: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Win rates as dots on their intervals, in percent."""
    for name, other in others.items():
        if not (found := other.get("win_rate")):
            continue
        low, high, rate = (100 * found[key] for key in ("low", "high", "rate"))
        side = "better" if low > 50 else "worse" if high < 50 else "even"
        figures = {"low": f"{low:.2f}", "width": f"{high - low:.2f}", "rate": f"{rate:.2f}"}
        yield {"name": name, "said": table.wins(found), "side": side, **figures}


def prompt(row: Mapping[str, Any]) -> dict[str, Any]:
    """One prompt and all answers to it."""
    reference = row["columns"].get("answer")
    return {
        "question": question(row["prompt"]),
        "reference": None if reference is None else str(reference),
        "models": [(name, list(_answers(answers))) for name, answers in row["answers"].items()],
    }


def _answers(answers: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is said of each answer of a model, and its text."""
    for mode in MODES:
        yield from ((_said(mode, answer), answer["text"].strip()) for answer in answers[mode])


def _said(mode: str, answer: Mapping[str, Any]) -> str:
    """Mode, length and scores of one answer, in a line."""
    length = f"{answer['tokens']} tokens" + ("" if answer["finished"] else ", cut at the limit")
    errors = answer["errors"]
    scores = [f"{name} {table.number(score)}" for name, score in answer["scores"].items() if name not in errors]
    failed = [f"{name} failed: {error}" for name, error in errors.items()]
    return " · ".join([mode, *scores, *failed, length])
