"""Ask models the same prompts, one model in memory at a time, and write the results.

rlhf compare A B
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf_core import Catalog, RunStopped
from rlhf_core.commands import Screen, claim, write_whole
from rlhf_tools import judging, page, table
from rlhf_tools.answering import Asking, answers, choose_folder, prepare, resolved
from rlhf_tools.candidates import Candidate
from rlhf_tools.results import MODES, Answers, summarize

FILES = ("comparison.json", "comparison.html")
WITHOUT_REWARDS = "no reward: lengths and answers only. Rewards decide the win rate: --reward NAME"


def run(
    candidates: list[Candidate], catalog: Catalog, *, output: str | None, judge: str | None = None, **values: Any
) -> None:
    """Compare, show, and write comparison.json and comparison.html. Raises `UserError` before weights load."""
    screen = Screen()
    bound = None if judge is None else judging.bind_judge(judge, catalog)
    with claim(choose_folder(output, "compare", FILES), "--output", rename=output is None) as folder:
        with screen.working("Reading data and model configurations …"):
            comparison = prepare(candidates, catalog, **values)
        lines = resolved(comparison, folder, "" if bound else WITHOUT_REWARDS)
        if bound is not None:
            tokens, others = comparison.max_completion_length, len(candidates) - 1
            lines += [("Judge", str(bound.spec))]
            lines += judging.said(bound, comparison.prompts, others, comparison.samples, tokens)
        screen.resolved(lines)
        try:
            comparison.rewards.start()
            given = {}
            for number, candidate in enumerate(candidates):
                with screen.working(f"{candidate.name} answers ({number + 1} of {len(candidates)}) …"):
                    given[candidate.name] = answers(comparison, number)
        finally:
            comparison.rewards.close()
        result, stopped = gather(comparison, given), None
        _write(folder, result)
        if bound is not None:
            try:
                with screen.working(f"{bound.name} compares the answers …") as progress:
                    add_judged(result, judging.judged(bound, comparison.prompts, given, progress), str(bound.spec))
            except RunStopped as error:
                stopped = error
            _write(folder, result)
    table.show(screen, result)
    screen.say(f"\n{folder / 'comparison.html'}  {folder / 'comparison.json'}", "bold")
    if stopped or comparison.rewards.stop_reason:
        raise stopped or RunStopped(comparison.rewards.stop_reason)


def add_judged(result: dict[str, Any], judged: dict[str, dict[str, Any]], spec: str) -> None:
    """Put each model's win rate by the judge beside that by the rewards."""
    result["settings"]["judge"] = spec
    for mode, others in judged.items():
        for name, found in others.items():
            result["results"][mode]["against_baseline"][name]["judged"] = found


def gather(comparison: Asking, answers: dict[str, dict[str, Answers]]) -> dict[str, Any]:
    """The content of comparison.json, from which table and page are made."""
    columns = comparison.questions.columns
    names = comparison.reward_names
    return {
        "models": [
            {"name": one.name, "given": one.given, "model": info.path, "adapter": info.adapter}
            | {"parameters": info.parameters}
            for one, info in zip(comparison.candidates, comparison.infos, strict=True)
        ],
        "settings": {
            "data": comparison.questions.source,
            "prompts": len(comparison.prompts),
            "samples": comparison.samples,
            "temperature": comparison.temperature,
            "max_completion_length": comparison.max_completion_length,
            "system_prompt": comparison.system_prompt,
            "rewards": [{"name": r.name, "spec": str(r.spec), "weight": r.weight} for r in comparison.rewards.rewards],
            "seed": comparison.seed,
            "load_in_4bit": comparison.load_in_4bit,
        },
        "notes": list(comparison.questions.warnings),
        "results": {
            mode: summarize({name: both[mode] for name, both in answers.items()}, names, comparison.seed)
            for mode in MODES
        },
        "prompts": [
            {
                "prompt": prompt,
                "columns": {name: values[i] for name, values in columns.items()},
                "answers": {
                    name: {mode: [asdict(answer) for answer in both[mode][i]] for mode in MODES}
                    for name, both in answers.items()
                },
            }
            for i, prompt in enumerate(comparison.prompts)
        ],
    }


def _write(folder: Path, result: dict[str, Any]) -> None:
    text = json.dumps(result, ensure_ascii=False, indent=1, default=str)
    for name, content in zip(FILES, (text, page.render(result)), strict=True):
        write_whole(folder / name, content)
