"""What a run's folder holds, for its page: also of one that is still training, or was killed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_core.errors import UserError
from rlhf_core.inputs import parse_json, parse_yaml, path_of, read_text
from rlhf_core.outputs import read_lines
from rlhf_core.report.metrics import Curves, read_curves
from rlhf_core.report.samples import BYTES, Samples, cut, fitting, prompt_turns, read_samples

LIMIT = 1 << 28  # bytes of evaluation.json
EVALUATIONS = 24  # of which the answers are kept, at most: the first, the last, and others between
HELD_OUT_BYTES = 800_000  # of these answers
HELD_OUT = 64  # prompts of which the answers are kept
LONGEST = 4000  # characters of such an answer


@dataclass
class RunRecord:
    """A run as its page needs it. `evaluations`: lines of evaluations.jsonl, from before training on."""

    folder: Path
    config: dict[str, Any]
    manifest: dict[str, Any] = field(default_factory=dict)
    curves: Curves = field(default_factory=Curves)
    samples: Samples = field(default_factory=Samples)
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    diagnoses: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def step(self) -> int:
        """The last step that was logged."""
        return self.curves.steps[-1] if self.curves.steps else 0

    @property
    def done(self) -> bool:
        return (self.folder / "model").is_dir() and any((self.folder / "model").iterdir())


def read_run(given: str | Path, size: int = BYTES) -> RunRecord:
    """The run in a folder. Raises `UserError` if there is none."""
    folder = path_of(given, "run")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{given} is no folder of a run: there is no config.yaml in it")
    config = parse_yaml(read_text(folder / "config.yaml", "config.yaml"), f"{folder / 'config.yaml'}")
    run = RunRecord(folder, config if isinstance(config, dict) else {})
    run.manifest = _object(folder / "manifest.json")
    run.curves = read_curves(read_lines(folder / "metrics.jsonl"))
    run.samples = read_samples(folder / "samples.jsonl", size)
    evaluation = _object(folder / "evaluation.json")
    run.before, run.after = (_evaluation(evaluation.get(name)) for name in ("before", "after"))
    run.evaluations = [row for row in read_lines(folder / "evaluations.jsonl") if isinstance(row.get("step"), int)]
    run.diagnoses = [row for row in read_lines(folder / "diagnoses.jsonl") if isinstance(row.get("name"), str)]
    return run


def _object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty for one that is missing or damaged."""
    with suppress(UserError):
        found = parse_json(read_text(file, limit=LIMIT), file.name)
        if isinstance(found, dict):
            return found
    return {}


def _evaluation(found: Any) -> dict[str, Any] | None:
    """An evaluation with all its parts, each of the type that it should be."""
    if not isinstance(found, Mapping):
        return None
    kinds: dict[str, type] = {"metrics": dict, "rewards": dict, "prompts": list, "answers": list, "scores": list}
    parts = {name: found.get(name) if isinstance(found.get(name), kind) else kind() for name, kind in kinds.items()}
    return {**parts, "length": found.get("length"), "finished": found.get("finished")}


def held_out(run: RunRecord) -> dict[str, Any]:
    """The answers to held-out prompts, each prompt's over time: `prompts`, and `answers` with the step of each."""
    if run.before is None:
        return {"prompts": [], "answers": []}
    stages = [(row["step"], row) for row in run.evaluations if isinstance(row.get("answers"), list)]
    if not stages:
        stages = [(0, run.before), *([(run.step, run.after)] if run.after else [])]
    if len(stages) > EVALUATIONS:
        last = len(stages) - 1
        stages = [stages[round(i * last / (EVALUATIONS - 1))] for i in range(EVALUATIONS)]
    texts = [str(text) for _, stage in stages for text in stage["answers"][:HELD_OUT]]
    longest = min(LONGEST, fitting(texts, HELD_OUT_BYTES))
    return {
        "prompts": [prompt_turns(prompt, LONGEST) for prompt in run.before["prompts"][:HELD_OUT]],
        "answers": [
            {
                "step": step,
                "texts": [cut(str(text), longest) for text in stage["answers"][:HELD_OUT]],
                "scores": (stage.get("scores") or [])[:HELD_OUT],
                "tokens": (stage.get("tokens") or [])[:HELD_OUT],
            }
            for step, stage in stages
        ],
    }
