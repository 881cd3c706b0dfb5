"""The page as one file: the first screen as text, curves and answers as compressed data for the script in it."""

from __future__ import annotations

import base64
import functools
import gzip
import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_core.diagnoses.catalog import BY_NAME, text_of
from rlhf_core.report import summary
from rlhf_core.report.charts import charts
from rlhf_core.report.metrics import finite
from rlhf_core.report.reading import RunRecord, held_out, listed, mapped
from rlhf_core.report.samples import cut, prompt_turns
from rlhf_core.runs import DONE
from rlhf_core.ui.page import HERE as UI
from rlhf_core.ui.page import document, template
from rlhf_core.ui.screen import number
from rlhf_core.ui.text import shown
from rlhf_core.words import say

HERE = Path(__file__).parent
LARGEST = 2_900_000  # bytes of a page of one run
FILE = "report.html"
LONGEST, LINE = 4000, 400  # characters of a setting, or a text; of a line of evidence, or a name
PLACES = ("output_dir",)  # options that every run has otherwise

# What the script says, by the names that it has for it.
WORDS = {
    "step": "step",
    "smoothing": "smoothing",
    "log": "log axis",
    "below_zero": "Values of 0 and below are left out here.",
    "zoom": "Drag to zoom, double-click to see all.",
    "nothing": "Nothing is logged yet.",
    "advantage": "advantage",
    "tokens": "tokens",
    "cut": "cut at the limit",
    "open": "(not closed)",
    "empty": "(empty)",
    "over_time": "the same prompt over time",
    "chosen": "chosen",
    "rejected": "rejected",
    "by_step": "one step",
    "spread": "largest spread",
    "ties": "all the same score",
    "best": "best",
    "worst": "worst",
    "longest": "longest",
    "cut_ones": "cut at the limit",
    "errors": "with an error",
    "training": "training",
    "held_out": "held-out prompts",
    "search": "search",
    "no_answers": "This run has no answers: its method samples none.",
    "some": "{kept} of {total} groups are in this page; samples.jsonl has all.",
    "back": "back to all",
    "none": "There is none.",
    "more": "more",
    "earlier": "earlier step",
    "later": "later step",
    "which": "which answers",
}


def render(runs: Sequence[RunRecord], lang: str) -> str:
    """The page of one run, or of several."""
    t = functools.partial(say, lang)
    changes = [summary.changes(run) for run in runs]
    views = [_view(run, rows, lang) for run, rows in zip(runs, changes, strict=True)]
    names = _names(runs)
    for view, name in zip(views, names, strict=True):
        view["name"] = name
    body = template(HERE, "report.html").render(
        runs=views,
        t=t,
        written=_written(runs, lang),
        differing=list(_differing(runs)),
        side_by_side=list(_side_by_side(changes, lang)),
    )
    page = {"runs": names, "words": {name: t(text) for name, text in WORDS.items()}, "charts": _charts(runs, lang)}
    answers = [
        {
            **{name: getattr(run.samples, name) for name in ("kind", "prompts", "groups", "total")},
            "names": [cut(name, LINE) for name in run.samples.names],
            "weights": {cut(name, LINE): weight for name, weight in run.weights.items()},
            "held": held_out(run),
        }
        for run in runs
    ]
    return document(
        " · ".join(names),
        [body],
        (UI / "uplot" / "uPlot.min.css").read_text(encoding="utf-8")
        + (HERE / "report.css").read_text(encoding="utf-8"),
        lang=lang,
        scripts=[
            (UI / "uplot" / "uPlot.iife.min.js").read_text(encoding="utf-8"),
            (HERE / "report.js").read_text(encoding="utf-8"),
        ],
        data={
            "page": json.dumps(page).replace("<", "\\u003c"),
            "curves": _packed([run.curves.plain() for run in runs]),
            "answers": _packed(answers),
        },
    )


def _packed(value: Any) -> str:
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()


def _names(runs: Sequence[RunRecord]) -> list[str]:
    """A name for each run: its folder's, with its parents' where two are called the same."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in runs]
    return [shown(name) for name in names]


def _written(runs: Sequence[RunRecord], lang: str) -> str:
    now = time.strftime("%Y-%m-%d %H:%M")
    if len(runs) == 1 and runs[0].state != DONE:
        return say(lang, "Written {time}, at step {step}; the run is not at its end.", time=now, step=runs[0].step)
    return say(lang, "Written {time}.", time=now)


def _charts(runs: Sequence[RunRecord], lang: str) -> list[dict[str, Any]]:
    columns: dict[str, list[float]] = {}
    for run in runs:
        for name, values in run.curves.columns.items():
            columns.setdefault(name, []).extend(value for value in values if value is not None)
    return charts(columns, [name for name, values in columns.items() if not any(values)], lang)


def _view(run: RunRecord, changes: Sequence[summary.Change], lang: str) -> dict[str, Any]:
    """A run as the template needs it."""
    output = f"{run.folder}-again"
    repeat = ["rlhf", "run", "--config", str(run.folder / "config.yaml"), "--output-dir", output]
    return {
        "facts": list(summary.facts(run, lang)),
        "verdict": summary.verdict(run, changes, lang),
        "after": say(lang, "step {step}", step=run.after_step) if run.after_step else say(lang, "after"),
        "changes": [_change(change, lang) for change in changes],
        "diagnoses": [_diagnosis(one, lang) for one in run.diagnoses],
        "config": [
            (cut(str(name), LINE), cut(_value(value), LONGEST))
            for name, value in run.config.items()
            if value not in (None, [], {})
        ],
        "made_of": list(_made_of(run, lang)),
        "repeat": shlex.join(repeat),
        "command": cut(str(run.manifest.get("command") or "?"), LONGEST),
    }


def _change(change: summary.Change, lang: str) -> dict[str, str]:
    said = number if change.before is None else summary.signed
    interval = "" if change.low is None else f"{said(change.low)} … {said(change.high)}"
    return {
        "label": cut(change.label(lang), LINE),
        "before": number(change.before),
        "after": number(change.after),
        "difference": "" if change.difference is None else summary.signed(change.difference),
        "interval": interval,
        "colour": {"better": "good", "worse": "bad"}.get(change.verdict, ""),
    }


def _diagnosis(one: Mapping[str, Any], lang: str) -> dict[str, Any]:
    samples = [sample for sample in listed(one.get("samples")) if isinstance(sample, Mapping)]
    text = text_of(one["name"], lang) if one["name"] in BY_NAME else str(one.get("text", ""))
    return {
        **{name: cut(str(one.get(name, "")), LINE) for name in ("name", "step", "command")},
        "level": one["level"] if one.get("level") in ("error", "info") else "warning",
        "text": cut(text, LONGEST),
        "evidence": [cut(str(line), LINE) for line in listed(one.get("evidence"))],
        "samples": [{"said": _of_sample(sample), "text": _text_of(sample)} for sample in samples[:3]],
    }


def _of_sample(sample: Mapping[str, Any]) -> str:
    scores = mapped(sample.get("rewards")) or mapped(sample.get("metrics"))
    said = ", ".join(f"{cut(str(name), LINE)} {number(finite(value))}" for name, value in scores.items())
    asked = prompt_turns(sample.get("prompt"), LINE)
    return f"{cut(str(sample.get('step', '?')), LINE)} · {said} · {asked[-1][1] if asked else ''}"


def _text_of(sample: Mapping[str, Any]) -> str:
    return cut(str(sample.get("completion") or sample.get("chosen") or ""), LONGEST // 2)


def _made_of(run: RunRecord, lang: str) -> Iterator[tuple[str, str]]:
    manifest = run.manifest
    yield from ((name, str(value)) for name, value in manifest.get("versions", {}).items())
    for plugin in manifest.get("plugins", []):
        kind, _, rest = str(plugin).partition(": ")
        yield kind, rest
    data = manifest.get("data", {})
    if "sha256" in data:
        yield say(lang, "fingerprint of the data"), f"sha256 {data['sha256']}"
    for name in ("python", "platform", "seed", "git_commit"):
        if manifest.get(name) is not None:
            yield name.replace("_", " "), str(manifest[name])


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _differing(runs: Sequence[RunRecord]) -> Iterator[tuple[str, list[str]]]:
    """The settings that not all runs have alike."""
    for name in dict.fromkeys(name for run in runs for name in run.config if name not in PLACES):
        values = [_value(run.config.get(name)) for run in runs]
        if len(set(values)) > 1:
            yield cut(str(name), LINE), ["–" if value == "null" else cut(value, LONGEST) for value in values]


def _side_by_side(runs: Sequence[Sequence[summary.Change]], lang: str) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Before and after of several runs, a line for each figure."""
    if len(runs) == 1:
        return
    known = [{(change.is_reward, change.name): change for change in rows} for rows in runs]
    for name in dict.fromkeys(name for changes in known for name in changes):
        label = next(changes[name] for changes in known if name in changes).label(lang)
        cells = []
        for changes in known:
            cell = _change(changes[name], lang) if name in changes else None
            text = f"{cell['before']} → {cell['after']}" if cell else "–"
            below = f"{cell['difference']}  {cell['interval']}" if cell else ""
            cells.append({"text": text, "below": below, "colour": cell["colour"] if cell else ""})
        yield cut(label, LINE), cells
