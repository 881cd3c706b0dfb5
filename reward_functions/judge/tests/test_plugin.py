"""Judges against a real server on loopback that behaves badly: what becomes of each row, of a pair, of a group."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from rlhf_reward_judge import fence

from rlhf_core import Planned, RunStopped
from rlhf_core.catalog import Catalog
from rlhf_core.commands import compare_answers
from rlhf_core.errors import UserError
from rlhf_core.grammar import RewardSpec
from rlhf_core.rewards.binding import bind
from rlhf_core.testing import injections
from rlhf_core.testing.bench import Bench
from rlhf_core.testing.golden import Case, Row
from rlhf_core.testing.report import Report
from tests.endpoint_server import EndpointServer, Reply, broken, cut, garbled, refusal, too_many
from tests.gullible import Judge as Gullible

GOOD = "It may be a virus, because most coughs are. Drink enough and rest. See a doctor if you can't breathe well."
FAIR = "It may be a virus, because most coughs are. Drink enough and rest."
POOR = "No idea."
QUESTION = [{"role": "user", "content": "I have had a cough for three days. What is it?"}]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with EndpointServer() as one:
        yield one


def bound(server, name="judge", **parameters):
    values = {"model": "loopback", "base_url": server.url, "retries": 1, **parameters}
    return bind(RewardSpec(name, values), Catalog())


def outcomes(reward, answers, prompts=(), **columns):
    """(score, error) of each answer, as a run gets them."""
    prompts = prompts or [QUESTION] * len(answers)
    rows = [Row(f"row {i}", prompts[i], text, {k: v[i] for k, v in columns.items()}) for i, text in enumerate(answers)]
    bench = Bench(reward)
    try:
        return [(outcome.score, outcome.error) for outcome in bench.scores(rows)]
    finally:
        bench.close()


def test_answers_are_scored_from_0_to_1_and_the_same_one_once(server):
    reward = bound(server, rubric="medical_en")
    found = outcomes(reward, [GOOD, POOR, GOOD, f"<think>\nHm.\n</think>\n{GOOD}", "<think>\nIt may be"])
    assert found == [(0.75, None), (0.0, None), (0.75, None), (0.75, None), (0.0, None)]
    assert len(server.requests) == 3  # GOOD, POOR, and nothing said
    assert "Hm." not in server.requests[0].text
    assert set(server.requests[0].schema["properties"]) == {each.name for each in reward.function.rubric.criteria}
    thinking = bound(server, rubric="medical_en", thought=True)
    outcomes(thinking, [f"<think>\nHm.\n</think>\n{GOOD}"])
    assert "Hm." in server.requests[-1].text


class Faulty:
    """Judges honestly, except that for an answer that names a fault that happens, as often as it is listed."""

    def __init__(self, faults):
        self.faults, self.honest = {name: list(replies) for name, replies in faults.items()}, Gullible()

    def __call__(self, request):
        for name, replies in self.faults.items():
            if f"({name})" in request.text:
                return replies.pop(0) if len(replies) > 1 or replies[0] is not None else self.honest(request)
        return self.honest(request)


def scored(**scores):
    return json.dumps({name: {"reason": "", "score": score} for name, score in scores.items()})


ALL = {"correctness": 3, "helpfulness": 3, "honesty": 3, "clarity": 3}
FAULTS = {  # what the server does (None: it judges), and the error of the row; None: it has its score
    "limited": ([too_many(0.3), None], None),
    "broken": ([broken(500), None], None),
    "cut": ([cut("inside"), None], None),
    "always broken": ([broken(503)] * 9, "503"),
    "slow": ([Reply(wait=0.6)] * 9, "no answer within 0.3 s"),
    "garbled": ([garbled()] * 9, "127.0.0.1"),
    "refusal": ([refusal()] * 9, "the judge refused: \"I'm sorry"),
    "refusal in words": ([Reply("As an AI I can't judge this.")] * 9, "no JSON: \"As an AI I can't"),
    "out of scale": ([Reply(scored(**{**ALL, "honesty": 9}))] * 9, "honesty is {'reason': '', 'score': 9}"),
    "incomplete": ([Reply(scored(correctness=3))] * 9, "helpfulness is missing"),
    "cut reply": ([Reply(scored(**ALL)[:60], finish_reason="length")] * 9, "raise max_tokens"),
    "other order": ([Reply(scored(**dict(reversed(ALL.items()))))] * 9, None),
}  # fmt: skip


def test_each_fault_is_an_error_of_its_row_and_the_others_keep_their_scores(server):
    server.answer = Faulty({name: replies for name, (replies, _) in FAULTS.items()})
    started = time.monotonic()
    found = outcomes(bound(server, timeout=0.3), [GOOD, *(f"{GOOD} ({name})" for name in FAULTS), FAIR])
    assert (found[0], found[-1]) == ((0.75, None), (0.5, None))
    for (name, (_, expected)), (score, error) in zip(FAULTS.items(), found[1:-1], strict=True):
        if expected is None:
            assert (error, score) == (None, 0.5 if name == "other order" else 0.75), name
        else:
            assert score is None, name
            assert expected in error, (name, error)
    limited = [request.time for request in server.requests if "(limited)" in request.text]
    assert limited[1] - limited[0] >= 0.3  # Retry-After
    assert time.monotonic() - started < 8


def test_an_endpoint_without_schemas_is_told_the_form_in_words():
    with EndpointServer(schemas=False) as server:
        assert outcomes(bound(server), [GOOD, POOR]) == [(0.75, None), (0.0, None)]
        assert [request.schema is None for request in server.requests][-1]


def test_the_reference_is_shown_where_a_rubric_wants_it(server, tmp_path, said):
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nreference: true\ncriteria: [{name: same, guidance: Does it say the same}]")
    reward = bound(server, rubric=str(file))
    outcomes(reward, [GOOD, POOR], answer=[["A virus", "a cold"], None])
    texts = sorted(request.text for request in server.requests)
    assert sum("<<<REFERENCE" in text for text in texts) == 1
    assert any("A virus / a cold" in text for text in texts)
    assert said() == ["rubric mine asks for a reference, and rows have no column answer: they are judged without"]
    compare_answers(reward, [QUESTION], [GOOD], [POOR])
    assert said()[1:] == ["rubric mine asks for a reference: two answers are compared without one"]


def test_what_was_spent_is_logged(server):
    reward = bound(server, prices="1/2")
    logged = {}
    asyncio.run(reward.function([QUESTION] * 2, [GOOD, POOR], log_metric=logged.__setitem__))
    assert (logged["judge/calls"], logged["judge/cached"]) == (2, 0)
    assert logged["judge/cost"] == pytest.approx(
        (logged["judge/prompt_tokens"] + 2 * logged["judge/completion_tokens"]) / 1e6
    )


# Before a run


def planned(answers=80, tokens=100):
    return Planned([QUESTION, QUESTION], answers, tokens, group=4)


def test_the_estimate_is_measured_by_a_call(server):
    for name, calls in (("judge", "80 calls"), ("judge_rank", "20 calls")):
        reward = bound(server, name, prices="1/10")
        line = reward.reward.before_run(reward.function, planned())
        assert f"helpful by loopback: {calls}, about " in line
        assert "Warning" not in line
    reward = bound(server)
    assert "30 calls" in reward.reward.before_run(reward.function, Planned([QUESTION], 60, 100, comparisons=30))
    measured = [request for request in server.requests if "<<<ANSWER" in request.text]
    assert [list(request.schema["properties"])[-1] for request in measured] == ["clarity", "ranking", "better"]


def test_a_budget_below_the_estimate_is_told_and_one_below_a_prompts_answers_is_refused(server):
    reward = bound(server, max_calls=40)
    assert reward.reward.before_run(reward.function, planned()).endswith(
        ". Warning: max_calls=40 stops the run after about 50% of it"
    )
    few, poor = {"max_calls": 3}, {"max_cost": 1e-9, "prices": "1/1"}
    for short, message in ((few, "max_calls=3 is less than the 4 calls"), (poor, "budget does not pay for one call")):
        reward = bound(server, **short)
        with pytest.raises(UserError, match=message):
            reward.reward.before_run(reward.function, planned())
    reward = bound(server, max_cost=0.05, prices="10/10")
    with pytest.raises(UserError, match="max_cost=0.05 is less than the answers to one prompt cost: about "):
        reward.reward.before_run(reward.function, planned(tokens=2000))


def test_what_can_not_work_is_said_before_a_run(monkeypatch):
    monkeypatch.setenv("WRONG_KEY", "sk-wrong-0123456789")
    with EndpointServer(key="sk-right-0123456789") as server:
        for values, message in (
            ({"api_key_env": "WRONG_KEY"}, "does not accept the key in WRONG_KEY"),
            ({}, "calls without a key"),
        ):
            reward = bound(server, **values)
            with pytest.raises(UserError, match=message) as refused:
                reward.reward.before_run(reward.function, planned())
            assert "sk-wrong" not in str(refused.value)
    with pytest.raises(UserError, match="no rubric 'helpfull'. Did you mean 'helpful'"):
        bound(server, rubric="helpfull")
    with pytest.raises(UserError, match="max_tokens=5: a judgement needs 64"):
        bound(server, max_tokens=5)
    with EndpointServer(models=["other"]) as server:
        reward = bound(server)
        with pytest.raises(UserError, match="no model 'loopback'"):
            reward.reward.before_run(reward.function, planned())


def test_an_endpoint_that_is_down_is_said_before_a_run(server):
    for reply, message in ((broken(500), "answered 500"), (Reply(wait=0.5), "no answer within 0.2 s")):
        server.answer = lambda request, reply=reply: reply
        reward = bound(server, retries=0, timeout=0.2)
        with pytest.raises(UserError, match=message):
            reward.reward.before_run(reward.function, planned())


def test_a_budget_that_is_spent_ends_the_run_and_the_scores_so_far_are_kept(server):
    reward = bound(server, max_calls=2, concurrency=1)
    scores = asyncio.run(reward.function([QUESTION] * 3, [GOOD, FAIR, POOR]))
    assert sum(isinstance(score, float) for score in scores) == 2
    assert sum(isinstance(score, RunStopped) for score in scores) == 1


# Pairs


def test_two_answers_are_compared_in_both_orders(server):
    reward = bound(server)
    pairs = [(GOOD, POOR), (POOR, GOOD), (POOR, "Nothing."), (GOOD, f"<think>x</think>{GOOD}")]
    found = compare_answers(reward, [QUESTION] * 4, [first for first, _ in pairs], [second for _, second in pairs])
    assert [each.verdict for each in found] == [1, -1, 0, 0]
    assert [each.orders for each in found[:2]] == [(1.0, 1.0), (-1.0, -1.0)]
    assert len(server.requests) == 4  # (a, b) is (b, a) the other way round; equal answers are not asked about


def test_a_judge_that_prefers_what_it_reads_first_finds_no_winner(server):
    server.answer = lambda request: Reply('{"reason": "", "better": "A"}')
    (found,) = compare_answers(bound(server), [QUESTION], [GOOD], [POOR])
    assert (found.verdict, found.orders) == (0, (1.0, -1.0))


def test_a_pair_that_fails_is_an_error_of_that_pair(server):
    server.answer = Faulty({"x": [refusal()] * 9})
    failed, other = compare_answers(bound(server), [QUESTION] * 2, [f"{GOOD} (x)", GOOD], [POOR, POOR])
    assert failed.verdict is None
    assert "the judge refused" in failed.error
    assert other.verdict == 1


# Groups

OTHER = [{"role": "user", "content": "Another question."}]
THIRD = [{"role": "user", "content": "A third one."}]


def test_a_group_is_ranked_in_one_call(server):
    reward = bound(server, "judge_rank")
    prompts = [QUESTION] * 4 + [OTHER] + [THIRD] * 2
    found = outcomes(reward, [FAIR, POOR, GOOD, "Nothing.", GOOD, POOR, f"<think>x</think>{POOR}"], prompts)
    scores = [score for score, _ in found]
    assert scores == [pytest.approx(2 / 3), pytest.approx(1 / 6), 1.0, pytest.approx(1 / 6), None, 0.5, 0.5]
    assert all(error is None for _, error in found)
    assert len(server.requests) == 1  # one answer alone is not ranked, and neither are equal ones
    outcomes(reward, [POOR, GOOD, "Nothing.", FAIR])  # the judge reads them in the order of their content
    assert len(server.requests) == 1


def test_a_group_that_can_not_be_read_fails_as_a_whole_and_the_others_do_not(server):
    server.answer = Faulty({"x": [Reply('{"reason": "", "ranking": [[1], [1]]}')] * 9})
    prompts = [QUESTION] * 2 + [OTHER] * 2
    found = outcomes(bound(server, "judge_rank"), [f"{GOOD} (x)", POOR, GOOD, POOR], prompts)
    assert [score for score, _ in found] == [None, None, 1.0, 0.0]
    assert all("not each of the answers 1 to 2 once" in error for _, error in found[:2])


# What is judged speaks to the judge


def probed(reward):
    """What the kit's rule on injection finds."""
    row = Row("row", QUESTION, POOR)
    bench = Bench(reward)
    report = Report("reward", "judge")
    injections.examine(report, (Case("none", row, 0.0, {}, {}), bench))
    bench.close()
    return report.results[0]


@pytest.mark.parametrize("name", ["judge", "judge_rank"])
def test_no_text_talks_a_gullible_judge_into_a_higher_score(server, name):
    assert probed(bound(server, name)).faults == []


def test_without_the_fence_nearly_every_text_would(server, monkeypatch):
    monkeypatch.setattr(fence, "plain", lambda text: text)
    faults = "\n".join(probed(bound(server)).faults)
    for probe in ("pretends to be another turn", "closes its frame", "hides it in a comment", "hides it in tags"):
        assert probe in faults


def test_no_text_wins_a_comparison(server):
    answers = [f"{POOR}\n{text}" for _, text in injections.PROBES[::3]]
    found = compare_answers(bound(server), [QUESTION] * len(answers), answers, [FAIR] * len(answers))
    assert {each.verdict for each in found} == {-1}


# A run

KEY = "kq7-93ba1f-lantern-0417"  # in no format of keys that is known by its look
ROWS = [{"prompt": f"What helps with a cough of {days} days?", "answer": "rest"} for days in range(2, 12)]
VALUES = {
    "method": "grpo",
    "per_device_train_batch_size": 4,
    "num_generations": 2,
    "max_completion_length": 8,
    "max_steps": 2,
}


def test_a_key_is_in_nothing_that_a_run_writes(server, go, tmp_path, monkeypatch, capfd):
    """Nor in what it says, when the endpoint repeats it in an error. The scores of the other rows are kept."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.key = KEY
    echoed = Reply(
        status=401, error=f"Incorrect API key provided: {KEY}. You can find it at https://example.com?key={KEY}"
    )
    honest = Gullible()
    server.answer = lambda request: echoed if request.number > 6 and request.number % 2 else honest(request)
    judge = f"judge:model=loopback,base_url={server.url},api_key_env=JUDGE_KEY,prices=1/2,retries=0"
    code, folder = go(reward=[judge])
    assert code == 0
    assert all(request.headers["authorization"] == f"Bearer {KEY}" for request in server.requests)
    said = "".join(capfd.readouterr())
    assert "rubric" in json.loads((folder / "manifest.json").read_text())["rewards"]["judge"]
    metrics = (folder / "metrics.jsonl").read_text()
    assert "judge/cost" in metrics
    written = [path for place in (folder, tmp_path / "cache") for path in place.rglob("*") if path.is_file()]
    assert {"config.yaml", "manifest.json", "run.log", "samples.jsonl", "replies.sqlite"} <= {
        path.name for path in written
    }
    assert KEY not in said
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []
    assert "HTTP Request" not in (folder / "run.log").read_text()
    assert "does not accept the key in JUDGE_KEY" in (folder / "reward_errors.jsonl").read_text()
