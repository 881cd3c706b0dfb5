"""The answers in a run's samples.jsonl, by prompt, and pairs of them."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_core import UserError
from rlhf_core.commands import RewardSpec, Screen, finite, language, path_of, read_config, read_samples
from rlhf_tools.preferences import showing, writing
from rlhf_tools.preferences.selecting import Prompt, Rated, select
from rlhf_tools.preferences.words import say
from rlhf_tools.results import total

SAMPLES = "samples.jsonl"
STEPS = re.compile(r"(\d*)-(\d*)|(\d+)")


def run(
    given: str, steps: str | None, output: str, as_json: bool, lang: str | None, all_pairs: bool, balance_length: bool,
    **values: Any,
) -> None:  # fmt: skip
    """Read, select, write and show. Raises `UserError`."""
    started, lang, screen = time.perf_counter(), language(lang), Screen(quiet=as_json)
    files = writing.places(output)
    writing.refuse_existing(*files)
    folder = path_of(given, "RUN")
    rewards = rewards_of(folder)
    wanted = read_steps(steps)
    with screen.working(say(lang, "Reading {what} …", what=folder / SAMPLES)):
        prompts, damaged = read(folder, {spec.label: spec.weight for spec in rewards}, wanted)
        if not prompts:
            raise UserError(f"{given}: no answers of the steps {steps}" if steps else f"{given}: no answers")
        selected = select(prompts, every=all_pairs, balance=balance_length, **values)
    showing.finish(
        screen, lang, files, prompts, selected, ", ".join(map(str, rewards)), as_json=as_json,
        extra=[("{damaged} lines of samples.jsonl are damaged, and left out", {"damaged": damaged})] if damaged else [],
        source=str(folder), steps=steps, judge=[{"spec": str(spec)} for spec in rewards], balanced=balance_length,
        all_pairs=all_pairs, damaged_lines=damaged, seconds=time.perf_counter() - started,
    )  # fmt: skip


def rewards_of(folder: Path) -> list[RewardSpec]:
    """Those of a run, with their weights."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is no run's folder: it has no config.yaml")
    config = read_config(folder / "config.yaml")
    entries = config.get("reward") or []
    specs = [RewardSpec.read(entry) for entry in ([entries] if isinstance(entries, str) else entries)]
    if trained := config.get("reward_model"):
        specs.append(RewardSpec("reward_model", {"path": trained}))
    if not (folder / SAMPLES).is_file() or not (folder / SAMPLES).stat().st_size:
        raise UserError(f"{folder}: the run has no samples; ppo and grpo write {SAMPLES} as they train")
    return specs


def read_steps(text: str | None) -> tuple[int, float]:
    """(first, last) of --steps."""
    if text is None:
        return 0, float("inf")
    if not (found := STEPS.fullmatch(text.strip())) or text.strip() == "-":
        raise UserError(f"--steps {text}: write A-B, A- or -B, such as 100-200")
    first, last, one = found.groups()
    if one:
        return int(one), int(one)
    bounds = int(first or 0), float(last or "inf")
    if bounds[0] > bounds[1]:
        raise UserError(f"--steps {text}: the first is after the last")
    return bounds


def read(folder: Path, weights: Mapping[str, float], steps: tuple[int, float]) -> tuple[list[Prompt], int]:
    """(the answers by prompt, the number of damaged lines). A prompt with other columns is another one: rewards scored
    by them.
    """
    found: dict[str, Prompt] = {}
    damaged, prompt = 0, None
    for sample in read_samples(folder / SAMPLES):
        if sample is not None and "chosen" in sample:
            raise UserError(f"{folder}: its samples are pairs already, those that it was trained on")
        if sample is None or not _is_whole(sample):
            damaged += 1
            continue
        if steps[0] <= sample["step"] <= steps[1]:
            columns = given if isinstance(given := sample.get("columns"), dict) else {}
            if prompt is None or prompt.messages != sample["prompt"] or prompt.columns != columns:
                new = Prompt(sample["prompt"], [], columns)
                prompt = found.setdefault(repr([sample["prompt"], columns]), new)
            prompt.answers.append(_rated(sample, weights, folder.name))
    return list(found.values()), damaged


def _is_whole(sample: Mapping[str, Any]) -> bool:
    """Whether the prompt is turns, the scores are numbers or None, and the errors texts."""
    prompt, scores, errors = sample["prompt"], sample["rewards"], sample.get("errors") or {}
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and all(isinstance(turn, dict) and "role" in turn and "content" in turn for turn in prompt)
        and all(score is None or finite(score) is not None for score in scores.values())
        and isinstance(errors, dict)
        and all(isinstance(error, str) for error in errors.values())
    )


def _rated(sample: Mapping[str, Any], weights: Mapping[str, float], run: str) -> Rated:
    errors = sample.get("errors") or {}
    named = weights if weights.keys() >= sample["rewards"].keys() else dict.fromkeys(sample["rewards"], 1.0) | weights
    finished, error = sample.get("finished", True) is not False, next(iter(errors.values()), None)
    score = total(sample["rewards"], errors, named)
    return Rated(sample["completion"], score, run, error, finished, {"step": sample["step"]})
