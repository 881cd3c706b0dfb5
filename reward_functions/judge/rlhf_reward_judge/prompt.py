"""What a judge is asked: the rubric and the rules in the system's turn, question and answers as data in the user's.

Everything here is a pure function of a rubric and texts, so that equal questions are found in the cache. The system's
turn is the same for all answers, which an endpoint that caches prefixes reads once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from rlhf_core.commands import parse_yaml
from rlhf_reward_judge.fence import fenced
from rlhf_reward_judge.rubric import Rubric, Scored

Prompt = list[dict[str, str]]


def to_score(rubric: Rubric, question: str, answer: str, reference: str | None = None) -> Prompt:
    return _prompt(rubric, "score", _texts(question, {"ANSWER": answer}, reference))


def to_compare(rubric: Rubric, question: str, first: str, second: str, reference: str | None = None) -> Prompt:
    return _prompt(rubric, "compare", _texts(question, {"ANSWER A": first, "ANSWER B": second}, reference))


def to_rank(rubric: Rubric, question: str, answers: Sequence[str], reference: str | None = None) -> Prompt:
    named = {f"ANSWER {number}": answer for number, answer in enumerate(answers, start=1)}
    return _prompt(rubric, "rank", _texts(question, named, reference))


def schema_of_scores(rubric: Rubric) -> dict[str, Any]:
    """A reason and a score for each criterion."""
    score = {"type": "integer", "enum": list(range(rubric.low, rubric.high + 1))}
    each = _object({"reason": {"type": "string"}, "score": score})
    return _object({criterion.name: each for criterion in rubric.criteria})


def schema_of_comparison() -> dict[str, Any]:
    return _object({"reason": {"type": "string"}, "better": {"type": "string", "enum": ["A", "B", "tie"]}})


def schema_of_ranking() -> dict[str, Any]:
    places = {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}
    return _object({"reason": {"type": "string"}, "ranking": places})


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def question_of(prompt: Sequence[Mapping[str, Any]]) -> str:
    """The question of a row: its one turn, or all turns with who speaks."""
    if len(prompt) == 1 and prompt[0].get("role") == "user" and isinstance(prompt[0].get("content"), str):
        return str(prompt[0]["content"])
    return "\n\n".join(f"({turn.get('role')}) {_content(turn)}" for turn in prompt)


def _content(turn: Mapping[str, Any]) -> str:
    if isinstance(turn.get("content"), str) and not {*turn} - {"role", "content"}:
        return str(turn["content"])
    return json.dumps({name: value for name, value in turn.items() if name != "role"}, ensure_ascii=False, default=str)


def _texts(question: str, answers: Mapping[str, str], reference: str | None) -> dict[str, str]:
    return {"QUESTION": question, **({} if reference is None else {"REFERENCE": reference}), **answers}


@cache
def _wording(language: str) -> dict[str, Any]:
    """What stands around a rubric, in its language."""
    file = resources.files(__package__) / "wording.yaml"
    return parse_yaml(file.read_text(encoding="utf-8"), file.name)[language]


def _prompt(rubric: Rubric, task: str, texts: Mapping[str, str]) -> Prompt:
    words = _wording(rubric.language)["words"]
    mark, blocks = fenced(texts)
    known = [words["reference"]] if "REFERENCE" in texts else []
    asked = [" ".join([words["opening"].format(mark), *known]), blocks, words["closing"].format(mark)]
    return [{"role": "system", "content": _system(rubric, task)}, {"role": "user", "content": "\n\n".join(asked)}]


def _system(rubric: Rubric, task: str) -> str:
    wording = _wording(rubric.language)
    words = wording["words"]
    parts = [wording["introduction"][task], wording["rules"].strip()]
    parts += [f"{words['rubric']}: {rubric.name}", rubric.guidance.strip()]
    if task == "score":
        parts.append(words["scale"].format(rubric.low, rubric.high))
    for criterion in rubric.criteria:
        title = words["criterion"].format(criterion.name, criterion.weight)
        parts.append(f"- {title}\n  " + criterion.guidance.strip().replace("\n", "\n  "))
    if task == "score":
        parts += [_example(words, example) for example in rubric.examples]
    parts.append(f"{wording['format'][task]}\n{_form(rubric, task)}")
    return "\n\n".join(part for part in parts if part)


def _example(words: Mapping[str, str], example: Scored) -> str:
    _, blocks = fenced({"QUESTION": example.question, "ANSWER": example.answer})
    deserved = ", ".join(f"{name} {score}" for name, score in example.scores.items())
    lines = [words["example"], blocks, words["deserved"].format(deserved), example.why]
    return "\n".join(line for line in lines if line)


def _form(rubric: Rubric, task: str) -> str:
    """What the reply looks like, for endpoints that take no schema."""
    if task == "compare":
        return '{"reason": "…", "better": "A" | "B" | "tie"}'
    if task == "rank":
        return '{"reason": "…", "ranking": [[<best>, …], …, [<worst>]]}'
    score = f'{{"reason": "…", "score": <{rubric.low} to {rubric.high}>}}'
    lines = [f"  {json.dumps(criterion.name, ensure_ascii=False)}: {score}" for criterion in rubric.criteria]
    return "{\n" + ",\n".join(lines) + "\n}"
