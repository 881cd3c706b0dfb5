"""`rlhf eval`: its measures by hand, and on a two-layer model what it writes, and what it knows from before."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner
from rlhf_tools import evaluating, kept
from rlhf_tools.measures import final, ks, majority, pass_at_k, passing
from rlhf_tools.results import Answer

from rlhf_core.cli import rlhf

REWARD = """
from rlhf_core import Reward

def size(completions, **_):
    return [len(c[0]["content"]) / 100 for c in completions]

half = Reward(lambda completions, **_: [0.5] * len(completions), name="half", range=(0.0, 0.5))
"""


def group(*answers: tuple[str, float | None]) -> list[Answer]:
    return [Answer(text, 1, True, {"r": score}) for text, score in answers]


@pytest.mark.parametrize(
    ("samples", "passed", "k", "share"),
    [(4, 1, 1, 1 / 4), (4, 1, 2, 1 - 3 / 6), (4, 2, 2, 1 - 1 / 6), (4, 0, 4, 0), (4, 1, 4, 1), (5, 3, 3, 1)],
)
def test_pass_at_k_by_hand(samples, passed, k, share):
    """1 - (pairs, triples, … that all fail) / (all of them)."""
    assert pass_at_k(samples, passed, k) == pytest.approx(share)


def test_answers_without_a_score_are_not_counted():
    answers = group(("a", 1.0), ("b", 0.9), ("c", None), ("d", 0.2))
    assert passing(answers, "r", 1.0, 2) == pytest.approx(1 - 1 / 3), "one of three passes: of three pairs one fails"
    assert passing(answers, "r", 0.9, 3) == 1.0
    assert passing(answers, "r", 1.0, 4) is None
    assert (ks(1), ks(4), ks(6)) == ([1], [1, 2, 4], [1, 2, 4, 6])


def test_the_majority_is_of_what_answers_come_to():
    assert majority(group(("<answer>B</answer>", 0.0), ("so <answer> b. </answer>", 0.0), ("A", 1.0)), "r") == 0.0
    assert majority(group(("A", 1.0), ("B", 0.0)), "r") == 1.0, "of as many, what came first"
    assert majority(group(("A", None), ("B", 0.0), ("A", None)), "r") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>\\boxed{1}</think>\nIt is\n\\boxed{ 42 }.", "42"),
        ("so \\boxed{\\frac{1}{\\sqrt{2}}}, or half", "\\frac{1}{\\sqrt{2}}"),
        ("\\boxed{" * 9999, "\\boxed{" * 9999),
        ("work\n#### 18", "18"),
        ("<answer>one</answer> no, <answer>Two  words", "two words"),
        ("first\nThe  last。\n\n", "the last"),
        ("", ""),
    ],
)
def test_what_an_answer_comes_to(text, said):
    assert final(text) == said


def test_answers_that_can_not_be_kept_are_not_lost_and_damaged_ones_are_none(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    answers = {"greedy": [group(("a", 1.0))], "sampled": [group(("b", 0.0))]}
    assert kept.keep("k", answers) == ""
    assert kept.find("k")[0] == answers
    failed = [Answer("a", 1, True, {"r": None}, {"r": "timeout"})]
    assert kept.keep("other", {**answers, "sampled": [failed]}) == "a reward failed"
    assert evaluating.failures({"sampled": [failed, failed]}) == ["reward r failed on 2 answers: timeout"]
    for text in ("", "[]", '{"answers": [], "time": ""}', '{"answers": {"greedy": []}, "time": ""}'):
        (tmp_path / "rlhf" / "eval" / "k.json").write_text(text)
        assert kept.find("k") is None
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "Not a directory" in kept.keep("k", answers)


def test_a_model_is_asked_once(tiny_model, tmp_path, monkeypatch, write_jsonl):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "reward.py").write_text(REWARD)
    write_jsonl("exam.jsonl", [{"question": f"<b>{i}</b>?", "answer": str(i)} for i in range(3)])
    asked: list[int] = []
    real = evaluating.answers
    monkeypatch.setattr(evaluating, "answers", lambda *one: asked.append(1) or real(*one))

    def ask(output: str, *more: str) -> tuple[str, dict]:
        names = ["--reward", "./reward.py:size", "--reward", "./reward.py:half", "--max-completion-length", "6"]
        flags = ["--data", "exam.jsonl", *names, "--samples", "2", "--output", output, *more]
        done = CliRunner().invoke(rlhf, ["eval", str(tiny_model), *flags])
        assert done.exit_code == 0, done.output
        return done.output, json.loads((tmp_path / output / "eval.json").read_text(encoding="utf-8"))

    printed, first = ask("one")
    sampled = first["results"]["sampled"]
    lengths = [[len(a["text"]) / 100 for a in row["answers"]["model0"]["sampled"]] for row in first["prompts"]]
    assert [len(one) for one in lengths] == [2, 2, 2]
    assert sampled["rewards"]["size"]["mean"]["mean"] == pytest.approx(sum(map(sum, lengths)) / 6)
    assert sampled["rewards"]["size"]["pass"] == {}, "it has no range"
    assert sampled["rewards"]["half"]["pass"]["2"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "prompts": 3}
    assert sampled["rewards"]["half"]["majority"]["mean"] == 0.5
    assert re.search(r"pass@2 \(from 0.5\) +– +1.000 \[1.000, 1.000\]", printed)
    html = (tmp_path / "one" / "eval.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;0&lt;/b&gt;" in html
    assert "://" not in html

    printed, second = ask("two", "--threshold", "0.9")
    assert (second["prompts"], asked) == (first["prompts"], [1])
    assert "taken from the cache; to answer anew: --fresh" in printed
    assert second["results"]["sampled"]["rewards"]["half"]["pass"]["2"]["mean"] == 0.0

    ask("three", "--fresh")
    (tmp_path / "reward.py").write_text(REWARD + "# another version")
    assert ask("four")[1]["notes"] == []
    assert len(asked) == 3
