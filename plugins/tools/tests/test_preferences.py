"""`rlhf preferences`: which answers become pairs, by hand; and what is written is read back as it was."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from rlhf_tools.preferences import SUBCOMMANDS, preferences, refusals, writing
from rlhf_tools.preferences.chinese import CHINESE
from rlhf_tools.preferences.reading_run import read_steps
from rlhf_tools.preferences.selecting import (
    ANSWERS,
    PAIRS,
    PROMPTS,
    Pair,
    Prompt,
    Rated,
    Verdict,
    default_margin,
    select,
    usable,
)
from rlhf_tools.preferences.sheet import sheet, warnings

from rlhf_core import Catalog
from rlhf_core.cli import rlhf
from rlhf_core.commands import DataSpec, load_data
from rlhf_core.errors import UserError

ASKED = [{"role": "user", "content": "Why?"}]


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_a_subcommand_has_its_module_and_a_help(name):
    command = preferences.get_command(click.Context(preferences), name)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert command.help


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom rlhf_tools.preferences import SUBCOMMANDS, preferences\n"
        "for words in ([], *([name] for name in SUBCOMMANDS)):\n"
        "    assert CliRunner().invoke(preferences, [*words, '--help']).exit_code == 0, words\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'pydantic', 'openai')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def prompt(*answers: tuple[str, float | None], **rest) -> Prompt:
    return Prompt(ASKED, [Rated(text, score) for text, score in answers], **rest)


def texts(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(pair.chosen.text, pair.rejected.text) for pair in pairs]


# answers, settings -> (chosen, rejected) of each pair, what was left out
SELECTIONS = {
    "best against worst": ([("a", 1.0), ("b", 3.0), ("c", 2.0)], {}, [("b", "a")], {}),
    "of equals the first": ([("a", 1.0), ("b", 0.0), ("c", 1.0), ("d", 0.0)], {}, [("a", "b")], {}),
    "all": ([("a", 1.0), ("b", 3.0), ("c", 2.0)], {"every": True}, [("b", "a"), ("b", "c"), ("c", "a")], {}),
    "all above": ([("a", 1.0), ("b", 3.0), ("c", 2.0)], {"every": True, "margin": 1.5}, [("b", "a")], {"near_tie": 2}),
    "the margin itself": ([("a", 0.1), ("b", 0.3)], {"margin": 0.2}, [("b", "a")], {}),
    "near": ([("a", 0.1), ("b", 0.3)], {"margin": 0.21}, [], {"near_tie": 1}),
    "tied": ([("a", 1.0), ("b", 1.0)], {}, [], {"tie": 1}),
    "tied but for rounding": ([("a", 0.1 + 0.2), ("b", 0.3)], {"margin": 0.0}, [], {"tie": 1}),
    "one alone": ([("a", 1.0)], {}, [], {"too_few": 1}),
    "none": ([], {}, [], {"too_few": 1}),
    "no score is no 0": ([("a", None), ("b", 1.0), ("c", 2.0)], {}, [("c", "b")], {"not_scored": 1}),
    "equal texts": ([("a", 1.0), ("a", 0.0)], {}, [], {"repeated": 1, "too_few": 1}),
    "empty": ([(" \n", 0.0), ("b", 1.0), ("c", 2.0)], {}, [("c", "b")], {"empty": 1}),
    "half of a character": ([("\ud83d", 0.0), ("b", 1.0), ("c", 2.0)], {}, [("c", "b")], {"damaged": 1}),
    "bytes that are no character": ([("是\ufffd", 2.0), ("b", 1.0), ("c", 2.0)], {}, [("c", "b")], {"damaged": 1}),
    "refusals": ([("抱歉，我无法回答。", 0.0), ("b", 1.0), ("c", 2.0)], {}, [("c", "b")], {"refusal": 1}),
    "kept": ([("抱歉，我无法回答。", 0.0), ("b", 1.0)], {"keep_refusals": True}, [("b", "抱歉，我无法回答。")], {}),
    "negative": ([("a", -3.0), ("b", -1.0), ("c", -2.0)], {}, [("b", "a")], {}),
}


@pytest.mark.parametrize("case", SELECTIONS)
def test_selection_by_hand(case):
    answers, settings, pairs, left_out = SELECTIONS[case]
    found = select([prompt(*answers)], **settings)
    assert texts(found.pairs) == pairs
    assert found.answers + found.prompts + found.left_out == left_out


def test_what_failed_or_was_cut_is_counted_and_never_paired():
    answers = [
        *(Rated("a", 1.0), Rated("b", 2.0), Rated("c", None, error="timeout"), Rated("d", 9.0, finished=False)),
        Rated("", error="no connection"),
    ]
    found = select([Prompt(ASKED, answers)])
    assert texts(found.pairs) == [("b", "a")]
    assert found.answers == {"failed": 1, "cut": 1, "not_sampled": 1}


def test_the_margin_is_a_part_of_the_spread_of_all_scores():
    assert default_margin([0.0, 10.0]) == 0.5
    assert default_margin([0.0] + [1.0] * 50 + [2.0] * 50 + [1e6]) == pytest.approx(0.05), "without the tails"
    assert default_margin([0.0] * 99 + [1.0]) == pytest.approx(0.05), "where the middle is one score, of all"
    assert default_margin([3.0, 3.0]) == default_margin([]) == 0.0
    far = prompt(("x", 0.0), ("y", 100.0))
    assert texts(select([prompt(("a", 1.0), ("b", 3.0)), far]).pairs) == [("y", "x")], "2 is near where others are far"


def test_compared_pairs_need_both_orders():
    """c beats a beats b by share of wins; c against b is a tie, or the other way round."""
    scores = [("a", 0.5), ("b", 0.25), ("c", 0.75)]
    for better, agree, pairs, left_out in (
        (-1, True, [("c", "b")], {}),
        (0, False, [], {"unconfirmed": 1}),
        (1, True, [], {"unconfirmed": 1}),
        (None, False, [], {"unconfirmed": 1}),
    ):
        found = select([prompt(*scores, verdicts={(1, 2): Verdict(better, agree)})])
        assert (texts(found.pairs), found.left_out) == (pairs, left_out), "as the smaller number sees it"
    assert select([prompt(*scores, verdicts={(1, 2): Verdict(-1, True)})]).pairs[0].agree is True


def test_balanced_lengths_exchange_pairs_then_leave_some_out():
    """Ten prompts prefer the long answer. Four have a shorter one that is better than some other."""
    exchanging = [prompt(("long" * 9, 1.0), ("a", 0.2 + i / 100), ("medium", 0.0)) for i in range(4)]
    others = [prompt(("long" * 9, 1.0), ("b", i / 100)) for i in range(6)]
    unbalanced = select([*exchanging, *others])
    assert [pair.longer for pair in unbalanced.pairs] == [1] * 10
    found = select([*exchanging, *others], balance=True)
    kinds = [pair.longer for pair in found.pairs]
    assert kinds.count(1) - kinds.count(-1) == 1
    assert texts(found.pairs[:4]) == [("a", "medium")] * 4
    assert found.left_out == {"unbalanced": 1}
    assert [pair.margin for pair in found.pairs[4:]] == pytest.approx([1 - i / 100 for i in range(5)]), (
        "the widest stay"
    )


def test_no_more_pairs_are_exchanged_than_balance_needs():
    """Of eight prompts that could, four do: those whose other pair is the least narrower."""
    prompts = [prompt(("long" * 9, 1.0), ("a", 0.2 + i / 100), ("medium", 0.0)) for i in range(8)]
    found = select(prompts, balance=True)
    assert [pair.longer for pair in found.pairs] == [1] * 4 + [-1] * 4
    assert not found.left_out


def test_balancing_many_answers_finds_the_widest_of_each_kind():
    """Against all pairs of random answers."""
    import random

    from rlhf_tools.preferences.selecting import Selected, pairs_of, widest

    rng = random.Random(1)
    for _ in range(50):
        one = prompt(*((chr(97 + i) * rng.randint(1, 6), rng.randint(0, 5) / 5) for i in range(9)))
        kept = usable(one)[0]
        expected = {}
        for pair in pairs_of(0, one, kept, Selected([], 0.3)):
            expected.setdefault(pair.longer, pair.margin)
        expected.pop(0, None)
        found = widest(0, one, kept, 0.3)
        assert {kind: pair.margin for kind, pair in found.items()} == pytest.approx(expected)
        assert all(pair.longer == kind for kind, pair in found.items())


def test_the_same_seed_balances_the_same_pairs():
    prompts = [prompt(("long" * 9, 1.0), (chr(97 + i), 0.0)) for i in range(20)]
    prompts += [prompt(("s", 1.0), ("longer", 0.0)) for _ in range(3)]
    first, again, other = (texts(select(prompts, balance=True, seed=seed).pairs) for seed in (1, 1, 2))
    assert first == again
    assert len(first) == len(other) == 7
    assert first != other


REFUSALS = {
    True: (
        *("I'm sorry, but I can't help with that.", "I’m sorry, but I cannot assist with that request."),
        *("Sorry, I am unable to provide medical advice.", "As an AI language model, I cannot provide a diagnosis."),
        *("I can't help with that.", "I cannot assist you with this request.", " **I'm sorry, I can't do that.**"),
        *("I apologize, but I'm not able to answer this question.", "I'm sorry, I must decline to answer that."),
        *("I'm sorry, but as an AI, I can't diagnose or provide that.", "抱歉，我无法回答这个问题。"),
        *(
            "对不起，我不能提供这方面的帮助。",
            "作为一个AI语言模型，我无法提供医疗诊断。",
            "我很抱歉，没有办法帮您处理。",
        ),
        *("<think>hmm</think>\n抱歉，我无法提供该信息。", "<answer>作为人工智能助手，我不能给出诊断意见。</answer>"),
    ),
    False: (
        *("", "I'm sorry to hear that. You can take ibuprofen.", "Sorry for the delay! The answer is 4."),
        *(
            "I can't say for sure, but it is likely a cold.",
            "抱歉让您久等了，建议您多喝水。",
            "患者无法提供标本时，重测。",
        ),
        *("Unfortunately, I think surgery can help.", "I'm sorry you are in pain. I can give you some advice."),
        *("The patient can't provide a sample.", "对不起，这里应该是B。", "作为医生，我不能不提醒您注意血压"),
        *("抱歉，检查不能完全排除肿瘤，建议复查", "Sorry, I made a mistake. I can help: the dose is 5 mg."),
        "I'm sorry, but I can't help with that. " + "But here is what you may do. " * 12,
        "<think>I'm sorry, but I can't help with that.</think>\nTake two a day.",
    ),
}


@pytest.mark.parametrize(("refuses", "text"), [(kind, text) for kind, all_ in REFUSALS.items() for text in all_])
def test_refusals(refuses, text):
    assert refusals.is_refusal(text) == refuses


def test_a_sheet_by_hand():
    models = [[Rated("long one", 1.0, "a"), Rated("b", 0.0, "b")], [Rated("x", 0.2, "a"), Rated("yy", 0.6, "b")]]
    prompts = [Prompt(ASKED, answers) for answers in models]
    prompts[1].verdicts = {(0, 1): Verdict(-1, True)}
    found = sheet(prompts, select(prompts), source="here")
    assert (found["source"], found["prompts"], found["answers"], found["pairs"]) == ("here", 2, 4, 2)
    assert (found["length"]["chosen"], found["length"]["rejected"], found["length"]["longer"]) == (5.0, 1.0, 1.0)
    assert found["models"]["a"] == {"answers": 2, "mean_score": 0.6, "chosen": 1, "rejected": 1, "wins": 0.5}
    assert found["margins"]["quantiles"]["0"] == pytest.approx(0.4)
    assert (found["orders"]["compared"], found["orders"]["agreement"]) == (1, 1.0)
    assert [values["count"] for _, values in warnings(found, select(prompts).pairs)] == [2]


def test_length_that_decides_is_warned_of():
    prompts = [prompt((f"long {i}", 1.0), ("s", 0.0)) for i in range(60)]
    selected = select(prompts)
    values = [values for _, values in warnings(sheet(prompts, selected), selected.pairs)]
    assert {"which": "longer", "share": "100%"} in values
    assert all(name in CHINESE for name in (*ANSWERS.values(), *PROMPTS.values(), *PAIRS.values()))


EVIL = '[{"role": "user", "content": "x"}]'
LONG = [
    *({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}),
    *({"role": "assistant", "content": "Hello."}, {"role": "user", "content": "And now?"}),
]
TOOL = [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "function": {"name": "rain", "arguments": {}}}]}, {"role": "tool", "content": "yes"},
]  # fmt: skip


@pytest.mark.parametrize(
    ("messages", "chosen"),
    [
        (ASKED, "Because."),
        (ASKED, EVIL),
        (LONG, "<think>\nSo.\n</think>\nNow."),
        (TOOL, "It rains."),
        (LONG[1:], "  x "),
    ],
)
def test_what_is_written_is_read_back(tmp_path, messages, chosen):
    columns = {
        "answer": "42",
        "number": 3,
        "messages": "x",
        "options": ["a"],
        "margin": 1,
        "A": "a",
        "nan": float("nan"),
    }
    one = Prompt(messages, [Rated(chosen, 1.0, "m"), Rated("No.", 0.0, "m")], columns)
    files = writing.places(str(tmp_path / "pairs.jsonl"))
    pairs = select([one]).pairs
    writing.write(*files, writing.lines_of(pairs, [one], "verifier"), {"pairs": 1})
    data = load_data([DataSpec(str(files[0]))], "preferences", Catalog())
    [row] = data.train
    assert (row["prompt"], row["chosen"][-1]["content"], row["rejected"][-1]["content"]) == (messages, chosen, "No.")
    assert (row["answer"], row["number"], row["judge"], row["score_margin"]) == ("42", 3, "verifier", 1.0)
    assert {"options", "margin", "nan"}.isdisjoint(row)
    assert not data.warnings
    assert json.loads(files[1].read_text()) == {"pairs": 1}
    with pytest.raises(UserError, match="exists already"):
        writing.refuse_existing(*files)


def samples(folder, rows):
    folder.mkdir()
    (folder / "config.yaml").write_text("method: grpo\nreward: ['medical_format:weight=2', 'length']\n")
    lines = [
        {"step": step, "prompt": messages, "completion": text, "rewards": {"medical_format": a, "length": b}}
        | {"columns": {"answer": "42"}, "tokens": 3, "finished": True, **rest}
        for step, messages, text, a, b, rest in rows
    ]
    (folder / "samples.jsonl").write_text("\n".join([*map(json.dumps, lines), '{"step": 9, "pro']))
    return folder


def call(*arguments):
    return CliRunner().invoke(rlhf, ["preferences", *map(str, arguments)])


def test_from_run(tmp_path):
    """Twice the first reward and once the second; answers of two steps to one prompt are compared."""
    rows = [
        *((1, ASKED, "one", 1.0, 0.0, {}), (1, ASKED, "two", 0.0, 1.5, {}), (1, LONG, "x", 1.0, None, {})),
        *(
            (2, ASKED, "three", 0.0, 0.0, {}),
            (2, LONG, "y", 0.0, 1.0, {}),
            (2, LONG, "z", 1.0, 1.0, {"finished": False}),
        ),
        *((3, LONG, "failed", None, 1.0, {"errors": {"medical_format": "timeout"}}),),
    ]
    run, output = samples(tmp_path / "run", rows), tmp_path / "pairs.jsonl"
    done = call("from-run", run, "--output", output)
    assert done.exit_code == 0, done.output
    assert "1 lines of samples.jsonl are damaged" in done.output
    first, second = map(json.loads, output.read_text().splitlines())
    assert (first["response_chosen"], first["response_rejected"], first["score_margin"]) == ("one", "three", 2.0)
    assert (first["step_chosen"], first["step_rejected"], first["model_chosen"], first["answer"]) == (1, 2, "run", "42")
    assert (second["response_chosen"], second["response_rejected"], second["history"]) == ("x", "y", LONG[1:3])
    assert first["judge"] == "medical_format:weight=2.0, length"
    shown = json.loads(call("from-run", run, "--steps", "2-", "--output", tmp_path / "b.jsonl", "--json").output)
    assert shown["left_out"]["answers"] == {"cut": 1, "failed": 1}
    again = call("from-run", run, "--output", output)
    assert isinstance(again.exception, UserError)
    assert "exists already" in str(again.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["from-run", "nowhere", "--output", "p.jsonl"], "no run's folder"),
        (["from-run", "run", "--output", "p.json"], "ends in .jsonl"),
        (["from-run", "run", "--output", "p.jsonl", "--steps", "3-2"], "the first is after the last"),
        (["from-run", "run", "--output", "p.jsonl", "--steps", "x"], "write A-B"),
        (["from-run", "run", "--output", "p.jsonl", "--steps", "7-"], "no answers of the steps 7-"),
        (["from-run", "run", "--output", "p.jsonl", "--margin", "50"], "no pair is left"),
        (["from-run", "run", "--output", "p.jsonl", "--lang", "fr"], "write en or zh"),
    ],
)
def test_mistakes_of_from_run(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    samples(tmp_path / "run", [(1, ASKED, "one", 1.0, 0.0, {}), (1, ASKED, "two", 0.0, 0.0, {})])
    done = call(*arguments)
    assert isinstance(done.exception, UserError), done.output
    assert message in str(done.exception)
    assert not list(tmp_path.glob("p.*"))


@pytest.mark.parametrize(
    "damage",
    [
        *({"prompt": prompt} for prompt in ("text", [], [5], [{"role": "user"}])),
        *({"rewards": {"length": score}} for score in ("1", [1], float("nan"), True)),
        *({"errors": errors} for errors in ("no", [1], {"length": 5})),
    ],
)
def test_a_damaged_sample_is_counted_and_left_out(tmp_path, damage):
    rows = [(1, ASKED, "one", 1.0, 0.0, {}), (1, ASKED, "two", 0.0, 0.0, {}), (1, ASKED, "three", 2.0, 0.0, damage)]
    output = tmp_path / "pairs.jsonl"
    done = call("from-run", samples(tmp_path / "run", rows), "--output", output)
    assert done.exit_code == 0, done.output
    assert "2 lines of samples.jsonl are damaged" in done.output
    assert json.loads(output.read_text())["response_chosen"] == "one"


def test_steps():
    assert (read_steps("2-5"), read_steps("7"), read_steps("-5")) == ((2, 5.0), (7, 7), (0, 5.0))
    assert read_steps(None) == read_steps("0-") == (0, float("inf"))


ULTRA = {"instruction": "2+2?", "source": "x", "completions": [
    {"model": "a", "response": "4", "overall_score": 8.5, "annotations": {"help": {"Rating": "1"}}},
    {"model": "b", "response": "5", "overall_score": 2.0, "annotations": {"help": {"Rating": "5"}}},
    {"model": "c", "response": "four", "overall_score": 8.0, "annotations": {"help": {"Rating": "N/A"}}}]}  # fmt: skip
STEER = [
    *({"prompt": "2+2?", "response": "4", "helpfulness": 4, "verbosity": 1, "id": 7},),
    *({"prompt": "2+2?", "response": "5", "helpfulness": 0, "verbosity": 2, "id": 7},),
]
TURNS = {"prompt": "a\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nc"}
# rows, arguments -> (chosen, rejected), score of the chosen one, what else a pair has
SCORED = {
    "UltraFeedback": ([ULTRA], [], ("4", "5"), 8.5, {"model_chosen": "a", "model_rejected": "b", "source": "x"}),
    "a score within": ([ULTRA], ["--score", "annotations.help.Rating"], ("5", "4"), 5.0, {}),
    "two rows": (STEER, ["--score", "helpfulness"], ("4", "5"), 4.0, {"id": 7, "question": "2+2?"}),
    "lists": ([{"prompt": "q", "completions": ["a", "b"], "scores": ["1", "2"]}], [], ("b", "a"), 2.0, {}),
    "a list of ranks": ([{"prompt": "q", "completions": ["a", "b"], "ranks": [1, 2]}], [], ("a", "b"), -1.0, {}),
    "ranks": ([{"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]}], [], ("a", "b"), -1.0, {}),
    "turns": ([{**TURNS, "completion": "x", "score": i} for i in (0,)] + [{**TURNS, "completion": "y", "score": 1}], [],
              ("y", "x"), 1.0, {"question": "c", "history": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
}  # fmt: skip


@pytest.mark.parametrize("case", SCORED)
def test_from_scores(case, tmp_path, write_jsonl):
    rows, arguments, pair, score, columns = SCORED[case]
    done = call("from-scores", write_jsonl("rows.jsonl", rows), "--output", tmp_path / "pairs.jsonl", *arguments)
    assert done.exit_code == 0, done.output
    [row] = map(json.loads, (tmp_path / "pairs.jsonl").read_text().splitlines())
    assert (row["response_chosen"], row["response_rejected"]) == pair
    assert row["score_chosen"] == score
    assert columns.items() <= row.items()
    assert "verbosity" not in row, "it is of an answer, not of the prompt"


def test_scores_that_are_not_named_are(tmp_path, write_jsonl):
    done = call("from-scores", write_jsonl("rows.jsonl", STEER), "--output", tmp_path / "pairs.jsonl")
    assert "numbers that it has: helpfulness, verbosity, id. Name it: --score COLUMN" in str(done.exception)
    done = call(
        "from-scores", write_jsonl("none.jsonl", [{"prompt": "x", "score": 1}]), "--output", tmp_path / "p.jsonl"
    )
    assert "no answer: neither a list" in str(done.exception)


@pytest.mark.parametrize(
    ("rows", "score", "meant"), [(STEER, "helpfullness", "helpfulness"), ([ULTRA], "overal_score", "overall_score")]
)
def test_a_score_that_no_answer_has_is_refused(tmp_path, write_jsonl, rows, score, meant):
    output = tmp_path / "pairs.jsonl"
    done = call("from-scores", write_jsonl("rows.jsonl", rows), "--output", output, "--score", score)
    assert isinstance(done.exception, UserError)
    assert f"has such a number. Did you mean '{meant}'?" in str(done.exception)
    assert not output.exists()
