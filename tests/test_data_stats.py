"""`rlhf data stats`: histograms and near-duplicates by hand-worked examples, and what the command says."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from rlhf_core.catalog import Catalog
from rlhf_core.cli import rlhf
from rlhf_core.data_report import charts, near, texts, tokens
from rlhf_core.data_report.near import Near, NearRows, runs, similarity
from rlhf_core.data_report.stats import stats

LONG = "The patient has had a fever of thirty-nine degrees for three days, with a dry cough and a headache at night."
CHANGED = LONG.replace("thirty-nine", "thirty-eight")
HAN = (
    "患者三天前开始发热，体温最高三十九度，伴有干咳和夜间头痛，无皮疹，无呕吐，既往体健，无药物过敏史，今日来我院就诊。"
)


def pair(question, chosen="four", rejected="five", **others):
    return {"question": question, "response_chosen": chosen, "response_rejected": rejected, **others}


@pytest.fixture
def write(write_jsonl, tmp_path, monkeypatch):
    """write("data.jsonl", row, …) -> its name, in the folder where commands run."""
    monkeypatch.chdir(tmp_path)
    return lambda name, *rows: write_jsonl(name, rows) and name


def test_a_histogram_has_bins_of_a_round_width_and_one_for_what_is_beyond():
    """1 … 100 and one of 5,000: 99 % do not exceed 100, and (100 - 1) // 10 = 9 is below 12 bins."""
    found = texts.histogram([*range(1, 101), 5000])
    assert found[0] == {"from": 0, "to": 9, "count": 9}
    assert found[-2:] == [{"from": 100, "to": 109, "count": 1}, {"from": 110, "to": 5000, "count": 1}]
    assert sum(each["count"] for each in found) == 101
    assert texts.histogram([7, 7]) == [{"from": 7, "to": 7, "count": 2}]
    assert texts.histogram([]) == []


def test_a_bar_is_as_long_as_its_share_and_never_nothing_for_something():
    assert charts.bar(1, blocks=False) == "#" * charts.WIDTH
    assert charts.bar(0.0001, blocks=False) == "#"
    assert charts.bar(0, blocks=True) == ""
    assert charts.bar(0.5, blocks=True) == "█" * (charts.WIDTH // 2)
    assert charts.bar(1.5 / charts.WIDTH, blocks=True) == "█▌"


def test_the_limit_stands_below_the_bin_that_it_is_in():
    found = {
        "tokens": {"50": 5, "max": 19},
        "histogram": [{"from": 0, "to": 9, "count": 3}, {"from": 10, "to": 19, "count": 1}],
        **{"limit": 8, "option": "--max-prompt-length", "rule": "drop", "over": 1},
    }
    lines = list(charts.histogram(found, 4, blocks=False))
    assert lines[0] == "50 %: 5, max 19"
    assert lines[1].split() == ["0–9", "#" * charts.WIDTH, "3", "75.0%"]
    assert lines[2].strip() == "limit --max-prompt-length 8: 1 over (25.0%), left out"
    assert lines[3].split() == ["10–19", "#" * round(charts.WIDTH / 3), "1", "25.0%"]
    assert all(len(line) <= 78 for line in lines)
    bins = [{"from": 10, "to": 19, "count": 4}]
    assert "limit" in list(charts.histogram({**found, "histogram": bins}, 4, blocks=False))[1]  # before all bins


def test_similarity_is_the_share_of_runs_of_five_characters_that_both_have():
    """abcdef has abcde and bcdef; bcdefg has bcdef and cdefg: one of three."""
    assert similarity(runs("abcdef"), runs("bcdefg")) == pytest.approx(1 / 3)
    assert runs("ab") == {"ab"}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (LONG, CHANGED, True),
        (LONG, LONG.upper().replace(" ", "  "), True),
        (HAN, HAN.replace("三十九", "三十八"), True),
        (LONG, LONG[: len(LONG) // 2] + HAN, False),
        ("What is 2 + 2?", "What is 2 + 3?", False),
        ("no", "yes", False),
    ],
)
def test_texts_are_nearly_the_same_from_four_fifths_on(one, other, same):
    kept = Near()
    kept.add(kept.hashed(one), "line 1")
    assert (kept.find(kept.hashed(other)) == "line 1") == same


def test_near_rows_are_in_the_group_of_the_first():
    rows = NearRows()
    for i, text in enumerate([LONG, HAN, CHANGED, LONG + "!", "something else"], start=1):
        rows.add(f"line {i}", text)
    found = rows.to_dict()
    assert (found["rows"], found["groups"]) == (2, 1)
    assert found["examples"] == [{"first": "line 1", "rows": 2, "like": ["line 3", "line 4"]}]


def test_what_is_compared_is_bounded_by_memory(monkeypatch):
    monkeypatch.setattr(near, "ROOM", near.OVERHEAD + 1000)
    rows = NearRows()
    for i, text in enumerate([LONG, HAN, HAN, CHANGED], start=1):
        rows.add(f"line {i}", text)
    found = rows.to_dict()
    assert (found["rows"], found["not_compared_with_each_other"]) == (1, 2)


def test_stats_counts_rows_lengths_duplicates_scripts_and_overlap(write, monkeypatch):
    monkeypatch.setattr(tokens, "MEASURED", 2)
    rows = [pair(LONG), pair(LONG), pair(CHANGED), pair(HAN, note="x"), "not json"]
    held_out = write("e.jsonl", pair(LONG, chosen="x"), pair(CHANGED + "!"), pair("Something else?"))
    found = stats(write("d.jsonl", *rows), Catalog(), eval_data=held_out)
    assert (found["total"], found["rows"], found["format"]) == (5, 4, "preference")
    assert found["duplicates"]["examples"] == [("d.jsonl line 2", "d.jsonl line 1")]
    assert found["near_duplicates"]["examples"] == [{"first": "d.jsonl line 1", "rows": 1, "like": ["d.jsonl line 3"]}]
    assert found["scripts"] == {"Latin": 3, "Han": 1}
    assert (found["held_out"]["rows"], found["held_out"]["overlap"], found["held_out"]["near"]) == (3, 1, 1)
    assert found["held_out"]["near_examples"] == [("e.jsonl line 2", "d.jsonl line 3")]
    chosen = found["lengths"]["parts"]["chosen"]
    assert (chosen["option"], chosen["over"], found["lengths"]["rows"]) == ("--max-completion-length", 0, 2)
    assert sum(each["count"] for each in chosen["histogram"]) == 2  # evenly spread, of four
    said = " ".join(found["warnings"])
    for part in (
        "1 rows repeat an earlier one (d.jsonl line 2 is d.jsonl line 1)",
        "1 rows are nearly the same as an earlier one (d.jsonl line 3 is like d.jsonl line 1)",
        "1 of 3 held-out rows have a prompt that is trained on",
        "1 of 3 held-out rows have nearly a prompt that is trained on (e.jsonl line 2 is like d.jsonl line 3)",
    ):
        assert part in said


def test_a_system_message_that_all_rows_share_makes_none_alike(write):
    system = "".join(map(chr, range(0x4E00, 0x4F00)))
    rows = [{"system": system, **pair(question)} for question in ("What is a fever?", "How is asthma treated?")]
    assert stats(write("d.jsonl", *rows), Catalog())["near_duplicates"]["rows"] == 0


def test_plain_text_has_no_prompt(write):
    found = stats(write("d.jsonl", {"text": "All of it."}, {"text": "All of it!"}), Catalog())
    assert list(found["lengths"]["parts"]) == ["conversation"]
    assert found["duplicates"] == {"rows": 0, "examples": [], "different_prompts": 2}


def test_stats_counts_the_answers_of_an_exam(write):
    exam = [{"question": f"q{i}", "A": "x", "B": "y", "C": "z", "answer": "AAB"[i % 3]} for i in range(24)]
    assert stats(write("d.jsonl", *exam), Catalog(), method="grpo")["labels"] == {"A": 16, "B": 8}


def test_stats_prints_histograms_80_columns_wide(write):
    done = CliRunner().invoke(rlhf, ["data", "stats", write("d.jsonl", *[pair(f"{i}? {LONG}") for i in range(9)])])
    assert done.exit_code == 0, done.output
    for part in (
        "prompt, in tokens of 9 rows",
        "limit --max-prompt-length",
        "###",
        "like d.jsonl line 1: line 2, line 3",
    ):
        assert part in done.output
    assert all(len(line) <= 80 for line in done.output.splitlines() if not line.startswith("Warning"))
