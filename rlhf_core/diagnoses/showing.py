"""What `rlhf diagnose` shows, and the table of the guide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_core.diagnoses.catalog import DIAGNOSES, text_of
from rlhf_core.diagnoses.finding import ALL
from rlhf_core.diagnoses.reading import Summary
from rlhf_core.ui.screen import Screen
from rlhf_core.words import say

STYLE = {"error": "bold red", "warning": "bold yellow", "info": "bold"}
LEVELS = {"error": "error", "warning": "warning", "info": "no fault"}
SAMPLE = 300  # characters of an answer


def show(screen: Screen, run: Summary, found: Sequence[dict[str, Any]], lang: str) -> None:
    wrong = sum(line["level"] != "info" for line in found)
    method = run.method or "?"
    if wrong:
        head = say(lang, "{method}, step {step}: {wrong} found.", method=method, step=run.step, wrong=wrong)
    else:
        head = say(lang, "{method}, step {step}: nothing is wrong.", method=method, step=run.step)
    screen.say(head, "bold")
    for line in found:
        title = say(lang, "{name} ({level}), step {step}", **{**line, "level": say(lang, LEVELS[line["level"]])})
        screen.say(f"\n{title}", STYLE[line["level"]])
        screen.say(text_of(line["name"], lang))
        for evidence in line["evidence"]:
            screen.say(f"  {evidence}")
        for sample in line["samples"]:
            screen.say(f"  │ {_sample(sample)}", "dim")
        if line["command"]:
            screen.say(f"→ {line['command']}", "bold")


def _sample(sample: dict[str, Any]) -> str:
    text = sample.get("completion", f"{sample.get('chosen')} / {sample.get('rejected')}")
    text = " ".join(str(text).split())
    scores = ", ".join(f"{name} {score:g}" for name, score in (sample.get("rewards") or {}).items())
    shortened = f"{text[:SAMPLE]}…" if len(text) > SAMPLE else text
    return f"step {sample['step']}{f' ({scores})' if scores else ''}: {shortened}"


def listed(lang: str) -> list[dict[str, Any]]:
    """Every diagnosis as plain data."""
    return [
        {
            "name": one.name,
            "level": one.level,
            "methods": list(one.methods),
            "says": say(lang, one.says),
            "remedy": say(lang, one.remedy),
            "threshold": say(lang, one.threshold),
            "source": one.source,
            "command": one.command,
        }
        for one in DIAGNOSES
    ]


def show_list(screen: Screen, lang: str) -> None:
    for one in listed(lang):
        methods = say(lang, "every method") if len(one["methods"]) == len(ALL) else ", ".join(one["methods"])
        screen.say(f"\n{one['name']}  ({say(lang, LEVELS[one['level']])}; {methods})", STYLE[one["level"]])
        screen.say(f"{one['says']}{'' if lang == 'zh' else ' '}{one['remedy']}")
        screen.say(f"  {one['threshold']}\n  {one['source']}", "dim")


MARK = "<!-- generated: python -m rlhf_core.diagnoses.showing -->\n"
PAGES = {"en": "docs/guide/diagnoses.md", "zh": "docs/guide/diagnoses.zh-CN.md"}


def with_table(page: str, lang: str) -> str:
    """A page of the guide with the table as it is now, after its mark."""
    before, mark, _ = page.partition(MARK)
    return f"{before}{mark}\n{table(lang)}" if mark else page


def table(lang: str) -> str:
    """The guide's table, in Markdown."""
    heads = ("name", "what it means, and what to do", "found when", "source")
    lines = [" | ".join(say(lang, head) for head in heads), "|".join("---" for _ in heads)]
    between = "" if lang == "zh" else " "
    for one in listed(lang):
        level = say(lang, LEVELS[one["level"]])
        methods = say(lang, "every method") if len(one["methods"]) == len(ALL) else ", ".join(one["methods"])
        cells = (f"`{one['name']}`<br>{level}; {methods}", f"{one['says']}{between}{one['remedy']}")
        lines.append(" | ".join((*cells, one["threshold"], one["source"])))
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines) + "\n"


if __name__ == "__main__":
    for language, name in PAGES.items():
        file = Path(name)
        file.write_text(with_table(file.read_text(encoding="utf-8"), language), encoding="utf-8")
