"""What a run's folder holds, for its page: also of one that is still training, or was killed."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_core import runs
from rlhf_core.errors import UserError
from rlhf_core.grammar import RewardSpec
from rlhf_core.inputs import parse_json, parse_yaml, path_of, read_text
from rlhf_core.outputs import read_lines
from rlhf_core.report.metrics import POINTS, Curves, finite, read_curves
from rlhf_core.report.samples import BYTES, Samples, cut, fitting, prompt_turns, read_samples
from rlhf_core.ui.text import shown

LIMIT = 1 << 28  # bytes of evaluation.json
EVALUATIONS = 24  # of which the answers are kept, at most: the first, the last, and others between
HELD_OUT_BYTES = 800_000  # of these answers
HELD_OUT = 64  # prompts of which the answers are kept
LONGEST = 4000  # characters of such an answer


@dataclass
class RunRecord:
    """A run as its page needs it. `evaluations`: lines of evaluations.jsonl, from before training on. `after` is the
    newest of them, after `after_step`, in a run that is not at its end. `weights`: of the rewards, by name.
    """

    folder: Path
    config: dict[str, Any]
    manifest: dict[str, Any] = field(default_factory=dict)
    curves: Curves = field(default_factory=Curves)
    samples: Samples = field(default_factory=Samples)
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    after_step: int | None = None
    weights: dict[str, float] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    diagnoses: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def step(self) -> int:
        """The last step that was logged."""
        return self.curves.steps[-1] if self.curves.steps else 0

    @functools.cached_property
    def state(self) -> str:
        """As `rlhf runs` tells it; of a process that writes the page of its own run, what it has noted."""
        noted = self.manifest.get("ended", {}).get("state")
        return noted if noted in (runs.DONE, runs.STOPPED, runs.FAILED) else runs.read(self.folder).state


def read_run(given: str | Path, size: int = BYTES, points: int = POINTS) -> RunRecord:
    """The run in a folder, with `size` bytes of answers and curves of `points` points. Raises `UserError`."""
    folder = path_of(given, "run")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{given} is no folder of a run: there is no config.yaml in it")
    config = parse_yaml(read_text(folder / "config.yaml", "config.yaml"), f"{folder / 'config.yaml'}")
    run = RunRecord(folder, config if isinstance(config, dict) else {})
    run.manifest = _manifest(_object(folder / "manifest.json"))
    run.curves = read_curves(read_lines(folder / "metrics.jsonl"), points)
    with suppress(UserError):
        run.weights = {spec.label: spec.weight for spec in map(RewardSpec.read, texts(run.config.get("reward")))}
    run.samples = read_samples(folder / "samples.jsonl", size, tuple(run.weights.items()))
    evaluation = _object(folder / "evaluation.json")
    run.before, run.after = (_evaluation(evaluation.get(name)) for name in ("before", "after"))
    run.evaluations = [
        {"step": row["step"], **parts}
        for row in read_lines(folder / "evaluations.jsonl")
        if isinstance(row.get("step"), int) and (parts := _evaluation(row))
    ]
    if run.evaluations and run.evaluations[-1]["step"] < run.step and run.state != runs.DONE:
        run.after = None  # of a run that was made longer since
    if run.after is None and run.evaluations and run.evaluations[-1]["step"] > 0:
        run.after, run.after_step = run.evaluations[-1], run.evaluations[-1]["step"]
    run.diagnoses = [row for row in read_lines(folder / "diagnoses.jsonl") if isinstance(row.get("name"), str)]
    return run


def _object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty for one that is missing or damaged."""
    with suppress(UserError):
        found = parse_json(read_text(file, limit=LIMIT), file.name)
        if isinstance(found, dict):
            return found
    return {}


def listed(value: Any) -> list[Any]:
    """A list of a damaged file: empty for what is none."""
    return value if isinstance(value, list) else []


def mapped(value: Any) -> dict[Any, Any]:
    """An object of a damaged file: empty for what is none."""
    return value if isinstance(value, dict) else {}


def texts(value: Any) -> list[str]:
    """The texts of a list, or of a value that stands for a list of it alone."""
    values = value if isinstance(value, list) else [] if value in (None, "") else [value]
    return [str(each) for each in values]


def _figures(value: Any) -> dict[str, float | None]:
    """Scores or metrics by name, each a number or None; the names as they are shown."""
    return {shown(str(name)): finite(figure) for name, figure in mapped(value).items()}


def _manifest(found: dict[str, Any]) -> dict[str, Any]:
    """manifest.json with those parts that the page shows, each of the type that it should be."""
    data = mapped(found.get("data"))
    counts = {name: int(rows) for name in ("rows", "held_out") if (rows := finite(data.get(name))) is not None}
    known = {name: value for name, value in data.items() if name not in ("rows", "held_out")}
    return {
        **found,
        "data": {**known, **counts},
        "memory": {name: size for name, each in mapped(found.get("memory")).items() if (size := finite(each))},
        **{name: mapped(found.get(name)) for name in ("versions", "ended")},
        "plugins": listed(found.get("plugins")),
    }


def _evaluation(found: Any) -> dict[str, Any] | None:
    """An evaluation with all its parts, each of the type that it should be."""
    if not isinstance(found, Mapping):
        return None
    return {
        **{name: _figures(found.get(name)) for name in ("metrics", "rewards")},
        "prompts": listed(found.get("prompts")),
        "answers": [answer if isinstance(answer, str) else "" for answer in listed(found.get("answers"))],
        "scores": [_figures(scores) for scores in listed(found.get("scores"))],
        "tokens": [finite(tokens) for tokens in listed(found.get("tokens"))],
        **{name: finite(found.get(name)) for name in ("length", "finished")},
    }


def held_out(run: RunRecord) -> dict[str, Any]:
    """The answers to held-out prompts, each prompt's over time: `prompts`, and `answers` with the step of each."""
    if run.before is None:
        return {"prompts": [], "answers": []}
    stages = [(row["step"], row) for row in run.evaluations if row["answers"]]
    if not stages:
        stages = [(0, run.before), *([(run.step, run.after)] if run.after else [])]
    if len(stages) > EVALUATIONS:
        last = len(stages) - 1
        stages = [stages[round(i * last / (EVALUATIONS - 1))] for i in range(EVALUATIONS)]
    every = [text for _, stage in stages for text in stage["answers"][:HELD_OUT]]
    longest = min(LONGEST, fitting(every, HELD_OUT_BYTES))
    return {
        "prompts": [prompt_turns(prompt, LONGEST) for prompt in run.before["prompts"][:HELD_OUT]],
        "answers": [
            {
                "step": step,
                "texts": [cut(text, longest) for text in stage["answers"][:HELD_OUT]],
                "scores": stage["scores"][:HELD_OUT],
                "tokens": stage["tokens"][:HELD_OUT],
            }
            for step, stage in stages
        ],
    }
