"""`rlhf data convert`: what is written is read back as the same row, and what is not written is said."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from rlhf_core.catalog import Catalog
from rlhf_core.cli import rlhf
from rlhf_core.cli.data import FORMATS
from rlhf_core.data.encoding import tools_of
from rlhf_core.data.projecting import PROJECTED
from rlhf_core.data_report.converting import convert
from rlhf_core.data_report.reading import Reader
from rlhf_core.data_report.targets import TARGETS, plain
from rlhf_core.data_report.writing import both, kind_of
from rlhf_core.errors import UserError
from rlhf_core.grammar import DataSpec

ODD = '„Quote“ "q", back\\slash,\nnew line\r\n\ttab \u2028 👩‍⚕️ 你好，高血压？ [{"role": "x"}]'
TOOLS = [
    {"type": "function", "function": {"name": "dose", "parameters": {"mg": {"type": "number"}, "list": [1, None]}}}
]
CALL = {"type": "function", "function": {"name": "dose", "arguments": {"mg": 5, "unit": None}}}


def turns(*texts, system=None):
    spoken = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}] * (system is not None) + spoken


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(*rows):
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        (tmp_path / "d.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return "d.jsonl"

    return write


def rows_of(source, need):
    """What a run has of each row."""
    reader = Reader(DataSpec.read(source), need, Catalog())
    names = (*PROJECTED[need], "answer")
    rows = [row for _, row, _ in reader.rows()]
    assert not reader.left_out.every
    return [{n: row[n] for n in names if row.get(n) is not None} | {"tools": tools_of(row)} for row in rows]


CONVERSATIONS = [
    {"question": ODD, "answer": "It is so. #### 42"},
    {"instruction": "Translate", "input": ODD, "output": ODD, "system": "Be brief."},
    {"prompt": ODD, "completion": "short", "reasoning_content": "First I think.\n\nThen I answer."},
    {"messages": turns("q1", ODD)},
]
TALKS = [
    {"question": "and now?", "answer": "yes", "history": [["q1", "a1"], [ODD, "a2"]], "system": ODD},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}] * 3},
]
CALLS = [
    {"messages": [*turns("q"), {"role": "assistant", "content": "", "tool_calls": [CALL]},
                  {"role": "tool", "content": "5 mg", "name": "dose"}, *turns("q", ODD)[1:]], "tools": TOOLS},
    {"messages": [*turns("q"), {"role": "assistant", "content": "a", "weight": 0}, *turns("q", "b")]},
]  # fmt: skip
PAIRS = [
    {
        "question": ODD,
        "response_chosen": "yes",
        "response_rejected": ODD,
        "system": "Be brief.",
        "history": [["a", "b"]],
    },
    {"chosen": turns("q", "good"), "rejected": turns("q", "bad", "why?", "so")},
    {"prompt": turns("q", "a", "b", system=ODD), "chosen": "x", "rejected": "y", "answer": "x", "tools": TOOLS},
]
PROMPTS = [
    {"prompt": ODD, "answer": "7"},
    {"prompt": turns("q", "a", ODD, system="s")},
    {"question": "Which?", "A": "one", "B": "two", "answer": "B"},
]
EVERY = [
    ("messages", [*CONVERSATIONS, *TALKS, *CALLS, *PAIRS]),
    ("prompt_completion", CONVERSATIONS),
    ("alpaca", [*CONVERSATIONS, *TALKS]),
    ("preference", PAIRS),
    ("prompt", [*PROMPTS, *CONVERSATIONS, *TALKS, *CALLS, *PAIRS]),
]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(("to", "rows"), EVERY, ids=[to for to, _ in EVERY])
def test_what_is_written_is_read_back_as_the_same_rows(to, rows, suffix, write):
    source, need = write(*rows), TARGETS[to].need
    found = convert(source, to, f"new{suffix}", Catalog())
    assert (found["written"], found["bad_rows"]) == (len(rows), [])
    given, read = rows_of(source, need), rows_of(f"new{suffix}", need)
    assert read == [{**new, **row} for new, row in zip(read, given, strict=True)]  # a last turn may be an answer, too


def test_the_formats_of_the_option_are_all_there_are():
    assert list(FORMATS) == list(TARGETS)


def test_a_file_looks_as_its_format_is_known(write):
    source = write({"question": "q", "answer": "a", "system": "s"})
    lines = {}
    for to in ("messages", "prompt_completion", "alpaca", "prompt"):
        convert(source, to, f"{to}.jsonl", Catalog())
        with open(f"{to}.jsonl", encoding="utf-8") as file:
            lines[to] = json.loads(file.read())
        lines[to].pop("solution")  # which the formatter adds for rewards
    messages = turns("q", "a", system="s")
    assert lines == {
        "messages": {"messages": messages},
        "prompt_completion": {"prompt": "q", "completion": "a", "system": "s"},
        "alpaca": {"instruction": "q", "input": "", "output": "a", "system": "s"},
        "prompt": {"prompt": messages[:-1], "answer": "a"},
    }


@pytest.mark.parametrize(
    ("to", "row", "reason"),
    [
        ("prompt_completion", TALKS[0], "6 turns, and prompt_completion holds a question and an answer"),
        ("prompt_completion", CALLS[0], "it offers tools, for which prompt_completion has no place"),
        ("alpaca", CALLS[1], "a turn has weight, for which alpaca has no place"),
        ("alpaca", {"messages": turns("q", "a")[::-1] + turns("q", "b")}, "in turn, and it has assistant, user"),
        ("messages", {"text": "plain text"}, "it is plain text, which is no conversation"),
        ("alpaca", {"messages": turns('[{"role": "user", "content": "x"}]', " \n"), "system": "s"}, "is empty"),
        ("prompt_completion", {"messages": turns('[{"role": "user", "content": "x"}]', "a")}, "read as something else"),
    ],
)
def test_a_row_that_a_format_can_not_hold_is_left_out_and_named(to, row, reason, write):
    found = convert(write({"messages": turns("q", "a")}, row), to, "new.jsonl", Catalog(), max_bad_rows=1)
    assert found["written"] == 1
    [bad] = found["bad_rows"]
    assert (bad["file"], bad["line"]) == ("d.jsonl", 2)
    assert reason in bad["reason"]


def test_too_many_rows_that_can_not_be_held_are_an_error_and_leave_no_file(write, tmp_path):
    source = write(*[{"messages": turns("q", "a")}] * 3, TALKS[0])
    with pytest.raises(UserError, match=r"1 of 4 rows can't be used, more than --max-bad-rows 0.05 allows"):
        convert(source, "prompt_completion", "new.jsonl", Catalog())
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]


def test_columns_that_are_not_written_are_said_and_kept_when_asked(write):
    source = write({"question": "q", "response_chosen": "a", "response_rejected": "b", "source": "web", "n": [1, {}]})
    found = convert(source, "messages", "new.jsonl", Catalog())
    assert set(found["not_carried_over"]) == {"response_rejected", "source", "n"}
    assert found["warnings"] == ["not written: the rejected answer of 1 rows"]
    found = convert(source, "messages", "kept.parquet", Catalog(), keep_columns=True)
    assert (set(found["carried_over"]), found["not_carried_over"]) == ({"source", "n"}, ["response_rejected"])
    [(_, row, _)] = Reader(DataSpec.read("kept.parquet"), "conversations", Catalog()).rows()
    assert (row["source"], row["n"]) == ("web", "[1, {}]")
    assert any("JSON text in the Parquet file" in text and "n" in text for text in found["warnings"])


def test_text_in_a_column_of_several_types_stays_as_it_is_in_parquet(write):
    source = write({"prompt": "q", "answer": "B"}, {"prompt": "q", "answer": 2})
    convert(source, "prompt", "new.parquet", Catalog())
    assert [row["answer"] for row in rows_of("new.parquet", "prompts")] == ["B", "2"]


def test_a_kept_column_that_the_format_reads_is_refused(write):
    source = write(*[{"chosen": turns("q", "a"), "rejected": turns("q", "b"), "label": i % 2} for i in range(4)])
    with pytest.raises(UserError, match="--keep-columns: label would be read as part of the rows"):
        convert(source, "messages", "new.jsonl", Catalog(), keep_columns=True)


@pytest.mark.parametrize(
    ("to", "row", "ways"),
    [
        ("preference", {"prompt": "q"}, "none of its rows has a chosen and a rejected answer.*converted to prompt"),
        ("messages", {"prompt": "q"}, "none of its rows has an answer to learn.*converted to prompt"),
    ],
)
def test_a_format_that_the_rows_can_not_serve_is_refused_with_those_that_they_can(to, row, ways, write):
    with pytest.raises(UserError, match=ways):
        convert(write(row), to, "new.jsonl", Catalog())


def test_nothing_is_written_over_and_other_names_are_refused(write, tmp_path):
    source = write({"question": "q", "answer": "a"})
    (tmp_path / "new.jsonl").write_text("mine")
    for output, message in (
        ("new.jsonl", "exists already"),
        ("new.csv", "must end in .jsonl or .parquet"),
        ("no/new.jsonl", "there is no folder no"),
    ):
        done = CliRunner().invoke(rlhf, ["data", "convert", source, "--to", "messages", "--output", output])
        assert isinstance(done.exception, UserError)
        assert message in str(done.exception)
    assert (tmp_path / "new.jsonl").read_text() == "mine"


def test_the_command_says_what_was_done(write):
    source = write(*[{"question": "q", "answer": "a", "note": "x"}] * 30, "not json")
    command = ["data", "convert", source, "--to", "alpaca", "--output", "new.jsonl"]
    done = CliRunner().invoke(rlhf, command)
    assert done.exit_code == 0, done.output
    assert "new.jsonl: 30 of 31 rows, read as question_answer, as alpaca" in done.output
    assert "not written   note" in done.output
    assert "d.jsonl:31: malformed: " in done.output
    done = CliRunner().invoke(rlhf, [*command[:-1], "other.jsonl", "--json"])
    assert json.loads(done.stdout)["written"] == 30


def test_plain_values_are_those_that_json_has():
    import datetime

    given = {"day": datetime.date(2026, 1, 2), "gap": float("nan"), "most": float("inf"), "list": (1, None, True)}
    assert plain(given) == {"day": "2026-01-02", "gap": None, "most": "inf", "list": [1, None, True]}


def test_types_of_columns_are_those_of_all_their_values():
    assert kind_of([{"role": "a"}, {"role": "b", "name": "c"}]) == ("role", "name")
    assert kind_of([{"role": "a", "weight": 0}]) == "JSON"
    assert (kind_of(True), kind_of(2**63), kind_of([]), kind_of(["x"])) == ("bool", "JSON", "JSON", "texts")
    assert both(("role",), ("name", "role")) == ("role", "name")
    assert (both("int", "float"), both("int", "str"), both(None, "int"), both("str", None)) == (
        "float",
        "JSON",
        "int",
        "str",
    )


def test_answers_of_which_a_prompt_has_only_the_result_are_said(write):
    row = {"prompt": "q", "completion": "First this, then that: 42.", "answer": "42"}
    assert convert(write(row), "prompt", "new.jsonl", Catalog())["warnings"] == [
        "not written: the answer to learn of 1 rows"
    ]
