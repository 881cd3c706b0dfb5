"""Ask one model, measure its answers, and write the results.

rlhf eval MODEL --data FILE --reward NAME --samples 8
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rlhf_core import Catalog, RunStopped
from rlhf_core.commands import Screen, bootstrap_mean, claim, mean, write_whole
from rlhf_tools import eval_page, eval_table, kept
from rlhf_tools.answering import Asking, answers, choose_folder, prepare, resolved
from rlhf_tools.candidates import Candidate
from rlhf_tools.measures import ks, majority, passing
from rlhf_tools.results import MODES, Answer, Answers

FILES = ("eval.json", "eval.html")


def run(
    candidate: Candidate,
    catalog: Catalog,
    *,
    output: str | None,
    threshold: float | None,
    fresh: bool,
    **values: Any,
) -> None:
    """Ask, show, and write eval.json and eval.html. Raises `UserError` before weights load."""
    screen = Screen()
    with claim(choose_folder(output, "eval", FILES), "--output", rename=output is None) as folder:
        with screen.working("Reading data and model configurations …"):
            asking = prepare([candidate], catalog, **values)
        screen.resolved(resolved(asking, folder, "no reward: lengths and answers only. To score them: --reward NAME"))
        given, note = _given(asking, screen, fresh)
        result = measure(asking, given, threshold, [note] if note else [])
        write_whole(folder / FILES[0], json.dumps(result, ensure_ascii=False, indent=1, default=str))
        write_whole(folder / FILES[1], eval_page.render(result))
    eval_table.show(screen, result)
    screen.say(f"\n{folder / FILES[1]}  {folder / FILES[0]}", "bold")
    if asking.rewards.stop_reason:
        raise RunStopped(asking.rewards.stop_reason)


def _given(asking: Asking, screen: Screen, fresh: bool) -> tuple[dict[str, Answers], str]:
    """(the model's answers by mode, what is to be said of where they are from)."""
    against = kept.reason_against(asking)
    key = "" if against else kept.key_of(asking)
    try:
        if key and not fresh and (found := kept.find(key)):
            return found[0], f"answered on {found[1]}, and taken from the cache; to answer anew: --fresh"
        asking.rewards.start()
        with screen.working(f"{asking.candidates[0].name} answers …"):
            given = answers(asking, 0)
    finally:
        asking.rewards.close()
    against = against or kept.keep(key, given)
    return given, f"not kept for another time: {against}" if against else ""


def measure(
    asking: Asking, given: dict[str, Answers], threshold: float | None, notes: Sequence[str] = ()
) -> dict[str, Any]:
    """The content of eval.json, from which table and page are made."""
    one, info, columns = asking.candidates[0], asking.infos[0], asking.questions.columns
    rewards = asking.rewards.rewards
    limits = {r.name: threshold if threshold is not None else _highest(r.reward.range) for r in rewards}
    voted = any(value is not None for value in columns.get("answer", []))
    return {
        "model": {"name": one.name, "given": one.given, "model": info.path, "adapter": info.adapter}
        | {"parameters": info.parameters},
        "settings": {
            "data": asking.questions.source,
            "prompts": len(asking.prompts),
            "samples": asking.samples,
            "temperature": asking.temperature,
            "max_completion_length": asking.max_completion_length,
            "system_prompt": asking.system_prompt,
            "rewards": [{"name": r.name, "spec": str(r.spec), "weight": r.weight} for r in rewards],
            "threshold": limits,
            "seed": asking.seed,
            "load_in_4bit": asking.load_in_4bit,
        },
        "notes": [*asking.questions.warnings, *notes, *failures(given)],
        "results": {mode: _mode(given[mode], limits, voted=voted, seed=asking.seed) for mode in MODES},
        "prompts": [
            {
                "prompt": prompt,
                "columns": {name: values[i] for name, values in columns.items()},
                "answers": {one.name: {mode: [asdict(answer) for answer in given[mode][i]] for mode in MODES}},
            }
            for i, prompt in enumerate(asking.prompts)
        ],
    }


def failures(given: Mapping[str, Answers]) -> list[str]:
    """Why each reward that failed did so most often."""
    every = (answer for groups in given.values() for group in groups for answer in group)
    causes = Counter(cause for answer in every for cause in answer.errors.items())
    most: dict[str, str] = {}
    for (name, error), times in causes.most_common():
        most.setdefault(name, f"reward {name} failed on {times} answers: {error}")
    return list(most.values())


def _highest(limits: tuple[float, float] | None) -> float | None:
    return limits[1] if limits and math.isfinite(limits[1]) else None


def _mode(answers: Answers, limits: dict[str, float | None], *, voted: bool, seed: int) -> dict[str, Any]:
    """Estimates over prompts of the answers of one mode; `voted`: a majority is asked for."""
    most = max(map(len, answers))

    def over_prompts(values: Sequence[float | None]) -> dict[str, Any] | None:
        found = bootstrap_mean([value for value in values if value is not None], seed)
        return asdict(found) if found else None

    def of_reward(name: str, threshold: float | None) -> dict[str, Any]:
        return {
            "mean": over_prompts([_mean(group, name) for group in answers]),
            "pass": {}
            if threshold is None
            else {str(k): over_prompts([passing(group, name, threshold, k) for group in answers]) for k in ks(most)},
            "majority": over_prompts([majority(g, name) for g in answers]) if voted and most > 1 else None,
            "failed": sum(name in answer.errors for group in answers for answer in group),
        }

    return {
        "rewards": {name: of_reward(name, threshold) for name, threshold in limits.items()},
        "total": over_prompts([mean([a.total for a in group if a.total is not None]) for group in answers]),
        "tokens": over_prompts([mean([answer.tokens for answer in group]) for group in answers]),
        "characters": over_prompts([mean([len(answer.text) for answer in group]) for group in answers]),
        "finished": over_prompts([mean([answer.finished for answer in group]) for group in answers]),
    }


def _mean(group: Sequence[Answer], reward: str) -> float | None:
    return mean([score for answer in group if (score := answer.scores[reward]) is not None])
