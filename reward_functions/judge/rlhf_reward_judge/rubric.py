"""Rubrics: what a judge looks at, with which weight, on which scale. YAML files, three of them in this package.

name: brief_and_true
language: en                    # zh or en: what the judge is told around the rubric
scale: [1, 5]                   # the lowest and the highest score of each criterion
guidance: …                     # for all criteria
reference: true                 # show the judge the data's column `answer`
criteria:
  - {name: correctness, weight: 3, guidance: …}
examples:                       # answers with the scores that they deserve
  - {question: …, answer: …, scores: {correctness: 1}, why: …}
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlhf_core import UserError
from rlhf_core.commands import did_you_mean, parse_yaml, path_of, read_text

SHIPPED = ("helpful", "medical_en", "medical_zh")
WIDEST = 100  # steps of a scale


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Criterion(_Part):
    name: str = Field(min_length=1, max_length=60)
    guidance: str = Field(min_length=1)
    weight: float = 1.0

    @model_validator(mode="after")
    def _weighs(self) -> Criterion:
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"weight must be a number above 0, not {self.weight:g}: leave a criterion out instead")
        return self


class Scored(_Part):
    """An example: an answer and what it deserves."""

    question: str = Field(min_length=1)
    answer: str
    scores: dict[str, int]
    why: str = ""


class Rubric(_Part):
    name: str = Field(min_length=1)
    language: Literal["zh", "en"] = "en"
    scale: list[int] = Field(default=[1, 5], min_length=2, max_length=2)
    criteria: list[Criterion] = Field(min_length=1, max_length=20)
    guidance: str = ""
    examples: list[Scored] = []
    reference: bool = False

    @property
    def low(self) -> int:
        return self.scale[0]

    @property
    def high(self) -> int:
        return self.scale[1]

    @property
    def digest(self) -> str:
        """SHA-256 of what it says, however its file is laid out."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()

    @model_validator(mode="after")
    def _fits(self) -> Rubric:
        if not 0 < self.high - self.low <= WIDEST:
            raise ValueError(f"scale is [lowest, highest] with 1 to {WIDEST} steps, such as [1, 5], not {self.scale}")
        names = [plain(criterion.name) for criterion in self.criteria]
        if twice := next((each.name for each in self.criteria if names.count(plain(each.name)) > 1), None):
            raise ValueError(f"two criteria are called {twice!r}, or differ only in signs and capitals")
        for number, example in enumerate(self.examples, start=1):
            if {*example.scores} != {criterion.name for criterion in self.criteria}:
                wanted = ", ".join(criterion.name for criterion in self.criteria)
                raise ValueError(f"example {number} needs a score for each criterion and no other: {wanted}")
            if not all(self.low <= score <= self.high for score in example.scores.values()):
                raise ValueError(f"example {number} has a score outside of the scale {self.low} to {self.high}")
        return self

    def total(self, scores: dict[str, float]) -> float:
        """The weighted mean of the criteria's scores, from 0 (all lowest) to 1 (all highest)."""
        share = {name: (score - self.low) / (self.high - self.low) for name, score in scores.items()}
        weights = sum(criterion.weight for criterion in self.criteria)
        return sum(criterion.weight * share[criterion.name] for criterion in self.criteria) / weights


def plain(name: str) -> str:
    """What of a criterion's name tells it from others: judges spell names in their own way."""
    return re.sub(r"[\W_]+", "", name).casefold()


def load(rubric: str) -> Rubric:
    """A shipped rubric by its name, or a user's by the path of its file. Raises `UserError`."""
    if rubric in SHIPPED:
        file = Path(str(resources.files(__package__) / "rubrics" / f"{rubric}.yaml"))
    elif "/" in rubric or rubric.endswith((".yaml", ".yml")):
        file = path_of(rubric, "rubric")
    else:
        hint = did_you_mean(rubric, SHIPPED)
        known = ", ".join(SHIPPED)
        raise UserError(f"there is no rubric {rubric!r}.{hint} There are {known}; a file of yours is rubric=./my.yaml")
    return parsed(read_text(file, "rubric"), f"rubric {file}")


def parsed(text: str, where: str) -> Rubric:
    """The rubric that a YAML text, which stands at `where`, describes. Raises `UserError`."""
    values = parse_yaml(text, where)
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected keys with values: {', '.join(Rubric.model_fields)}")
    try:
        return Rubric.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(f"{where}: {_told(dict(each))}" for each in error.errors()[:5])) from error


def _told(error: dict[str, Any]) -> str:
    """One error of pydantic, as a sentence that says where it is."""
    place = ".".join(str(part + 1 if isinstance(part, int) else part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        parts: dict[str, type[BaseModel]] = {"criteria": Criterion, "examples": Scored}
        model = parts.get(str(error["loc"][0]), Rubric) if len(error["loc"]) > 1 else Rubric
        known, key = list(model.model_fields), str(error["loc"][-1])
        return f"unknown key {place!r}.{did_you_mean(key, known)} Keys: {', '.join(known)}"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{place} is missing"
    return f"{place}: {message[:1].lower()}{message[1:]}" if place else message
