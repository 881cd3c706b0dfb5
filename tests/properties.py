"""What holds for every input, in the words of hypothesis. The suite tries a few inputs, `benchmarks/fuzz.py` many.

Whatever a user hands us is taken or refused with a `UserError`. What is taken can be written and read again.
"""

from __future__ import annotations

import functools
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from hypothesis import assume, settings
from hypothesis import given as given_by
from hypothesis import strategies as st

from rlhf_core.catalog import Catalog
from rlhf_core.config import MAIN, resolve
from rlhf_core.data.files import Row, read_file
from rlhf_core.data.formats import Formats
from rlhf_core.data.projecting import project
from rlhf_core.errors import UserError
from rlhf_core.grammar import DataSpec, RewardSpec
from rlhf_core.rewards.binding import bind
from rlhf_core.rewards.outcomes import check
from rlhf_core.testing import formatters as kit
from rlhf_core.testing.hostile import TEXTS

# Pieces that some code looks for, among any other characters, halves of some included.
PIECES = [
    *("<think>", "</think>", "<answer>", "</answer>", "<tool_call>", "\\boxed{", "\\frac{1}{2}", "$$", "■", "####", "**A**"),
    *("A.", "(B)", "答案", "诊断", "依据", ",", ":", "=", "{", "}", "[", "]", '"', "'", "\\", ";", "-", "-1", "1e999", "NaN"),
    *("null", "true", "0x", "1/0", "２", "٣", "²", "<|im_end|>", "{{", "}}", "{%", "Human:", "Assistant:", "\n\n", " ", "\n"),
    *("\x1b[2J", "\r", "\x00", "\x85", "\u2028", "\u202e", "\ud83d"),
]  # fmt: skip
text = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=30),
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6)), max_size=12).map("".join),
)
leaf = st.one_of(text, st.none(), st.booleans(), st.integers(), st.floats(), st.integers(min_value=10**310))
value = st.recursive(
    leaf, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3))
)
word = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)


def outcome(call: Callable[[], Any]) -> tuple[Any, str]:
    """(what it returns, "") or (None, the message of its `UserError`). Any other exception is a failure."""
    try:
        return call(), ""
    except UserError as error:
        return None, str(error).strip() or "no message"


@functools.cache
def catalog() -> Catalog:
    return Catalog()


def read_back(kind: type[RewardSpec] | type[DataSpec], entry: str | Mapping[str, Any]) -> None:
    """`--reward` and `--data`: what is read is written as text that reads the same."""
    spec, message = outcome(lambda: kind.read(entry))
    assert message or kind.read(str(spec)) == spec


entries = st.one_of(
    text,
    st.builds("{}:{}={}".format, word, word, text),
    st.builds("{}:{}={},{}={}".format, text, word, text, word, value.map(repr)),
    st.builds("{}:{}={}".format, word, word, value.map(lambda v: json.dumps(v, default=str))),
    st.dictionaries(word, st.one_of(st.none(), st.dictionaries(st.one_of(word, text), value, max_size=3)), max_size=2),
    st.dictionaries(
        word, st.dictionaries(st.sampled_from(["weight", "name", "concurrent", "prompt"]), value), max_size=1
    ),
)


@functools.cache
def rows() -> dict[str, list[dict[str, Any]]]:
    """Example rows of each installed formatter."""
    return {entry.name: [r.values for r in kit.examples(entry)] for entry in catalog().entries("formatters")}


@st.composite
def changed_rows(draw: st.DrawFn) -> tuple[str | None, dict[str, Any]]:
    """A formatter to force, or None, and an example row of some formatter in which something is another value."""
    name = draw(st.sampled_from(sorted(rows())))
    row = dict(draw(st.sampled_from(rows()[name])))
    for column in draw(st.lists(st.sampled_from(sorted(row)), max_size=2, unique=True)):
        row[column] = draw(st.one_of(value, replaced(row[column])))
    row |= draw(
        st.dictionaries(
            st.one_of(st.sampled_from(["system", "tools", "history", "label", "A"]), text), value, max_size=1
        )
    )
    return draw(st.sampled_from([None, name])), row


def replaced(whole: Any) -> st.SearchStrategy[Any]:
    """`whole` with another value somewhere inside it."""
    if isinstance(whole, list) and whole:
        return st.integers(0, len(whole) - 1).flatmap(
            lambda at: st.one_of(value, replaced(whole[at])).map(lambda new: [*whole[:at], new, *whole[at + 1 :]])
        )
    if isinstance(whole, dict) and whole:
        return st.sampled_from(sorted(whole)).flatmap(
            lambda key: st.one_of(value, replaced(whole[key])).map(lambda new: {**whole, key: new})
        )
    return value


def row_is_read(forced_row: tuple[str | None, dict[str, Any]]) -> None:
    """Formatters: a row becomes an example that the kit finds right, and that serves a method or is refused."""
    forced, values = forced_row
    assume(values)
    row, before = Row("d.jsonl line 1", values), repr(values)
    example, message = outcome(lambda: Formats([row], DataSpec("d.jsonl", formatter=forced), catalog()).convert(row))
    assert repr(values) == before
    if message:
        assert "d.jsonl" in message
        return
    assert (problem := kit._problem(example)) is None, problem
    for need in kit.NEEDS:
        outcome(lambda need=need: project(row, example, need))


files = st.tuples(
    st.sampled_from([".json", ".jsonl", ".csv", ".parquet", ".arrow", ".json.gz", ".csv.gz"]),
    st.one_of(
        st.binary(max_size=200),
        text.map(lambda t: t.encode("utf-8", "surrogatepass")),
        value.map(lambda v: json.dumps(v).encode()),
        st.lists(st.dictionaries(text, value, max_size=3).map(json.dumps), max_size=4).map(
            lambda v: "\n".join(v).encode()
        ),
    ),
)


def file_is_read(file: tuple[str, bytes]) -> None:
    """Files: rows with a location each, or a message that names the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data" + file[0])
        path.write_bytes(file[1])
        found, message = outcome(lambda: read_file(path))
    assert path.name in message or all(row.location.startswith(path.name) for row in found)
    assert all(isinstance(row.values, dict) for row in found or [])


@functools.cache
def methods() -> dict[str, list[str]]:
    """The keys that a configuration of each method may have."""
    loaded = {entry.name: catalog().load("methods", entry.name)[0] for entry in catalog().entries("methods")}
    return {name: [*MAIN, *method.Options.model_fields] for name, method in loaded.items()}


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    method = draw(st.sampled_from(sorted(methods())))
    keys = st.one_of(st.sampled_from(methods()[method]), word)
    simple = st.one_of(st.sampled_from(["auto", "true", "-1", "0", "1", "1e-5", "nan", ""]), st.integers(-2, 9), value)
    given = draw(st.dictionaries(keys, simple, max_size=3))
    return {"reward": "length", **given, "method": method} if draw(st.booleans()) else {**given, "method": method}


def configuration_is_read(values: dict[str, Any]) -> None:
    """Configurations: one that is taken says the same when its `config.yaml` is read."""
    read, message = outcome(lambda: resolve(values, catalog()))
    if not message:
        written = yaml.safe_load(yaml.safe_dump(read[0].to_dict(), sort_keys=False, allow_unicode=True))
        again, _ = resolve(written, catalog())
        assert again.to_dict() == written


results = st.one_of(
    value, st.lists(leaf, max_size=3), st.lists(leaf, max_size=3).map(tuple), st.iterables(leaf, max_size=3)
)


def result_is_taken(result: Any) -> None:
    """Rewards: of whatever a function returns, each row gets a finite score, none, or an error."""
    column = check(result, 2)
    assert len(column.scores) == len(column.errors) == 2
    for score, error in zip(column.scores, column.errors, strict=True):
        assert score is None or (error is None and isinstance(score, float) and math.isfinite(score))


@functools.cache
def ours() -> dict[str, Any]:
    found = {
        name: bind(RewardSpec(name), catalog()) for name in ("length", "verifier", "medical_keyword", "medical_format")
    }
    return {name: reward for name, reward in found.items() if reward.kind == "ordinary"}


answers = st.tuples(
    st.sampled_from(["length", "verifier", "medical_keyword", "medical_format"]),
    st.lists(
        st.tuples(st.one_of(text, st.sampled_from(sorted(t[:300] for t in TEXTS.values()))), text),
        min_size=1,
        max_size=3,
    ),
)


def answer_is_scored(name_pairs: tuple[str, list[tuple[str, str]]]) -> None:
    """Our rewards: a finite score in the declared range, or none; the same alone as beside others, and again."""
    name, pairs = name_pairs
    assume(name in ours())

    def scores(chosen: list[tuple[str, str]]) -> list[float | None]:
        columns = {"answer": [a for _, a in chosen], "solution": [a for _, a in chosen]}
        prompts = [[{"role": "user", "content": "?"}] for _ in chosen]
        trl = {"prompts": prompts, "completions": [c for c, _ in chosen], "completion_ids": [[1] for _ in chosen]}
        column = check(ours()[name].call(columns, trl), len(chosen))
        assert not column.failed, column.errors
        return column.scores

    found, (low, high) = scores(pairs), ours()[name].reward.range or (-math.inf, math.inf)
    assert all(score is None or low <= score <= high for score in found)
    assert found == scores(pairs) == [scores([pair])[0] for pair in pairs]


PROPERTIES: dict[str, tuple[Callable[[Any], None], st.SearchStrategy[Any]]] = {
    "--reward": (functools.partial(read_back, RewardSpec), entries),
    "--data": (functools.partial(read_back, DataSpec), entries),
    "rows": (row_is_read, changed_rows()),
    "files": (file_is_read, files),
    "configurations": (configuration_is_read, configurations()),
    "results of rewards": (result_is_taken, results),
    "our rewards": (answer_is_scored, answers),
}


def holds(name: str, how: settings) -> None:
    """Raise what breaks the property, with the smallest input that does."""
    function, strategy = PROPERTIES[name]

    def test(example: Any) -> None:
        function(example)

    how(given_by(strategy)(test))()
