"""One rule for rows that can't be used: left out, counted by reason with one example, and an error if they are too many."""

from __future__ import annotations

import json

import pytest

from rlhf_core.catalog import Catalog
from rlhf_core.data.left_out import REASONS, SHOWN, LeftOut, TooLong, Unusable
from rlhf_core.data.loading import load
from rlhf_core.errors import UserError
from rlhf_core.grammar import DataSpec

QA = {"question": "2+2?", "answer": "4"}
EMPTY = {**QA, "answer": ""}


def left_out(max_bad_rows: float = 0.05, **rows: int) -> LeftOut:
    """So many malformed rows, too_long ones and ones with nothing to learn."""
    made = LeftOut("a.jsonl", max_bad_rows)
    for number in range(rows.get("malformed", 0)):
        made.add(
            f"a.jsonl line {number}", UserError(f"a.jsonl line {number}: turn {number} has no role, but 'x{number}'")
        )
    for number in range(rows.get("too_long", 0)):
        made.add(f"a.jsonl line {number}", TooLong("the prompt is long", number, "--max", "--overlong"))
    for number in range(rows.get("same", 0)):
        made.add(f"a.jsonl line {number}", Unusable("both are the same", "nothing to learn"))
    return made


# --max-bad-rows, the most malformed rows of 100
ALLOWED = {"a twentieth": (0.05, 5), "none": (0, 0), "a number": (7, 7), "one": (1, 1), "a small share": (0.001, 0)}


@pytest.mark.parametrize("case", ALLOWED)
def test_so_many_malformed_rows_are_left_out_and_more_are_an_error(case):
    allowed, most = ALLOWED[case]
    left_out(allowed, malformed=most).check(100)
    with pytest.raises(
        UserError, match=rf"line 0: turn 0 has no .* {most + 1} of 100 rows .* --max-bad-rows {most + 1}$"
    ):
        left_out(allowed, malformed=most + 1).check(100)


def test_half_may_be_too_long_or_what_max_bad_rows_allows_if_that_is_more():
    left_out(too_long=50).check(100)
    said = "a.jsonl: 51 of 100 rows are too long, more than half: the prompt is long, the longest 50 .*: --overlong truncate$"
    with pytest.raises(UserError, match=said):
        left_out(too_long=51).check(100)
    left_out(0.9, too_long=90).check(100)
    with pytest.raises(UserError, match="91 of 100 rows are too long"):
        left_out(0.9, too_long=91).check(100)
    left_out(0, too_long=50).check(100)  # which is about malformed rows


def test_one_row_is_an_error_where_the_rule_is_error():
    made = LeftOut("a.jsonl")
    made.add("a.jsonl line 3", TooLong("the prompt is long", 9, "--max", "--overlong", refused=True))
    with pytest.raises(UserError, match=r"1 of 100 rows are too long: the prompt .* truncate \(or drop\)$"):
        made.check(100)


def test_rows_with_nothing_to_learn_are_an_error_only_if_no_other_is_left():
    left_out(same=99).check(100)
    with pytest.raises(UserError, match="line 0: both are the same. None of 100 rows can be used"):
        left_out(same=100).check(100)
    with pytest.raises(
        UserError, match=r"None of 100 rows can be used.\n  5 of them: turn 0 .*\n  5 of them: the prompt"
    ):
        left_out(same=90, malformed=5, too_long=5).check(100)


def test_rows_are_counted_by_reason_whatever_numbers_and_names_it_has():
    assert left_out(malformed=3, same=1).warnings(10) == [
        "a.jsonl: left out 3 of 10 rows: turn 0 has no role, but 'x0' (the first: a.jsonl line 0)",
        "a.jsonl: left out 1 of 10 rows: both are the same (a.jsonl line 0)",
    ]
    assert left_out(malformed=3, too_long=2).to_dict() == [
        {"kind": "malformed", "text": "turn 0 has no role, but 'x0'", "first": "a.jsonl line 0", "rows": 3},
        {"kind": "too long", "text": "the prompt is long", "first": "a.jsonl line 0", "rows": 2, "longest": 1},
    ]


def test_of_many_reasons_the_most_frequent_are_shown():
    made = LeftOut("a.jsonl", 1000)
    for number in range(2 * REASONS):
        for _ in range(1 + (number == 50)):
            made.add(f"line {number}", UserError("x" * (number + 1)))
    assert len(made.reasons) == REASONS + 1
    assert made.rows() == 2 * REASONS + 1
    lines = made.warnings(1000)
    assert len(lines) == SHOWN + 1
    assert "left out 100 of 1,000 rows: other reasons" in lines[0]
    assert "x" * 51 in lines[1]
    assert lines[-1].endswith(f"for {REASONS + 1 - SHOWN} other reasons")


def test_lines_that_are_not_json_are_left_out_with_their_number(write_jsonl):
    """Also the first, and what a program that was ended left of the last."""
    lines = ['{"question": "a"', *[QA] * 60, "", "[1, 2]", '{"question": "b", "ans']
    data = load([DataSpec(path := write_jsonl("a.jsonl", lines))], "prompts", Catalog())
    assert len(data.train) == 60
    assert [text.partition(" rows: ")[2] for text in data.warnings] == [
        "expected an object with named columns, not list (a.jsonl line 63)",
        "is not JSON: Expecting ',' delimiter, at: 'ion\": \"a\"\\n' (a.jsonl line 1)",
        'is not JSON: Unterminated string starting at, at: \'on": "b", "ans\' (a.jsonl line 64)',
    ]
    assert data.parts[0].left_out.rows("malformed") == 3
    with pytest.raises(UserError, match="a.jsonl line 63: expected an object .* 3 of 63 rows can't be used"):
        load([DataSpec(path)], "prompts", Catalog(), max_bad_rows=0)


def test_lines_of_a_csv_file_with_too_few_cells_are_left_out(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer\n" + "2+2?,4\n" * 30 + "3+3?\n")
    data = load([DataSpec(str(tmp_path / "a.csv"))], "prompts", Catalog())
    assert (len(data.train), data.warnings) == (
        30,
        [f"{tmp_path}/a.csv: left out 1 of 31 rows: 1 cells under 2 columns (a.csv line 32)"],
    )


def test_each_source_has_its_own_count(write_jsonl):
    good, bad = write_jsonl("good.jsonl", [QA] * 100), write_jsonl("bad.jsonl", [QA, EMPTY])
    with pytest.raises(UserError, match="bad.jsonl line 2: .* 1 of 2 rows"):
        load([DataSpec(good), DataSpec(bad)], "prompts", Catalog())
    with pytest.raises(UserError, match="bad.jsonl line 2: .* 1 of 2 rows"):
        load([DataSpec(good)], "prompts", Catalog(), eval_specs=[DataSpec(bad)])


def test_which_rows_are_held_out_does_not_depend_on_those_that_are_left_out(write_jsonl):
    """So that `rlhf compare`, which knows neither template nor limits, finds none that were trained on."""
    rows = [{**QA, "question": f"{n}?"} for n in range(40)]
    data = [DataSpec(write_jsonl("a.jsonl", rows))]

    def without_thirds(row, location):
        if int(row["question"][:-1]) % 3 == 0:
            raise Unusable("it is long", "too long")
        return row

    every = load(data, "prompts", Catalog(), held_out=4, seed=1)
    some = load(data, "prompts", Catalog(), held_out=4, seed=1, preparation=lambda: without_thirds)
    assert len(every.held_out) == 4
    assert [row for row in every.held_out if int(row["question"][:-1]) % 3] == some.held_out
    assert [row for row in every.train if int(row["question"][:-1]) % 3] == some.train


def test_reasons_are_plain_data():
    assert json.loads(json.dumps(left_out(malformed=1).to_dict()))[0]["rows"] == 1
