"""Labels of people: their file, and rewards compared with them (`rlhf score --against`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from rlhf_core.catalog import Catalog
from rlhf_core.cli import rlhf
from rlhf_core.data.labels import Label, append_label, by_pair, is_label, pair_id, parse_label, read_labels
from rlhf_core.data.loading import load
from rlhf_core.data.pairs import pair_row, question_of, read_pairs, reply, text_of
from rlhf_core.errors import RunStopped, UserError
from rlhf_core.grammar import DataSpec
from rlhf_core.reward_report.human import read_human

LONG, SHORT = "a long and careful answer", "short"
REWARD = """
from rlhf_core import Reward, RunStopped
def size(completions, **_): return [float(len(c[0]["content"])) for c in completions]
def some(completions, **_): return [None if "short" in c[0]["content"] else 1.0 for c in completions]
async def first(function, prompts, first, second):  # prefers what it reads first
    return [ValueError("no") if "broken" in p[-1]["content"] else 1.0 for p in prompts]
async def spent(function, prompts, first, second): raise RunStopped("the budget is spent")
stops = Reward(size, pairwise=spent, view="messages", name="stops")
judge = Reward(size, pairwise=first, view="messages", name="judge")
"""


def turns(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def label(question: str, better: str, who: str = "ann", one: str = LONG, other: str = SHORT, shown: str = "a") -> Label:
    prompt = [{"role": "user", "content": question}]
    a, b = turns(one), turns(other)
    return Label(pair_id(prompt, a, b), prompt, a, b, better, who, 4.0, shown, "2026-01-01T00:00:00+00:00")


def score(*arguments: str) -> dict:
    result = CliRunner().invoke(rlhf, ["score", *arguments, "--json"], catch_exceptions=False, standalone_mode=False)
    return json.loads(result.stdout)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"r{tmp_path.name}.py").write_text(REWARD)
    return tmp_path


def test_a_label_is_read_as_it_was_written_and_as_a_pair_to_learn(tmp_path):
    path = tmp_path / "x.labels.jsonl"
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"}]
    talk = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "q"},
    ]
    written = [
        Label(
            pair_id(prompt, turns(LONG), turns(other)), prompt, turns(LONG), turns(other), better, "ann", 1.5, "b", "t"
        )
        for prompt in (system, talk)
        for other, better in ((SHORT, "a"), ('[{"role": "user"}]', "b"), ("x", "tie"), ("y", "skip"))
    ]
    for one in written:
        append_label(path, one)
    found = read_labels(path)
    assert [one.line() for one in found.labels] == [one.line() for one in written]
    assert not found.others
    assert all(is_label(json.loads(line)) for line in path.read_text().splitlines())
    data = load([DataSpec(str(path))], "preferences", Catalog())
    learned = sorted((row["prompt"][0]["content"], row["chosen"][0]["content"]) for row in data.train)
    assert learned == [(first, text) for first in ("Be brief.", "hi") for text in ('[{"role": "user"}]', LONG)]
    assert "left out 4 of 8 rows" in data.warnings[0]  # ties, and what was skipped


def test_what_is_no_label_is_passed_over_and_half_a_line_is_closed(tmp_path):
    path = tmp_path / "x.labels.jsonl"
    good = json.dumps(label("q", "a").line())
    odd = [
        {**json.loads(good), **change}
        for change in ({"better": "c"}, {"labeller": " "}, {"response_a": 3}, {"question": ""})
    ]
    path.write_text(
        "\n".join([good, *map(json.dumps, odd), "[1]", "\ud800".encode("utf-8", "replace").decode(), good[:40]])
    )
    append_label(path, label("q2", "b"))
    found = read_labels(path)
    assert [one.prompt[0]["content"] for one in found.labels] == ["q", "q2"]
    assert len(found.others) == 7
    assert "7 lines passed over" in found.warnings()[0]
    assert parse_label({**json.loads(good), "seconds": float("nan"), "shown_first": 1}).seconds is None


def test_the_later_label_of_a_labeller_counts_and_the_sides_do_not_matter():
    one, other = label("q", "a"), label("q", "b", one=SHORT, other=LONG)
    assert one.id == other.id
    assert one.verdict == other.verdict
    assert (one.first_shown, other.first_shown) == (one.order, -one.order)
    assert len(by_pair([one, other])) == 1


def test_several_processes_write_to_one_file(tmp_path):
    path = tmp_path / "x.labels.jsonl"
    program = (
        "import sys; from pathlib import Path; from rlhf_core.data.labels import append_label, parse_label; import json\n"
        "line = json.loads(sys.argv[2])\n"
        "for i in range(30): append_label(Path(sys.argv[1]), parse_label({**line, 'question': sys.argv[3] + str(i)}))"
    )
    line = json.dumps(label("q", "a", one="x" * 20_000).line())
    started = [subprocess.Popen([sys.executable, "-c", program, str(path), line, who]) for who in "ab"]
    assert [process.wait() for process in started] == [0, 0]
    found = read_labels(path)
    assert (len(found.labels), found.others) == (60, [])


def test_pairs_are_read_with_the_columns_that_no_formatter_reads(tmp_path, write_jsonl):
    rows = [
        {
            "question": "q",
            "system": "s",
            "response_chosen": "yes",
            "response_rejected": "no",
            "score_chosen": 2,
            "x": None,
        }
    ]
    found = read_pairs(write_jsonl("p.jsonl", rows), Catalog())
    [pair] = found.rows
    assert pair.columns == {"score_chosen": 2}
    assert pair_row(pair.prompt, pair.chosen, pair.rejected) == {
        k: rows[0][k] for k in ("question", "system", "response_chosen", "response_rejected")
    }
    assert question_of([{"role": "tool", "content": "4"}]).keys() == {"prompt"}
    assert reply(turns('[{"role": "user", "content": "x"}]')) == turns('[{"role": "user", "content": "x"}]')
    thought = [{"role": "assistant", "content": "4", "reasoning_content": "2+2"}]
    assert text_of(reply(thought)) == "<think>\n2+2\n</think>\n4"
    with pytest.raises(UserError, match="no pair of a chosen and a rejected answer"):
        read_pairs(write_jsonl("q.jsonl", [{"question": "q", "answer": "a"}]), Catalog())


def test_a_reward_is_compared_with_labels(here):
    path = here / "l.labels.jsonl"
    said = [
        *[label(f"q{i}", "a") for i in range(6)],  # the longer one, as the reward
        *[label(f"r{i}", "b") for i in range(2)],  # the shorter one
        label("t", "tie"),
        *[label("u", better, who) for better, who in (("a", "ann"), ("b", "bob"))],  # no majority
        label("v", "skip"),
        label("broken", "b"), label("broken", "a"),  # the later one counts
    ]  # fmt: skip
    for one in said:
        append_label(path, one)
    result = score("--reward", f"./r{here.name}.py:judge", "--against", str(path))
    against = result["against"]
    found = against["rewards"]["judge"]
    assert (against["pairs"], against["people"]["no_majority"], against["people"]["skipped"]) == (10, 1, 1)
    assert (found["with_ties"]["agree"], found["with_ties"]["pairs"]) == (7, 10)
    assert (found["without_ties"]["agree"], found["without_ties"]["pairs"]) == (7, 9)
    assert found["ties"] == [1, 0]
    assert found["longer_wins"]["share"] == 1
    assert against["longer_wins"]["share"] == pytest.approx(7 / 9)
    assert against["people"]["all_agree"] == {
        "count": 1,
        "share": 0,
        **{k: against["people"]["all_agree"][k] for k in ("low", "high")},
    }
    pairwise = found["pairwise"]
    assert (pairwise["failed"], pairwise["orders_differ"]["share"], pairwise["first_shown_wins"]["share"]) == (1, 1, 1)
    assert pairwise["with_ties"]["agree"] == 1  # where people say a tie, as a judge of the order alone comes to
    shown = CliRunner().invoke(
        rlhf, ["score", "--reward", f"./r{here.name}.py:judge", "--against", str(path), "--html", "x.html"]
    )
    assert "agrees with people  70.0%" in shown.output
    assert "read first wins     100.0%" in shown.output
    assert "agrees with people" in (here / "x.html").read_text()
    shown = CliRunner().invoke(rlhf, ["score", "--reward", "length", "--against", str(path)], env={"RLHF_LANG": "zh"})
    assert "和人一致" in shown.output


def test_a_reward_is_compared_with_pairs_and_with_scores(here, write_jsonl):
    reward = f"./r{here.name}.py:size"
    pairs = [
        {
            "question": f"q{i}",
            "response_chosen": LONG if i < 30 else SHORT,
            "response_rejected": SHORT if i < 30 else LONG,
        }
        for i in range(40)
    ]
    found = score(
        "--reward", reward, "--reward", f"./r{here.name}.py:some", "--against", write_jsonl("p.jsonl", pairs)
    )["against"]["rewards"]
    assert found["size"]["with_ties"]["accuracy"] == 0.75
    assert found["some"]["without_verdict"] == 40
    limited = score("--reward", reward, "--against", write_jsonl("p.jsonl", pairs), "--limit", "5")
    assert (limited["completions"], limited["against"]["pairs"]) == (10, 5)
    # the words of the first answer count 1, 2, 3; people say 1, 3, 2
    rated = [{"prompt": "p", "completion": "x" * n, "rating": r} for n, r in ((1, 1), (2, 3), (3, 2))]
    path = write_jsonl("s.jsonl", rated)
    [found] = score("--reward", reward, "--against", f"{path}:score=rating")["against"]["rewards"].values()
    assert found["spearman"] == pytest.approx(0.5)  # 1 - 6 * 2 / (3 * 8)
    assert (found["within_prompts"]["with_ties"]["agree"], found["within_prompts"]["with_ties"]["pairs"]) == (2, 3)
    both = score(path, "--reward", reward, "--against", write_jsonl("p.jsonl", pairs))
    assert (both["completions"], both["against"]["pairs"]) == (3, 40)


def test_a_judge_whose_budget_is_spent_ends_the_command_after_what_is_known(here):
    path = here / "l.labels.jsonl"
    append_label(path, label("q", "a"))
    result = CliRunner().invoke(rlhf, ["score", "--reward", f"./r{here.name}.py:stops", "--against", str(path)])
    assert isinstance(result.exception, RunStopped)
    assert "stops: then compares 1 pairs, each in both orders" in result.output
    assert "agrees with people  100.0%" in result.output
    assert "stopped: the budget is spent" in result.output


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"question": "q", "answer": "a"}], "nothing to compare with"),
        ([], "the file is empty"),
        ([{"question": "q", "answer": "a", "score": 1}], "fewer than three"),
        ([{**label("q", "skip").line()}], "none of its pairs has a verdict"),
        ([{"question": "q", "response_chosen": "a", "response_rejected": "b", "score": 1}] * 3, "pairs and a column 'score'"),
    ],
)  # fmt: skip
def test_where_nothing_can_be_compared(rows, problem, write_jsonl):
    with pytest.raises(UserError, match=problem):
        read_human(write_jsonl("x.jsonl", rows), Catalog())


def test_a_full_disk_leaves_no_half_a_label(tmp_path, monkeypatch):
    path = tmp_path / "x.labels.jsonl"
    append_label(path, label("q", "a"))
    whole = path.read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:30]))
    with pytest.raises(OSError, match="No space left"):
        append_label(path, label("q2", "a"))
    assert path.read_bytes() == whole
