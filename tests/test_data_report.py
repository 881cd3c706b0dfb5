"""`rlhf data`: measures by hand-worked examples, and what the commands say of files made here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest
from click.testing import CliRunner

from rlhf_core.catalog import Catalog
from rlhf_core.cli import rlhf
from rlhf_core.data_report import texts
from rlhf_core.data_report.inspecting import inspect
from rlhf_core.data_report.pairs import Pairs, cohens_d, decided_by_length
from rlhf_core.data_report.reading import Reader
from rlhf_core.data_report.tokens import METHODS
from rlhf_core.data_report.validating import validate
from rlhf_core.grammar import DataSpec

QUESTION = "What is 2 + 2, my friend?"


def turn(role, text):
    return [{"role": role, "content": text}]


def pair(question=QUESTION, chosen="four", rejected="five", **others):
    return {"question": question, "response_chosen": chosen, "response_rejected": rejected, **others}


@pytest.fixture
def write(write_jsonl, tmp_path, monkeypatch):
    """write("data.jsonl", row, …) -> its name, in the folder where commands run."""
    monkeypatch.chdir(tmp_path)
    return lambda name, *rows: write_jsonl(name, rows) and name


def run(*words):
    return CliRunner().invoke(rlhf, ["data", *words])


def test_percentiles_are_values_of_the_data():
    """The smallest value that at least p percent do not exceed: of 1 … 200, p percent are 2p values."""
    assert texts.percentiles(list(range(200, 0, -1))) == {"5": 10, "50": 100, "95": 190, "99": 198, "max": 200}
    assert texts.percentiles([7]) == {"5": 7, "50": 7, "95": 7, "99": 7, "max": 7}
    assert texts.percentiles([]) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("高血压 DPO", "Han"), ("blood 血", "Latin"), ("кровь", "other"), ("ひらがな", "other"), ("12 + 3 = ?", "none")],
)
def test_script_is_that_of_most_letters(text, expected):
    assert texts.script(text) == expected


def test_cohens_d_divides_by_the_pooled_standard_deviation():
    """Means 4 and 2; variances 4 (of 2, 4, 6) and 1 (of 1, 2, 3); pooled sqrt(2.5)."""
    assert cohens_d([2, 4, 6], [1, 2, 3]) == pytest.approx(2 / 2.5**0.5)
    assert cohens_d([5, 5], [3, 3]) is None
    assert cohens_d([5], [3]) is None


def test_a_question_within_an_answer_is_a_leak_if_it_is_no_chance():
    assert texts.leaked(turn("user", QUESTION), f"{QUESTION} four")
    assert not texts.leaked(turn("user", QUESTION), "four")
    assert not texts.leaked(turn("user", "Hello"), "Hello there")


def test_equal_rows_have_equal_digests_whatever_the_spaces_and_the_order_of_keys():
    assert texts.digest([{"a": "x ", "b": "y"}]) == texts.digest([{"b": "y", "a": "x"}])
    assert texts.digest([{"a": "x"}]) != texts.digest([{"a": "y"}])


def test_label_balance_counts_letters_where_nine_tenths_of_answers_are_letters():
    assert texts.label_balance(Counter({"B": 2, "A": 7, "none": 1})) == {"A": 7, "B": 2}
    assert texts.label_balance(Counter({"A": 8, "none": 2})) == {}
    assert texts.label_balance(Counter()) == {}


def counted(*lengths):
    """Pairs of answers of these lengths."""
    pairs = Pairs()
    for i, (chosen, rejected) in enumerate(lengths):
        pairs.add(f"line {i}", turn("user", "q"), turn("assistant", "a" * chosen), turn("assistant", "b" * rejected))
    return pairs.to_dict()


def test_pairs_are_counted_by_length():
    found = counted((3, 1), (1, 3), (2, 2), (5, 1))
    assert (found["pairs"], found["chosen_longer"], found["chosen_shorter"]) == (4, 0.5, 0.25)


def test_identical_empty_and_leaking_pairs_name_the_first():
    pairs = Pairs()
    for i, (chosen, rejected) in enumerate([("x", "y"), ("x", "x "), ("", "y"), (f"{QUESTION} x", "y")]):
        pairs.add(f"line {i}", turn("user", QUESTION), turn("assistant", chosen), turn("assistant", rejected))
    found = pairs.to_dict()
    assert found["identical"] == {"rows": 1, "first": "line 1"}
    assert found["empty"] == {"rows": 1, "first": "line 2"}
    assert found["prompt_in_chosen"] == {"rows": 1, "first": "line 3"}
    assert found["prompt_in_rejected"] == {"rows": 0}


def test_a_warning_says_when_length_alone_would_decide():
    assert "it is the longer one in 100%" in decided_by_length(counted(*[(9, 1)] * 20))
    assert "it is the shorter one in 75%" in decided_by_length(counted(*[(1, 9)] * 15, *[(9, 1)] * 5))
    assert decided_by_length(counted(*[(9, 1)] * 10, *[(1, 9)] * 10)) == ""
    assert decided_by_length(counted(*[(9, 1)] * 19)) == ""  # too few to conclude


def test_a_large_effect_warns_where_few_answers_are_longer():
    """11 of 20 chosen answers have 100 characters, all others 10: d = 49.5 / sqrt(45.93^2 / 2) = 1.52."""
    text = decided_by_length(counted(*[(100, 10)] * 11, *[(10, 10)] * 9))
    assert "longer one in 55% of pairs (Cohen's d of length +1.52)" in text


@pytest.mark.parametrize(
    ("row", "need"),
    [
        (pair(), "preferences"),
        ({"prompt": "q", "completion": "a"}, "conversations"),
        ({"prompt": "q"}, "prompts"),
    ],
)
def test_the_need_is_what_the_data_can_serve(write, row, need):
    assert Reader(DataSpec(write("d.jsonl", row)), None, Catalog()).need == need


def test_every_need_has_an_installed_method():
    catalog = Catalog()
    assert {need: catalog.load("methods", name)[0].data for need, name in METHODS.items()} == {n: n for n in METHODS}


def test_inspect_tells_format_columns_what_is_left_out_and_what_is_wrong(write):
    rows = [pair(), pair(), pair("什么是糖尿病？", note="x"), pair("long", chosen="word " * 200), "not json"]
    found = inspect(write("d.jsonl", *rows), Catalog(), eval_data=write("e.jsonl", pair(chosen="other")))
    assert (found["format"], found["need"], found["total"], found["usable"]) == ("preference", "preferences", 5, 3)
    assert found["columns"] == {name: name for name in pair()}
    assert found["unused"] == ["note"]
    assert [(reason["kind"], reason["rows"], reason["first"]) for reason in found["left_out"]] == [
        ("malformed", 1, "d.jsonl line 5"),
        ("too long", 1, "d.jsonl line 4"),
    ]
    assert any("1 rows repeat an earlier one (d.jsonl line 2 is d.jsonl line 1)" in text for text in found["warnings"])
    assert any("1 of 1 held-out rows have a prompt that is trained on" in text for text in found["warnings"])


def test_inspect_names_the_formats_that_fit_too(write):
    row = {"prompt": "q", "completion": "a", "question": "q", "answer": "a"}
    found = inspect(write("d.jsonl", row), Catalog())
    assert found["format"] not in found["runners_up"]
    assert {"prompt_completion", "question_answer"} <= {found["format"], *found["runners_up"]}


def test_inspect_warns_of_an_exam_whose_answer_is_mostly_one_letter(write):
    exam = [{"question": f"q{i}", "A": "x", "B": "y", "C": "z", "answer": "BA"[i > 19]} for i in range(24)]
    found = inspect(write("d.jsonl", *exam), Catalog(), method="grpo")
    assert "the answer is B in 83% of rows: a model that always says so is right as often" in found["warnings"]


@pytest.mark.parametrize("method", ["dpo", "sft", "grpo"])
def test_inspect_shows_the_built_in_data(method):
    found = inspect("builtin", Catalog(), method=method)
    assert found["usable"] > 0.9 * found["total"]


def test_inspect_prints_what_it_found(write):
    done = run("inspect", write("d.jsonl", pair(), pair(question="Another question?")))
    assert done.exit_code == 0, done.output
    for part in (
        "format        preference, by the columns question",
        "chosen        from response_chosen",
        "usable",
        "Example 1: d.jsonl line 1, as the model is given it",
        "«four<|im_end|>■»",
    ):
        assert part in done.output


def test_inspect_says_when_a_method_can_use_no_row(write):
    found = inspect(write("d.jsonl", {"prompt": "q", "completion": "a"}), Catalog(), method="dpo")
    assert (found["usable"], found["left_out"][0]["rows"]) == (0, 1)
    assert "no row can be used, for the reasons above" in found["warnings"]


def test_inspect_gives_one_json_object(write):
    done = run("inspect", write("d.jsonl", pair()), "--json")
    assert json.loads(done.stdout)["total"] == 1


def test_validate_names_every_bad_row_with_its_file_and_line(write):
    rows = [pair(), "not json", pair(chosen=""), pair(chosen="same", rejected="same"), pair(chosen="")]
    done = run("validate", write("d.jsonl", *rows))
    assert done.exit_code == 1
    for start in (
        "d.jsonl:2: malformed",
        "d.jsonl:3: malformed",
        "d.jsonl:4: nothing to learn",
        "d.jsonl:5: malformed",
    ):
        assert any(line.startswith(start) for line in done.output.splitlines())


def test_validate_gives_all_bad_rows_as_json(write):
    good, bad = write("good.jsonl", pair()), write("bad.jsonl", pair(), *["no"] * 150)
    done = run("validate", good, bad, "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert [source["passed"] for source in found["sources"]] == [True, False]
    rows = found["sources"][1]["bad_rows"]
    assert [(row["file"], row["line"]) for row in rows] == [("bad.jsonl", line) for line in range(2, 152)]


def test_validate_passes_data_that_is_as_it_should_be(write):
    assert run("validate", write("d.jsonl", pair()), "--model", "builtin").exit_code == 0


def test_validate_tries_the_limits_where_a_model_is_named(write):
    name = write("d.jsonl", pair(), pair(chosen="word " * 200))
    assert run("validate", name).exit_code == 0
    found = validate(name, Catalog(), model="builtin")
    assert [(row["line"], row["kind"]) for row in found["bad_rows"]] == [(2, "too long")]


def test_validate_fails_where_a_held_out_prompt_is_trained_on(write):
    done = run("validate", write("d.jsonl", pair()), "--eval-data", write("e.jsonl", pair(chosen="four!")))
    assert done.exit_code == 1
    assert "1 of 1 held-out rows have a prompt that is trained on" in done.output


def test_validate_finds_the_held_out_files_of_a_folder(write, tmp_path):
    (tmp_path / "d").mkdir()
    write("d/train.jsonl", pair(), pair(question="Another question?"))
    write("d/test.jsonl", pair(chosen="four!"), pair(question="A third question?"))
    found = validate("d", Catalog())
    assert [check["text"] for check in found["checks"] if not check["passed"]] == [
        "1 of 2 held-out rows have a prompt that is trained on"
    ]


def test_data_that_no_formatter_reads_fails(write):
    done = run("validate", write("d.jsonl", {"a": 1}), "--json")
    assert done.exit_code == 1
    assert "no formatter fits" in json.loads(done.stdout)["sources"][0]["checks"][0]["text"]


@pytest.mark.parametrize("words", [["validate"], ["validate", "no.jsonl"], ["inspect", "no.jsonl"]])
def test_mistakes_are_one_message_and_exit_code_2(words, tmp_path):
    command = [sys.executable, "-m", "rlhf_core", "data", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "rror: " in done.stderr
    assert "Traceback" not in done.stderr
