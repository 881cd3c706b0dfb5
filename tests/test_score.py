"""`rlhf score`: rewards tried on existing completions, without a model and without torch."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from rich.cells import cell_len
from rich.console import Console

from rlhf_core import statistics
from rlhf_core.catalog import Catalog
from rlhf_core.cli import rlhf
from rlhf_core.cli.score import _specs as specs
from rlhf_core.errors import UserError
from rlhf_core.grammar import RewardSpec
from rlhf_core.reward_report import measuring, report
from rlhf_core.reward_report.answers import Answer, Answers, read_answers
from rlhf_core.rewards.binding import bind_all
from rlhf_core.rewards.runtime import RewardRuntime
from rlhf_core.rewards.smoke_test import smoke_test
from rlhf_core.ui.screen import Screen

REWARDS = """
import os, time
def level(completions, level, **_): return level
def answer_in(completions, answer, **_): return [float(a in c[0]["content"]) for c, a in zip(completions, answer)]
def size(completions, **_): return [float(len(c[0]["content"])) for c in completions]
def one(completions, **_): return [1.0] * len(completions)
def odd(completions, level, **_):
    for value in level:
        if value % 2: raise ValueError(f"level {value} of '{value}' is odd")
    return [float(value) for value in level]
def broken(completions, **_): raise RuntimeError("no key")
def loud(completions, **_):
    print("printed")
    os.write(1, b"written")
    return [1.0] * len(completions)
def asks(completions, trainer_state, log_metric, log_extra, completion_ids, **_):
    log_metric("m", 1.0); log_extra("e", ["x"])
    return [float(trainer_state.global_step + len(ids)) for ids in completion_ids]
def kinds(completions, prompts, **_):  # what a reward is given: text or messages
    return [len(type(prompts[0]).__name__) + 10.0 * len(type(completions[0]).__name__)] * len(prompts)
def roles(completions, prompts, **_):
    return [float((p[0]["role"], c[0]["role"]) == ("user", "assistant")) for p, c in zip(prompts, completions)]
def at_once(completions, **columns): return [len(completions) + 100.0 * ("step" in columns)] * len(completions)
def rank(completions, level, **_):  # depends on the whole group
    return [float(value == max(level)) for value in level]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"r{tmp_path.name}.py").write_text(REWARDS)
    return tmp_path


@pytest.fixture
def score(here, write_jsonl):
    """score(rows, "level", …) -> the result of `rlhf score FILE --reward ./r.py:level … --json`."""

    def run(rows: list, *rewards: str, arguments: tuple[str, ...] = ()) -> dict:
        specs = [word for name in rewards for word in ("--reward", f"./r{here.name}.py:{name}")]
        command = ["score", write_jsonl("d.jsonl", rows), *specs, "--json", *arguments]
        result = CliRunner().invoke(rlhf, command, catch_exceptions=False, standalone_mode=False)
        return json.loads(result.stdout)

    return run


def rows(*levels: float | None, prompt: str = "q") -> list[dict]:
    return [{"prompt": prompt, "completion": f"answer {i}", "level": level} for i, level in enumerate(levels)]


def test_the_statistics_of_a_reward_are_those_of_its_scores(score):
    found = score([*rows(0.0, 1.0), *rows(0.5, 0.5, prompt="p"), *rows(None, prompt="n")], "level")
    level = found["rewards"]["level"]
    assert (found["completions"], found["groups"]) == (5, 3)
    assert (level["scored"], level["not_applicable"], level["errors"]) == (4, 1, 0)
    assert (level["mean"], level["min"], level["max"]) == (0.5, 0.0, 1.0)
    assert level["std"] == pytest.approx(math.sqrt(0.125))
    assert level["histogram"] == {"low": 0.0, "high": 1.0, "counts": [1, 0, 0, 0, 0, 2, 0, 0, 0, 1]}
    assert level["groups"] == {"compared": 2, "with_signal": 1}
    assert [example["location"] for example in level["best"]][:1] == ["d.jsonl line 2"]
    assert [example["score"] for example in level["worst"]][:1] == [0.0]


def test_a_list_of_completions_is_a_group_with_the_columns_of_its_row(score):
    row = {"prompt": [{"role": "user", "content": "q"}], "completions": ["flu", {"role": "assistant", "content": "x"}]}
    found = score([{**row, "answer": "flu"}], "answer_in")["rewards"]["answer_in"]
    assert found["groups"] == {"compared": 1, "with_signal": 1}
    assert found["best"][0]["completion"] == "flu"


def test_an_empty_completion_is_scored(score):
    assert score([{"prompt": "q", "completion": ""}], "size")["rewards"]["size"]["mean"] == 0.0


def test_a_reward_gets_text_where_the_data_has_text_and_else_messages(score):
    messages = [{"role": "user", "content": "q"}]
    text, turns = {"prompt": "q", "completion": "a"}, {"prompt": messages, "completion": "a"}
    as_text, as_messages = len("str") + 10.0 * len("str"), len("list") + 10.0 * len("list")
    for data, expected in {
        "text": ([text], as_text),
        "messages": ([turns], as_messages),
        "both": ([text, turns], as_messages),
        "text of a run": ([{**turns, "text_prompt": True}], as_text),
        "a format": ([{"question": "q", "answer": "a"}], as_messages),
        "a format of answers": ([{"prompt": "q", "response": "a"}], as_text),
        "a format of prompts": ([{"prompt": "q", "chosen": "a", "rejected": "b"}], as_text),
    }.values():
        assert score(data, "kinds")["rewards"]["kinds"]["mean"] == expected, data
    assert score([text, turns], "roles")["rewards"]["roles"]["mean"] == 1.0


def test_a_batch_is_full_and_has_no_number_of_a_step(score):
    data = [{"prompt": f"p{i // 2}", "completions": ["a", "b"], "step": i} for i in range(4)]
    assert score(data, "at_once")["rewards"]["at_once"]["mean"] == 8.0


def test_all_that_is_to_be_known_of_the_data_is_told(score):
    good = {"question": "q", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 4}
    told = score([good, {**good, "cop": 9}], "size", arguments=("--max-bad-rows", "1"))["warnings"]
    assert "cop counts the options from 1" in told[0]
    assert "1 of 2 rows" in told[1]


def test_what_an_answers_row_holds_and_of_which_format_it_is(score):
    turns = [{"role": "assistant", "content": "a"}, {"role": "tool", "content": "b"}]
    row = {"prompt": "q", "completion": turns, "level": 1.0}
    found = score([row, row], "level", "size")
    assert (found["format"], found["own_answers"]) == ("completions", False)
    assert found["rewards"]["level"]["best"][0]["completion"] == "a\nb"
    assert score([{"question": "q", "answer": "a"}], "one")["own_answers"] is True
    assert found["rewards"]["level"]["pairs"] is None
    size = found["rewards"]["size"]
    assert size["seconds_per_batch"] == pytest.approx(measuring.BATCH * size["seconds_per_row"])


def test_an_answer_without_the_other_of_its_pair_is_scored_alone(score):
    found = score([{"question": "q", "answer": "bad", "label": False}], "size")
    assert (found["completions"], found["rewards"]["size"]["mean"]) == (1, 3.0)


def test_of_pairs_both_answers_are_scored_and_compared(score):
    pair = {"question": "q", "response_chosen": "long answer", "response_rejected": "no"}
    other = {"question": "q", "response_chosen": "no", "response_rejected": "as"}
    found = score([pair, other], "size")
    assert found["format"] == "format preference"
    assert found["rewards"]["size"]["pairs"] == {"chosen_higher": 1, "tied": 1, "rejected_higher": 0}
    assert found["rewards"]["size"]["best"][0]["side"] == "chosen"


def test_a_data_sets_own_answer_is_scored_with_the_columns_of_its_formatter(score):
    found = score([{"question": "2+2?", "answer": "Two and two. #### 4"}], "answer_in")
    assert found["rewards"]["answer_in"]["best"][0]["completion"] == "Two and two. #### 4"
    assert found["rewards"]["answer_in"]["mean"] == 1.0  # of the result 4, which the formatter takes out


def sample(step: int, completion: str, level: float) -> dict:
    prompt = [{"role": "user", "content": "q"}]
    columns = {"level": level, "step": "a column of the data"}
    return {"step": step, "prompt": prompt, "completion": completion, "rewards": {"old": 9.0}, "columns": columns}


def run_folder(here, samples: list[dict], reward: str):
    (here / "run").mkdir()
    (here / "run" / "config.yaml").write_text(json.dumps({"method": "grpo", "reward": [reward]}))
    (here / "run" / "samples.jsonl").write_text("\n".join(map(json.dumps, samples)))


def test_a_runs_samples_are_groups_of_a_prompt_and_a_step_and_its_rewards_are_the_default(here):
    samples = [sample(1, "a", 0.0), sample(1, "b", 1.0), sample(2, "c", 1.0), sample(2, "d", 1.0)]
    run_folder(here, samples, f"./r{here.name}.py:level")
    for source in ("run", "run/samples.jsonl"):
        result = CliRunner().invoke(rlhf, ["score", source, "--json"], catch_exceptions=False)
        found = json.loads(result.stdout)
        assert found["rewards"]["level"]["groups"] == {"compared": 2, "with_signal": 1}, source


def test_a_run_with_a_reward_model_is_scored_with_it(here):
    (here / "config.yaml").write_text("method: ppo\nreward: []\nreward_model: some/folder")
    (spec,) = specs(str(here), ())
    assert (spec.target, spec.parameters) == ("reward_model", {"path": "some/folder"})


@pytest.mark.parametrize("source", [[], ["builtin"], ["embedded"]])
def test_the_builtin_data_have_an_earlier_name(source):
    arguments = ["score", *source, "--reward", "medical_format", "--limit", "2", "--json"]
    found = json.loads(CliRunner().invoke(rlhf, arguments, catch_exceptions=False).stdout)
    assert found["source"] == "builtin preferences"


def test_without_a_file_the_builtin_set_that_has_the_columns_is_scored():
    for reward, expected in (("medical_format", "builtin preferences"), ("verifier", "builtin prompts")):
        command = ["score", "--reward", reward, "--limit", "5", "--json"]
        found = json.loads(CliRunner().invoke(rlhf, command, catch_exceptions=False).stdout)
        assert found["source"] == expected
        assert found["rewards"][reward]["scored"] > 0


def test_limit_takes_the_first_rows(score):
    assert score(rows(1.0, 2.0, 3.0), "level", arguments=("--limit", "2"))["rewards"]["level"]["max"] == 2.0


def test_failures_are_counted_by_kind_with_the_first_message(score):
    found = score(rows(1, 2, 3, 5, 6), "odd")["rewards"]["odd"]
    assert (found["scored"], found["errors"]) == (2, 3)
    assert found["failures"] == [
        {"message": "ValueError: level 1 of '1' is odd", "location": "d.jsonl line 1", "count": 3}
    ]


def test_the_most_frequent_failure_is_first():
    column = SimpleNamespace(errors=["b 1", "a 1", None, "a 2"])
    kinds = measuring._failures(column, [SimpleNamespace(location=f"line {i}") for i in range(4)])
    assert [(kind["message"], kind["count"], kind["location"]) for kind in kinds] == [
        ("a 1", 2, "line 1"),
        ("b 1", 1, "line 0"),
    ]


def test_arguments_of_a_trainer_have_placeholders(score):
    found = score(rows(1, 2), "asks")
    assert found["rewards"]["asks"]["mean"] == len("answer 0")
    assert "asks takes completion_ids" in found["warnings"][0]


def test_a_group_is_in_one_batch_however_its_rows_are_spread(score, monkeypatch):
    monkeypatch.setattr(measuring, "BATCH", 2)
    spread = [{"prompt": f"p{i % 3}", "completion": f"c{i}", "level": i} for i in range(9)]
    assert score(spread, "rank")["rewards"]["rank"]["mean"] == pytest.approx(3 / 9)


def test_correlations_are_between_all_rewards_and_with_the_length(score):
    levels = [{"prompt": "q", "completion": "x" * i, "level": -i} for i in range(25)]
    found = score(levels, "level", "size", "one")
    assert found["correlations"] == [
        {"rewards": ["level", "size"], "spearman": pytest.approx(-1.0)},
        {"rewards": ["level", "one"], "spearman": None},
        {"rewards": ["size", "one"], "spearman": None},
    ]
    assert found["rewards"]["size"]["length_correlation"] == pytest.approx(1.0)
    assert [text.partition(":")[0] for text in found["warnings"]] == [
        "level follows the length (-1.00)",
        "size follows the length (+1.00)",
        "one gives every completion 1",
    ]


FINE = {
    "scored": 100,
    "not_applicable": 0,
    "errors": 0,
    "mean": 0.5,
    "min": 0.0,
    "max": 1.0,
    "range": (0.0, 1.0),
    "groups": {"compared": 10, "with_signal": 5},
    "length_correlation": 0.8,
    "seconds_per_batch": 5.0,
}
# what is different -> the warning; None: no warning
ADVICE = [
    ({}, None),
    ({"errors": 25}, None),
    ({"errors": 26}, "fails on 21%"),
    ({"scored": 0, "not_applicable": 5, "min": None, "max": None}, "no score at all"),
    ({"min": 0.5, "max": 0.5}, "gives every completion 0.5"),
    ({"groups": {"compared": 10, "with_signal": 0}}, "alike, in each of 10 groups"),
    ({"groups": {"compared": 0, "with_signal": 0}}, None),
    ({"length_correlation": -0.81}, "shorter answers"),
    ({"length_correlation": 0.81}, "writing longer answers"),
    ({"scored": 2, "min": 0.5, "max": 0.5}, "gives every completion 0.5"),
    ({"scored": 1, "min": 0.5, "max": 0.5}, None),
    ({"length_correlation": 0.81, "scored": 19}, None),
    ({"length_correlation": None}, None),
    ({"max": 1.5}, "declares scores from 0 to 1, and gave 0 to 1.5"),
    ({"seconds_per_batch": 18.0}, "about 18 s a training step of 64 completions, 5.0 hours in 1,000 steps"),
]


@pytest.mark.parametrize(("different", "warning"), ADVICE)
def test_advice(different, warning):
    said = list(measuring.warnings("r", {**FINE, **different}, own=False))
    assert len(said) == (warning is not None), said
    assert warning is None or warning in said[0]


def test_a_constant_score_of_the_datas_own_answers_is_no_reproach():
    said = list(measuring.warnings("r", {**FINE, "min": 0.5, "max": 0.5}, own=True))
    assert len(said) == 1
    assert "each of the data's own answers 0.5" in said[0]


def test_pairs_and_summaries_by_hand():
    assert statistics.summary([]) == {"mean": None, "std": None, "min": None, "max": None}
    assert statistics.same(0.0, 1e-13)
    assert not statistics.same(0.0, 1e-11)
    ordered = statistics.pairs([1, 2, 3, None, 4, 0.1 + 0.2], [2, 2, 1, 0, None, 0.3])
    assert ordered == {"chosen_higher": 1, "tied": 2, "rejected_higher": 1}


def test_spearman_by_hand():
    # ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: covariance 4.5, sums of squares 4.5 and 5
    assert statistics.spearman([1, 2, 2, 9], [10, 30, 20, 1000]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert statistics.spearman([1, None, 2, 3], [3, 9, 2, 1]) == pytest.approx(-1.0)
    assert statistics.spearman([1, 2], [1, 2]) is None
    assert statistics.spearman([1, 1, 1], [1, 2, 3]) is None


def test_histogram_edges():
    tenths = [i / 10 for i in range(11)]
    assert statistics.histogram(tenths, (0.0, 1.0))["counts"] == [1] * 9 + [2]
    assert statistics.histogram([-0.8], (-1.0, 1.0))["counts"] == [0, 1] + [0] * 8  # although it is 0.9999999999999998
    assert statistics.histogram([0.2, 3.0], (0.0, 1.0))["high"] == 3.0  # outside of what was declared
    assert statistics.histogram([2.0, 2.0])["counts"] == [2] + [0] * 9
    assert statistics.histogram([]) is None


MISTAKES = {
    "missing file": ("nowhere.jsonl", None, "nowhere.jsonl: there is no such file or folder"),
    "empty file": ("a.jsonl", "", "a.jsonl: the file is empty"),
    "no rows": ("a.json", "[]", "a.json: there is no row in it"),
    "not JSON": ("a.jsonl", '{"prompt": "a", "completion": "b"}\n{oops', "a.jsonl line 2 is not JSON"),
    "no completion": (
        "a.jsonl",
        '{"prompt": "a", "completion": "b"}\n{"prompt": "a"}',
        "a.jsonl line 2 has no completion; its columns: prompt",
    ),
    "no prompt": ("a.jsonl", '{"prompt": "a", "completion": "b"}\n{"completion": "b"}', "line 2 has no prompt"),
    "a prompt alone": ("a.jsonl", '{"prompt": "a"}', "a.jsonl line 1 has no completion to score"),
    "null": ("a.jsonl", '{"prompt": "a", "completion": null}', "completion must be text or a list of {role, content}"),
    "turns without a role": ("a.jsonl", '{"prompt": [{"a": 1}], "completion": "b"}', "prompt must be text or a list"),
    "no list": ("a.jsonl", '{"prompt": "a", "completions": "b"}', "completions must be a list of one or more, not 'b'"),
    "no format": ("a.jsonl", '{"texte": "a"}', "a.jsonl: no formatter fits"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case, here):
    name, content, message = MISTAKES[case]
    if content is not None:
        (here / name).write_text(content)
    with pytest.raises(UserError) as raised:
        read_answers(str(here / name) if content is not None else name, Catalog())
    assert message in str(raised.value)
    assert "--data" not in str(raised.value)


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(rlhf, ["score", *arguments])
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def test_mistakes_in_what_is_asked_for(here, write_jsonl):
    file = write_jsonl("a.jsonl", [{"prompt": "q", "completion": "c", "age": 3, "sex": "f"}])
    assert "which reward?" in refused(file)
    assert "there is no reward 'lenght'. Did you mean 'length'" in refused(file, "--reward", "lenght")
    missing = refused(file, "--reward", f"./r{here.name}.py:level")
    assert "needs the column level" in missing
    assert "Its columns: age, sex" in missing
    all_failed = refused(file, "--reward", f"./r{here.name}.py:broken")
    assert "every reward failed on all of its 1 completions:\n  broken: RuntimeError: no key" in all_failed
    assert "its folder does not exist" in refused(file, "--reward", "length", "--html", "no/where.html")
    (here / "run").mkdir()
    (here / "run" / "config.yaml").write_text("method: dpo\nreward: []")
    assert "the run has no samples" in refused("run", "--reward", "length")


def test_a_reward_that_fails_beside_one_that_does_not_is_reported(score):
    found = score(rows(1.0, 2.0), "level", "broken")
    assert found["rewards"]["broken"]["failures"][0]["count"] == 2
    assert "broken fails on 100% of the completions" in found["warnings"][0]


def process(*arguments: str, code: str = "") -> subprocess.CompletedProcess:
    program = f"import sys\nfrom rlhf_core.cli import rlhf\nrlhf.main(sys.argv[1:], standalone_mode=False)\n{code}"
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-c", program, "score", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=buffered)


def test_json_is_alone_on_stdout_whatever_rewards_print(here, write_jsonl):
    file = write_jsonl("a.jsonl", rows(1.0))
    done = process(file, "--reward", f"./r{here.name}.py:loud", "--json")
    assert json.loads(done.stdout)["completions"] == 1
    assert "printed" in done.stderr
    assert "written" in done.stderr


def test_nothing_heavy_is_imported(here):
    heavy = "{'torch', 'transformers', 'datasets', 'trl', 'peft', 'accelerate', 'numpy'}"
    seen = f"print('@@', sorted({heavy} & set(sys.modules)), 'rlhf_core.rewards.runtime' in sys.modules)"
    done = process("--reward", "medical_format", "--limit", "9", "--html", "p.html", code=seen)
    assert done.stdout.splitlines()[-1] == "@@ [] True", done.stderr
    assert "\x1b" not in done.stdout


HOSTILE = "<script>x</script>\x1b[31m\u202e\ud800 [bold]中文"


def scored(here, *names: str) -> dict:
    specs = [RewardSpec.read(f"{here}/r{here.name}.py:{name}") for name in names]
    prompt, completion = ([{"role": role, "content": HOSTILE}] for role in ("user", "assistant"))
    made = [Answer(f"line {i}", prompt, completion, {"level": i}, "g") for i in range(4)]
    return measuring.score(bind_all(specs, Catalog()), Answers("source", "completions", made))


def test_the_screen_shows_control_characters_and_keeps_to_its_width(here):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system=None, width=40, highlight=False)
    report.show(Screen(console=console), scored(here, "level", "odd"))
    text = stream.getvalue()
    shown = [line for line in text.splitlines() if "<script>" in line and line.startswith(" " * 10)]
    assert shown[0] == "          <script>x</script>␛[31m\\u202e…"
    assert cell_len(shown[0]) == 40
    assert not {"\x1b", "\u202e", "\ud800"} & set(text)
    assert "2 × ValueError: level 1 of '1' is odd (first: line 1)" in text


def test_a_histogram_fits_and_shows_what_is_rare():
    assert report.bars([1000, 0, 0, 0, 0, 0, 0, 0, 0, 1]) == "██················▁▁"
    assert len(report.bars([5] * 10)) == 20


class Checker(HTMLParser):
    """Collects tags, and whether each that was opened is closed in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "!doctype"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_complete_needs_no_network_and_escapes_all_text(here):
    html = report.render(scored(here, "level", "odd", "size"))
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    assert "script" not in {tag for tag, _ in checker.seen}
    assert not [attrs for _, attrs in checker.seen if {"src", "href"} & attrs.keys()]
    assert "&lt;script&gt;" in html
    assert "prefers-color-scheme: dark" in html
    assert "2 × " not in html
    assert '<td>2</td><td class="left">ValueError: level 1 of &#39;1&#39; is odd</td>' in html


def test_text_that_is_no_unicode_is_refused_and_no_page_is_written(here, write_jsonl):
    (here / "a.jsonl").write_text(json.dumps({"prompt": "q", "completion": HOSTILE}))
    done = CliRunner().invoke(rlhf, ["score", "a.jsonl", "--reward", "length", "--html", "p.html"])
    assert isinstance(done.exception, UserError)
    assert "a.jsonl line 1: completion has half of a character" in str(done.exception)
    assert not (here / "p.html").exists()


def said_of(here, data: list[dict], name: str) -> list[tuple[str, str]]:
    rewards = bind_all([RewardSpec.read(f"{here}/r{here.name}.py:{name}")], Catalog())
    found = smoke_test(data, RewardRuntime(rewards, lambda ids: ""), lambda text: list(map(ord, text)))
    return [(label, text.rpartition(", ")[0] if label == "Test" else text) for label, text in found.lines()]


def test_before_training_rewards_are_tested_on_the_first_rows_answers(here):
    data = [{"prompt": [{"role": "user", "content": "q"}], "answer": "x" * i, "level": i} for i in range(1, 9)]
    assert said_of(here, data, "size") == [("Test", "size on 4 reference answers: 1.000 to 4.000")]
    assert said_of(here, data[:1], "size") == [("Test", "size on 1 reference answer: 1.000")]
    partly = "odd on 4 reference answers: 2.000 to 4.000, failed on 2: ValueError: level 1 of '1' is odd"
    assert said_of(here, data, "odd") == [("Test", partly)]
    broken = ("Warning", "reward broken failed on each of 4 reference answers: RuntimeError: no key")
    assert said_of(here, data, "broken") == [broken]
    assert said_of(here, data, "asks")[0][0] == "Test"
    without = [{key: row[key] for key in ("prompt", "level")} for row in data]
    assert said_of(here, without, "size") == [("Test", "size on 4 placeholder answers: 4.000")]


def test_a_conversation_is_tested_with_its_last_answer(here):
    turns = [("user", "q"), ("assistant", "long answer"), ("user", "q"), ("assistant", "abc")]
    data = [{"messages": [{"role": role, "content": content} for role, content in turns]}]
    assert said_of(here, data, "size") == [("Test", "size on 1 reference answer: 3.000")]


def test_a_run_reports_a_reward_that_always_fails_and_goes_on(here, tiny_model, write_jsonl):
    file = write_jsonl("a.jsonl", [{"question": "q", "answer": "a"}] * 4)
    command = ["run", "--method", "grpo", "--reward", f"./r{here.name}.py:broken", "--data", file]
    result = CliRunner().invoke(rlhf, [*command, "--model", str(tiny_model), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "Warning reward broken failed on each of 4 reference answers: RuntimeError: no key" in result.output
    assert "reward broken of the reference answer 'a': RuntimeError: no key" in result.output
    assert "A reward failed on every row, see above. Nothing was trained" in result.output


def test_bad_rows_are_counted_and_left_out(here):
    good = {"question": "q", "answer": "a"}
    path = here / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, (good, {**good, "answer": ""}, good))))
    with pytest.raises(
        UserError, match="answer is empty. 1 of 3 rows can't be used, .*Leave them out: --max-bad-rows 1"
    ):
        read_answers(str(path), Catalog())
    found = read_answers(str(path), Catalog(), max_bad_rows=1)
    assert len(found.rows) == 2
    assert "left out 1 of 3 rows" in found.warnings[0]


def test_what_all_rows_have_is_looked_up_once_and_not_for_each_row(here, write_jsonl, monkeypatch):
    asked = []
    columns = Answers.columns.fget
    monkeypatch.setattr(Answers, "columns", property(lambda self: asked.append(1) or columns(self)))
    data = write_jsonl("d.jsonl", [{"prompt": f"q{i}", "completion": "a"} for i in range(200)])
    assert CliRunner().invoke(rlhf, ["score", data, "--reward", "length"]).exit_code == 0
    assert 0 < len(asked) < 10
