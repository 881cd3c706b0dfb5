"""`rlhf preferences audit`: contradictions, likeness, labels, and the rows to look at first."""

from __future__ import annotations

import ast
import json
import random
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from rlhf_tools import preferences
from rlhf_tools.preferences import auditing
from rlhf_tools.preferences.audit import audit
from rlhf_tools.preferences.contradictions import components, contradictions
from rlhf_tools.preferences.likeness import likeness
from rlhf_tools.preferences.words import TRANSLATIONS

from rlhf_core import UserError
from rlhf_core.commands import Label, append_label, pair_id

HERE = Path(preferences.__file__).parent
REWARD = """
from rlhf_core import Reward, RunStopped
def size(completions, **_): return [float(len(text)) for text in completions]
async def longer(function, prompts, first, second):
    return [float(len(a) - len(b)) for a, b in zip(first, second)]
async def spent(function, prompts, first, second): raise RunStopped("the budget is spent")
judge = Reward(size, pairwise=longer, name="judge")
plain = Reward(size, name="plain")
stops = Reward(size, pairwise=spent, name="stops")
"""


@pytest.mark.parametrize(
    ("edges", "opposite", "cycles", "duplicates", "mixed"),
    [
        (["ab", "cd"], [], [], [], 0),
        (["ab", "ba"], [[0, 1]], [], [], 0),
        (["ab", "bc", "ca"], [], [[0, 1, 2]], [], 0),
        (["ab", "bc", "ac"], [], [], [], 1),  # an order: b is chosen here and rejected there
        (["ab", "ab", "ab"], [], [], [[0, 1, 2]], 0),
        (["ab", "bc", "ca", "cd", "de", "ed"], [[4, 5]], [[0, 1, 2]], [], 0),
        (["ab", "ba", "bc", "ca"], [[0, 1]], [[0, 1, 2, 3]], [], 0),
        (["aa", "ab"], [], [], [], 0),  # of equal answers nothing is said here
    ],
)
def test_contradictions(edges, opposite, cycles, duplicates, mixed):
    found = contradictions(["p"] * len(edges), [tuple(edge) for edge in edges])
    assert (found.opposite, found.cycles, found.duplicates, found.mixed) == (opposite, cycles, duplicates, mixed)
    apart = contradictions(list(range(len(edges))), [tuple(edge) for edge in edges])  # each with a prompt of its own
    assert (apart.opposite, apart.cycles, apart.duplicates, apart.mixed) == ([], [], [], 0)


def test_components_of_random_graphs_are_what_reaches_each_other():
    rng = random.Random(0)
    for size in range(2, 9):
        graph = {a: [b for b in range(size) if b != a and rng.random() < 0.3] for a in range(size)}

        def reached(start: int, graph: dict[int, list[int]] = graph) -> set[int]:
            seen, work = {start}, [start]
            while work:
                new = set(graph[work.pop()]) - seen
                seen |= new
                work += new
            return seen

        expected = {frozenset(b for b in graph if b in reached(a) and a in reached(b)) for a in graph}
        assert {frozenset(nodes) for nodes in components(graph)} == expected


def test_one_prompt_with_very_many_answers_takes_no_time():
    began = time.monotonic()
    chain = [(i, i + 1) for i in range(30_000)]
    assert contradictions([0] * 30_001, [*chain, (30_000, 0)]).cycles == [list(range(30_001))]
    assert time.monotonic() - began < 5


TEXT = "多喝水，注意休息，体温超过三十八度五时服用退烧药，三天不退或者精神变差应当去医院就诊。" * 4


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (TEXT, TEXT, "same"),
        (TEXT, f" {TEXT}\n", "same"),
        ("Yes, it IS.", "yes,  it is.", "same"),
        (TEXT, TEXT[:-2] + "吧。", "nearly"),
        (TEXT, TEXT.replace("三十八度五", "三十九度整", 1), "nearly"),
        (TEXT, TEXT[: len(TEXT) // 2], None),
        ("yes", "no", None),
        ("", "x", None),
        ("word " * 200, "other " * 170, None),
    ],
)
def test_likeness(one, other, expected):
    assert likeness(one, other) == likeness(other, one) == expected


def turns(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def add(path: Path, question: str, a: str, b: str, better: str, who: str = "ann", seconds: float | None = 9.0) -> None:
    prompt = [{"role": "user", "content": question}]
    append_label(
        path, Label(pair_id(prompt, turns(a), turns(b)), prompt, turns(a), turns(b), better, who, seconds, "a")
    )


def run(*arguments: str) -> dict:
    result = CliRunner().invoke(audit, [*arguments, "--json"], catch_exceptions=False, standalone_mode=False)
    return json.loads(result.stdout)


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Ten pairs: the second says the opposite of the first, and so on, with labels beside them."""
    monkeypatch.chdir(tmp_path)
    pairs = [
        ("p", "long answer one", "short two"),
        ("p", "short two", "long answer one"),
        ("q", "same text", "Same  text"),
        *[(f"r{i}", "x" * 40, "y" * 30) for i in range(7)],
    ]
    rows = [
        {"question": q, "response_chosen": a, "response_rejected": b, "score_margin": i}
        for i, (q, a, b) in enumerate(pairs)
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    labels = tmp_path / "p.labels.jsonl"
    add(labels, "p", "long answer one", "short two", "a")
    add(labels, "r0", "y" * 30, "x" * 40, "a", "ann", 0.2)  # the other one, and too fast
    for i, both in enumerate(("aa", "ab", "tt", "ss"), start=1):
        for who, letter in zip(("ann", "bob"), both, strict=True):
            add(labels, f"r{i}", "x" * 40, "y" * 30, {"t": "tie", "s": "skip"}.get(letter, letter), who, None)
    add(labels, "elsewhere", "a", "b", "a")
    (tmp_path / f"r{tmp_path.name}.py").write_text(REWARD)
    return tmp_path / "p.jsonl"


def test_an_audit(file):
    found = run("p.jsonl")
    assert (found["rows"], found["prompts"]) == (10, 9)
    assert found["opposite"] == {"groups": 1, "rows": 2, "first": [["p.jsonl line 1", "p.jsonl line 2"]]}
    assert found["same_answers"] == {"rows": 1, "first": ["p.jsonl line 3"]}
    people = found["people"]
    assert people["labels_of_other_pairs"] == 1
    # Verdicts on rows: 1, -1 (the second row of p), r0 -1, r1 1, r2 no majority, r3 a tie, r4 skipped.
    assert (people["file"]["with_ties"]["pairs"], people["file"]["with_ties"]["agree"]) == (5, 2)
    assert people["file"]["ties"] == [1, 0]
    assert people["labelled_by_several"] == 3
    assert people["all_agree"]["share"] == pytest.approx(2 / 3)
    ann, bob = people["each"]
    assert (ann["labels"], ann["ties"], ann["skipped"], ann["too_fast"], ann["median_seconds"]) == (6, 1, 1, 1, 4.6)
    assert (bob["agrees_with_others"]["count"], bob["agrees_with_others"]["share"]) == (3, pytest.approx(2 / 3))
    reasons = {one["location"]: [why["reason"] for why in one["reasons"]] for one in found["look_at"]}
    assert found["look_at"][0]["location"] == "p.jsonl line 2"
    assert reasons["p.jsonl line 2"] == ["another row says the opposite", "people prefer the rejected answer"]
    assert reasons["p.jsonl line 4"] == ["people prefer the rejected answer", "labelled faster than it can be read"]
    assert reasons["p.jsonl line 6"] == ["labellers disagree"]
    assert reasons["p.jsonl line 7"] == ["people call it a tie"]
    assert "p.jsonl line 5" not in reasons
    assert len(run("p.jsonl", "--rows", "2")["look_at"]) == 2
    shown = CliRunner().invoke(audit, ["p.jsonl"], env={"RLHF_LANG": "zh"}).output
    assert "说法相反" in shown
    assert "人更喜欢被拒的回答" in shown


def test_a_judge_in_an_audit(file):
    reward = f"./r{file.parent.name}.py"
    found = run("p.jsonl", "--judge", f"{reward}:plain")["judge"]
    assert (found["file"]["with_ties"]["pairs"], found["file"]["with_ties"]["agree"]) == (10, 8)
    assert (found["people"]["with_ties"]["pairs"], found["people"]["with_ties"]["agree"]) == (5, 3)
    assert found["longer_wins"]["share"] == 1
    pairwise = run("p.jsonl", "--judge", f"{reward}:judge")
    assert pairwise["judge"]["orders_differ"]["share"] == 0
    assert pairwise["judge"]["file"] == found["file"]
    reasons = {one["location"]: [why["reason"] for why in one["reasons"]] for one in pairwise["look_at"]}
    assert "the judge prefers the rejected answer" in reasons["p.jsonl line 2"]
    stopped = CliRunner().invoke(audit, ["p.jsonl", "--judge", f"{reward}:stops"])
    assert type(stopped.exception).__name__ == "RunStopped"
    assert "the budget is spent" in stopped.output
    assert "People" in stopped.output  # what is known without it is shown


def test_labels_alone_are_audited(file):
    found = run("p.labels.jsonl")
    assert (found["rows"], found["people"]["file"], found["people"]["labels"]) == (7, None, 11)
    assert found["chosen_longer"]["count"] == 3  # with a majority for one answer, and of two lengths
    reasons = {one["location"]: [why["reason"] for why in one["reasons"]] for one in found["look_at"]}
    assert reasons["p.labels.jsonl line 5"] == ["labellers disagree"]
    with pytest.raises(UserError, match="--labels has no effect"):
        CliRunner().invoke(audit, ["p.labels.jsonl", "--labels", "x"], catch_exceptions=False)
    with pytest.raises(UserError, match="holds no labels"):
        CliRunner().invoke(audit, ["p.jsonl", "--labels", "p.jsonl"], catch_exceptions=False)
    with pytest.raises(UserError, match="there is no such file"):
        CliRunner().invoke(audit, ["p.jsonl", "--labels", "nowhere.jsonl"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("seconds", "better", "length", "fast"),
    [(0.5, "a", 2, True), (1.5, "a", 2, False), (1.5, "a", 500, True), (1.5, "skip", 500, False), (None, "a", 9, False), (25, "a", 10**5, False)],
)  # fmt: skip
def test_what_is_too_fast(seconds, better, length, fast):
    label = Label("i", [], turns("x" * length), turns("<think>" + "y" * 9999 + "</think>"), better, "ann", seconds, "a")
    assert auditing.too_fast(label) == fast


def test_every_sentence_has_a_chinese_one():
    known = {sentence for table in TRANSLATIONS for sentence in table}
    from rlhf_core.chinese import CHINESE

    for file in ("audit", "audit_showing", "judging"):
        for node in ast.walk(ast.parse((HERE / f"{file}.py").read_text())):
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", "") == "say"
                and isinstance(node.args[1], ast.Constant)
            ):
                assert node.args[1].value in known | CHINESE.keys(), node.args[1].value
    assert auditing.WEIGHTS.keys() <= known
