"""Rows with rated answers, by prompt, and pairs of them.

A prompt is read by the formatter `ranked`, which knows what prompts are called and how dialogues are written: it is
given the row with two answers of our own in the place of the row's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf_core import Catalog, Formatter, UserError
from rlhf_core.commands import DataSpec, LeftOut, Screen, did_you_mean, language, library_errors, read_rows
from rlhf_tools.preferences import showing, writing
from rlhf_tools.preferences.selecting import Prompt, Rated, select
from rlhf_tools.preferences.words import say

LISTS = ("completions", "answers", "responses")
TEXTS = ("response", "completion", "answer", "text", "content", "output")
SCORES = ("overall_score", "score", "scores", "rating", "ratings", "fine-grained_score", "rank", "ranks")
RANKS = ("rank", "ranks")
STAND_IN = [{"response": "a", "score": 1}, {"response": "b", "score": 0}]
NAMED = ("model", "model_name", "generator")  # who wrote an answer


def run(
    source: str, output: str, as_json: bool, lang: str | None, all_pairs: bool, balance_length: bool,
    score: str | None, max_bad_rows: float, **values: Any,
) -> None:  # fmt: skip
    """Read, select, write and show. Raises `UserError`."""
    started, lang, screen = time.perf_counter(), language(lang), Screen(quiet=as_json)
    files = writing.places(output)
    writing.refuse_existing(*files)
    with screen.working(say(lang, "Reading {what} …", what=source)):
        prompts, name, told = read(DataSpec.read(source), score, max_bad_rows)
        selected = select(prompts, every=all_pairs, balance=balance_length, **values)
    showing.finish(
        screen, lang, files, prompts, selected, f"{name} of the data", as_json=as_json,
        extra=[("{text}", {"text": text}) for text in told], source=source, judge=[{"spec": f"{name} of the data"}],
        balanced=balance_length, all_pairs=all_pairs, seconds=time.perf_counter() - started,
    )  # fmt: skip


def read(spec: DataSpec, score: str | None, max_bad_rows: float) -> tuple[list[Prompt], str, list[str]]:
    """(the answers by prompt, what rates them, what is to be said of the rows)."""
    left_out = LeftOut(spec.source, max_bad_rows)
    rows, warnings = read_rows(spec, "train", left_out.add)
    if not rows:
        left_out.check(left_out.rows())
        raise UserError(f"{spec.source}: there is no row in it")
    total = len(rows) + left_out.rows()
    values = [{name: value for name, value in row.values.items() if value is not None} for row in rows]
    name = _score_of(values, spec.source) if score is None else _checked(score, values, spec.source)
    formatter: Formatter = Catalog().load("formatters", "ranked")[0]
    found: dict[str, Prompt] = {}
    for row, given in zip(rows, values, strict=True):
        try:
            messages, answers, columns = _read_row(row.location, given, name, formatter)
        except UserError as error:
            left_out.add(row.location, error)
            continue
        prompt = found.setdefault(repr(messages), Prompt(messages, [], columns))
        prompt.answers += answers
        if prompt.columns is not columns:  # what tells rows of one prompt apart is of an answer, not of the prompt
            prompt.columns = {k: v for k, v in prompt.columns.items() if k in columns and columns[k] == v}
    left_out.check(total)
    return list(found.values()), name, [*warnings, *left_out.warnings(total)]


def _score_of(rows: Sequence[Mapping[str, Any]], source: str) -> str:
    """What rates the answers of the first row that can be told. Raises `UserError` that names the numbers it has."""
    for row in rows[:100]:
        answers = _answers(row)
        for name in SCORES:
            if answers and all(_number(_within(answer, name)) is not None for answer in answers):
                return name
    numbers = _numbers(rows)
    have = f"numbers that it has: {', '.join(numbers)}" if numbers else "it has no number either"
    raise UserError(f"{source}: no answer has a score ({', '.join(SCORES)}); {have}. Name it: --score COLUMN")


def _checked(score: str, rows: Sequence[Mapping[str, Any]], source: str) -> str:
    """`score`. Raises `UserError` if it is no number of any answer."""
    if any(_number(_within(answer, score)) is not None for row in rows for answer in _answers(row)):
        return score
    numbers = _numbers(rows)
    have = f" Numbers that they have: {', '.join(numbers)}." if numbers else ""
    raise UserError(f"--score {score}: no answer of {source} has such a number.{did_you_mean(score, numbers)}{have}")


def _numbers(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What answers have a number by, also within another value."""

    def named(value: Mapping[str, Any], before: str = "") -> Iterator[str]:
        for key, one in value.items():
            if isinstance(one, Mapping):
                yield from named(one, f"{before}{key}.")
            elif _number(one) is not None and not (isinstance(one, str) and not before):  # an answer may be "4"
                yield f"{before}{key}"

    return list(dict.fromkeys(name for row in rows[:100] for answer in _answers(row)[:1] for name in named(answer)))


def _read_row(
    location: str, row: Mapping[str, Any], score: str, formatter: Formatter
) -> tuple[Any, list[Rated], dict[str, Any]]:
    """(the prompt's messages, its rated answers, the row's other columns)."""
    used = next((name for name in LISTS if isinstance(row.get(name), list)), None) or _first(row, TEXTS)
    if used is None:
        raise UserError(f"{location}: no answer: neither a list ({', '.join(LISTS)}) nor a text ({', '.join(TEXTS)})")
    others = {name: value for name, value in row.items() if name != used and name not in LISTS}
    asked = {**others, "completions": STAND_IN}
    with library_errors(f"{location}: formatter {formatter.name}"):
        messages = formatter.convert(formatter.view(asked, formatter.renamed(asked))).prompt
    sign = -1.0 if score.rpartition(".")[2] in RANKS else 1.0
    answers = []
    for answer in _answers(row):
        text, value = answer.get(_first(answer, TEXTS) or ""), _number(_within(answer, score))
        if not isinstance(text, str):
            raise UserError(f"{location}: an answer has no text ({', '.join(TEXTS)})")
        model = _first(answer, NAMED)
        answers.append(Rated(text.strip(), None if value is None else sign * value, model and str(answer[model])))
    return messages, answers, {k: v for k, v in others.items() if k not in (score, *SCORES, *NAMED)}


def _answers(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The answers of a row, each with its text and scores: those of a list, with the scores that stand in lists beside
    it, or the row itself.
    """
    name = next((name for name in LISTS if isinstance(row.get(name), list)), None)
    if name is None:
        return [row]
    given = row[name]
    beside = {key: v for key, v in row.items() if key != name and isinstance(v, list) and len(v) == len(given)}
    return [
        {**{key: values[i] for key, values in beside.items()}, **(one if isinstance(one, Mapping) else {"text": one})}
        for i, one in enumerate(given)
    ]


def _within(answer: Mapping[str, Any], path: str) -> Any:
    """The value of a key, or of one within another: `annotations.helpfulness.Rating`."""
    if path in answer:
        return answer[path]
    value: Any = answer
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _number(value: Any) -> float | None:
    """A number, also one in text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _first(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)
