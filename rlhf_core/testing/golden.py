"""Golden cases of a reward: a JSONL file beside its module that says what it should score.

    {"case": "full", "prompt": "What is 2+2?", "completion": "<answer>4</answer>", "answer": "4", "score": 1}

`case`: full (deserves the best score; every hackability probe is made from it), partial, none or malformed.
`prompt`: text, or chat messages. `score`: a number, `null` where the reward does not apply, or `[low, high]`.
`parameters`: the reward's, by name. `reward`: its name, in a file that serves several. `allows`: a mapping of probes
that may score as much as this case to the reason why. Every other key is a column of the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_core.errors import UserError
from rlhf_core.inputs import parse_json, read_text

CASES = ("full", "partial", "none", "malformed")
RESERVED = ("case", "prompt", "completion", "score", "parameters", "reward", "allows")
TOLERANCE = 1e-3  # so that a third can be written as 0.333


@dataclass(frozen=True)
class Row:
    """A prompt (messages), an answer to it, and the data's other columns. `location` is what messages call it."""

    location: str
    prompt: list[dict[str, str]]
    completion: str
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One line of the file."""

    case: str
    row: Row
    score: float | tuple[float, float] | None
    parameters: Mapping[str, Any]
    allows: Mapping[str, str]

    def agrees(self, score: float | None) -> bool:
        if score is None or self.score is None:
            return score is self.score
        low, high = self.score if isinstance(self.score, tuple) else (self.score, self.score)
        return low - TOLERANCE <= score <= high + TOLERANCE

    @property
    def expected(self) -> str:
        return f"from {self.score[0]:g} to {self.score[1]:g}" if isinstance(self.score, tuple) else shown(self.score)


def shown(score: float | None) -> str:
    return "None" if score is None else f"{score:.4g}"


def file_beside(module: Path) -> Path:
    """Where the golden cases of this module are: `golden.jsonl` in a package, else `MODULE_golden.jsonl`."""
    return module.with_name("golden.jsonl" if module.name == "__init__.py" else f"{module.stem}_golden.jsonl")


def read(file: Path, reward: str, probes: tuple[str, ...]) -> tuple[list[Case], list[str]]:
    """(the cases of `reward`, what is wrong with the file). `probes` are the names that `allows` may use."""
    cases, faults = [], []
    try:
        lines = read_text(file).split("\n")
    except UserError as error:
        return [], [str(error)]
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        location = f"{file.name} line {number}"
        try:
            values = parse_json(line, "the line")
            if not isinstance(values, dict):
                raise ValueError("expected an object with named values")
            if values.get("reward", reward) == reward:
                cases.append(_case(location, values, probes))
        except (UserError, ValueError) as error:
            faults.append(f"{location}: {error}")
    return cases, faults


def _case(location: str, values: dict[str, Any], probes: tuple[str, ...]) -> Case:
    if missing := [key for key in ("case", "prompt", "completion", "score") if key not in values]:
        raise ValueError(f"{', '.join(missing)} is missing")
    if values["case"] not in CASES:
        raise ValueError(f"case is one of {', '.join(CASES)}, not {values['case']!r}")
    if not isinstance(values["completion"], str):
        raise ValueError("completion is text")
    allows = values.get("allows", {})
    if not isinstance(allows, dict) or not all(isinstance(why, str) and why.strip() for why in allows.values()):
        raise ValueError("allows maps the name of a probe to the reason why it may score as much")
    if unknown := allows.keys() - set(probes):
        raise ValueError(f"allows names no probe {', '.join(sorted(unknown))}; the probes are {', '.join(probes)}")
    parameters = values.get("parameters", {})
    if not isinstance(parameters, dict):
        raise ValueError("parameters maps names to values")
    columns = {key: value for key, value in values.items() if key not in RESERVED}
    row = Row(location, as_messages(values["prompt"]), values["completion"], columns)
    return Case(values["case"], row, _score(values["score"]), parameters, allows)


def as_messages(prompt: Any) -> list[dict[str, str]]:
    """Text as one message of the user's; messages as they are."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if (
        isinstance(prompt, list)
        and prompt
        and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in prompt)
    ):
        return prompt
    raise ValueError("prompt is text, or a list of {role, content}")


def _score(value: Any) -> float | tuple[float, float] | None:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    if isinstance(value, list) and len(value) == 2 and all(isinstance(v, int | float) for v in value):
        return value[0], value[1]
    raise ValueError(f"score is a number, null or [low, high], not {value!r}")
