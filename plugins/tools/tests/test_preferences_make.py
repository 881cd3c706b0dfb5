"""`rlhf preferences make`: cut anywhere it goes on to the same file; judged one by one and two by two; from an endpoint."""

from __future__ import annotations

import json
import resource
import shutil

import pytest
from click.testing import CliRunner
from rlhf_tools.preferences import sampling, writing
from rlhf_tools.preferences.journal import Journal, same_settings
from rlhf_tools.preferences.making import Work, carry_out
from rlhf_tools.preferences.scoring import Pairwise, Pointwise, share_of_wins
from rlhf_tools.preferences.selecting import Prompt, Rated, Verdict, select

from rlhf_core import Catalog, RunStopped, UserError
from rlhf_core.cli import rlhf
from rlhf_core.commands import DataSpec, RewardRuntime, RewardSpec, bind_rewards, load_data

REWARD = '''
from rlhf_core import Reward

def size(completions, **_):
    return [None if "none" in c[0]["content"] else len(c[0]["content"]) / 100 for c in completions]

def broken(completions, **_):
    raise ValueError("not today")

async def longer(function, prompts, first, second):
    """The longer one; a tie where it is by a character; one text can't be read."""
    def verdict(a, b):
        return ValueError("unreadable") if "bad" in (a, b) else float((abs(len(a) - len(b)) > 1) * (len(a) - len(b)))
    return [verdict(a, b) for a, b in zip(first, second)]

compares = Reward(size, name="compares", view="messages", pairwise=longer)
'''


@pytest.fixture
def bound(tmp_path):
    (tmp_path / "reward.py").write_text(REWARD)
    return lambda name: bind_rewards([RewardSpec.read(f"{tmp_path / 'reward.py'}:{name}")], Catalog())


class StandIn:
    """Answers that depend on the prompt's number alone."""

    def __init__(self, name: str, size: int, each: int = 3) -> None:
        self.name, self.size, self.each, self.asked = name, size, each, 0

    @property
    def spent(self):
        return {f"{self.name}/calls": self.asked}

    def batches(self, start):
        for first in range(start, 5, self.size):
            numbers = range(first, min(5, first + self.size))
            self.asked += len(numbers)
            yield [[self.answer(number, i) for i in range(self.each)] for number in numbers]

    def answer(self, number, i):
        text = f"{self.name} {number}: " + "é\u2028x" * (number * 7 % 5 + i) + "\ud83d" * (number + i == 2)
        return {"text": text, "tokens": 3, "finished": i != 2 or number % 2 == 0}


def work(judge, *samplers):
    return Work([Prompt([{"role": "user", "content": str(i)}], [], {}, {"prompt": [{"role": "user", "content": str(i)}]})
                 for i in range(5)], samplers, judge, 3 * len(samplers))  # fmt: skip


def made(folder, judge):
    samplers = StandIn("a", 2), StandIn("b", 3)
    one = work(judge, *samplers)
    carry_out(one, folder, lambda *_: None)
    return "".join(writing.lines_of(select(one.prompts, every=True).pairs, one.prompts, "j")), samplers


@pytest.fixture
def judges(bound):
    return {
        "one by one": lambda: Pointwise(RewardRuntime(bound("size"), lambda ids: "")),
        "two by two": lambda: Pairwise(bound("compares")[0]),
    }


def test_what_endpoints_spend_is_summed_over_all_starts(judges, tmp_path):
    samplers = StandIn("a", 2), StandIn("b", 3)
    assert carry_out(work(judges["one by one"](), *samplers), tmp_path, lambda *_: None)[0] == {
        "a/calls": 5,
        "b/calls": 5,
    }
    lines = (tmp_path / "answers-1.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "answers-1.jsonl").write_bytes(lines[0])
    (tmp_path / "scores.jsonl").unlink()
    again = StandIn("a", 2), StandIn("b", 3)
    assert carry_out(work(judges["one by one"](), *again), tmp_path, lambda *_: None)[0] == {"a/calls": 5, "b/calls": 5}
    assert (again[0].asked, again[1].asked) == (0, 2)


@pytest.mark.parametrize("kind", ["one by one", "two by two"])
def test_cut_anywhere_it_goes_on_to_the_same_bytes(kind, judges, tmp_path):
    """After every line of every file, within each line, and with what came after it missing, as a killed process
    leaves them: answers of one model after the other, then the scores.
    """
    whole = tmp_path / "whole"
    whole.mkdir()
    judge = judges[kind]()
    expected, _ = made(whole, judge)
    assert expected.count("\n") > 5
    files = [whole / name for name in ("answers-0.jsonl", "answers-1.jsonl", "scores.jsonl")]
    cuts = 0
    for number, file in enumerate(files):
        data = file.read_bytes()
        ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
        for cut in sorted({0, *ends, *(end - 1 for end in ends), *(end - 9 for end in ends)}):
            cuts += 1
            folder = tmp_path / f"cut{cuts}"
            folder.mkdir()
            for before in files[:number]:
                shutil.copy(before, folder)
            (folder / file.name).write_bytes(data[:cut])
            found, samplers = made(folder, judge)
            assert found == expected, (file.name, cut)
            assert made(folder, judge)[0] == expected, "the file is whole again"
            assert samplers[0].asked == (0 if number else 5 - 2 * data[:cut].count(b"\n") if cut < len(data) else 0)
    assert cuts > 15


def test_damage_within_the_work_is_said_and_nothing_is_lost(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    journal.add(2, x="é")
    journal.add(1, x="\ud83d")
    data = journal.file.read_bytes()
    assert [line["x"] for line in Journal(journal.file).lines] == ["é", "\ud83d"]
    for damaged in (b"{half\n" + data, data[:10] + data[12:], data + data):
        journal.file.write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged"):
            Journal(journal.file)
        assert journal.file.read_bytes() == damaged


def test_half_a_line_on_a_full_disk_is_an_error_and_the_next_start_goes_on(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    journal.add(2, x="whole")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.file.stat().st_size + 5, before[1]))
    try:
        with pytest.raises(OSError, match="No space left"):
            journal.add(1, x="cut")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [line["x"] for line in journal.lines] == ["whole"]
    again = Journal(journal.file)
    again.add(1, x="after")
    assert [line["x"] for line in Journal(journal.file).lines] == ["whole", "after"]


def test_other_settings_are_refused_by_name(tmp_path):
    assert not same_settings(tmp_path, {"--n": 4, "--seed": 1})
    assert same_settings(tmp_path, {"--n": 4, "--seed": 1})
    with pytest.raises(UserError, match=r"other settings \(--n: 4, now 5\)\. Give them as before"):
        same_settings(tmp_path, {"--n": 5, "--seed": 1})


def test_what_fails_on_everything_stops_and_is_not_kept(bound, tmp_path):
    with pytest.raises(RunStopped, match="the judge failed on all of"):
        made(tmp_path, Pointwise(RewardRuntime(bound("broken"), lambda ids: "")))
    assert not (tmp_path / "scores.jsonl").exists()
    assert len(Journal(tmp_path / "answers-1.jsonl").lines) == 2, "what was sampled is"


def test_one_answer_alone_is_not_judged(judges):
    prompt = Prompt([{"role": "user", "content": "x"}], [Rated("a"), Rated("a"), Rated("b", finished=False)])
    for judge in judges.values():
        assert judge().judge([prompt], keep_refusals=False) == [[]]


def test_shares_of_wins_by_hand(bound):
    """a (long) beats b and c; b and c differ by one character, a tie; what can't be read is no defeat."""
    answers = [Rated(text, None, "m") for text in ("aaaaaa", "bbb", "cc", "bad", "bbb", " ")]
    prompt = Prompt([{"role": "user", "content": "x"}], answers)
    judge = Pairwise(bound("compares")[0])
    [kept] = judge.judge([prompt], keep_refusals=False)
    assert [each[:2] for each in kept] == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)] or len(kept) == 6
    judge.put(prompt, kept)
    assert [one.score for one in prompt.answers] == [1.0, 0.25, 0.25, None, None, None]
    assert prompt.answers[3].error == "ValueError: unreadable"
    assert prompt.verdict(1, 0) == Verdict(-1, True)
    assert share_of_wins(prompt, 3) is None
    [pair] = select([prompt]).pairs
    assert (pair.chosen.text, pair.rejected.text, pair.agree) == ("aaaaaa", "bbb", True)


def call(*arguments):
    return CliRunner().invoke(rlhf, ["preferences", "make", *map(str, arguments)])


@pytest.fixture
def arguments(tmp_path, tiny_model, bound, write_jsonl):
    rows = [
        {"question": f"Number {i}?", "answer": str(i), "system": "Be kind.", "history": [["Hi", "Hello"]]}
        for i in range(4)
    ]
    bound("size")
    return [
        *("--data", write_jsonl("rows.jsonl", rows), "--model", f"a={tiny_model}", "--n", "3", "--temperature", "2"),
        *("--judge", f"{tmp_path / 'reward.py'}:size", "--max-completion-length", "6", "--margin", "0"),
        *("--output", tmp_path / "pairs.jsonl"),
    ]


@pytest.fixture
def unending(monkeypatch):
    """The two-layer model hardly ever ends an answer, and writes broken characters; here each is taken as whole."""
    own = sampling.LocalModel.batches

    def batches(self, start):
        for found in own(self, start):
            yield [[answer | {"finished": True, "text": answer["text"].replace("\ufffd", "?")} for answer in answers]
                   for answers in found]  # fmt: skip

    monkeypatch.setattr(sampling.LocalModel, "batches", batches)


def test_a_model_answers_and_dpo_reads_the_pairs(arguments, unending, tmp_path, monkeypatch):
    with (tmp_path / "rows.jsonl").open("a") as data:
        data.write("\n" + json.dumps({"question": "long " * 9999, "answer": "9"}))
    dry = call(*arguments, "--dry-run", "--lang", "zh")
    assert dry.exit_code == 0, dry.output
    assert "4 个提示，每个 3 个回答：12" in dry.output
    assert dry.output.count("Be kind.") == 3
    assert "left out 1 of 5 prompts" in dry.output
    assert not (tmp_path / "pairs.making").exists()

    monkeypatch.setattr(sampling, "ROWS", 3)  # a batch for each prompt
    assert call(*arguments[:-1], tmp_path / "whole.jsonl").exit_code == 0
    add, made = Journal.add, []
    monkeypatch.setattr(Journal, "add", lambda *a, **b: interrupt() if len(made) == 2 else made.append(add(*a, **b)))
    interrupted = call(*arguments)
    assert "the same command goes on from there" in interrupted.output
    assert not (tmp_path / "pairs.jsonl").exists()
    monkeypatch.setattr(Journal, "add", add)
    assert Journal(tmp_path / "pairs.making" / "answers-0.jsonl").prompts == 2
    other = call(*arguments[:-2], "--seed", "7", *arguments[-2:])
    assert "--seed: 42, now 7" in str(other.exception)

    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (tmp_path / "pairs.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    rows = load_data([DataSpec(str(tmp_path / "pairs.jsonl"))], "preferences", Catalog()).train
    assert len(rows) == found["pairs"] > 0
    assert [turn["role"] for turn in rows[0]["prompt"]] == ["system", "user", "assistant", "user"]
    assert {row["answer"] for row in rows} <= {"0", "1", "2", "3"}
    assert found["answers"] == 12
    assert (found["sampled_by"][0]["name"], found["judge"][0]["spec"].endswith(":size")) == ("a", True)
    assert json.loads((tmp_path / "pairs.sheet.json").read_text())["pairs"] == found["pairs"]
    assert not (tmp_path / "pairs.making").exists()
    assert "exists already" in str(call(*arguments).exception)


def interrupt():
    raise KeyboardInterrupt


REFUSED = {
    "one answer": (["--n", "1"], "nothing to be compared with"),
    "no reward": (["--judge", "medical_fromat"], "Did you mean 'medical_format'?"),
    "two judges": (["--pairwise", "--judge", "length"], "takes one --judge"),
    "one by one": (["--pairwise"], "can't compare two of them"),
    "unknown": (["--model", "endpoint:model=x,modle=y"], "an endpoint has no modle"),
    "no model": (["--model", "endpoint:base_url=http://127.0.0.1:9"], "which model?"),
    "a score model": (["--output", "x.json"], "ends in .jsonl"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_before_weights_load(case, arguments, monkeypatch, tmp_path):
    from rlhf_core.models import loading as models

    monkeypatch.setattr(models, "load", lambda *_: pytest.fail("weights were loaded"))
    more, message = REFUSED[case]
    done = call(*arguments, *more)
    assert isinstance(done.exception, UserError), done.output
    assert message in str(done.exception)
    assert not list(tmp_path.glob("pairs*"))


def test_an_endpoint_answers(arguments, tmp_path, monkeypatch):
    """Cut answers, refusals and failed calls are counted; the seeds differ."""
    from tests.endpoint_server import EndpointServer, Reply

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seen = []

    def answer(request):
        seen.append(request.body.get("seed"))
        number = int(request.text.rpartition("Number ")[2].partition("?")[0]) if "Number" in request.text else 0
        if number == 3:
            return Reply("cut", finish_reason="length")
        return "word " * (number + 1 + (request.body.get("seed") or 0) % 3)

    with EndpointServer(answer) as server:
        model = f"big=endpoint:model=loopback,base_url={server.url},retries=0"
        done = call(*arguments[:2], "--model", model, *arguments[4:])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert {row["model_chosen"] for row in rows} == {"big"}
    assert rows[0]["system"] == "Be kind."
    assert len(rows) == 3
    assert {42, 43, 44} <= {*seen}
    assert "3 cut at the length limit" in done.output
