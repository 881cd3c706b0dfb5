"""Endpoints: what is asked arrives once, within limits and budget; what fails is an error; no key is told."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import sqlite3
import time

import pytest

from rlhf_core.endpoint import Endpoint, EndpointError
from rlhf_core.endpoint.budget import Budget, Price, price_of
from rlhf_core.endpoint.cache import MOST, Cache
from rlhf_core.endpoint.limits import Rate
from rlhf_core.endpoint.replies import tokens
from rlhf_core.errors import RunStopped, UserError
from tests.endpoint_server import EndpointServer, Reply, broken, cut, garbled, refusal, slow, too_many

KEY = "sk-loopback-0123456789abcdef"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with EndpointServer(lambda request: f"to: {request.messages[-1]['content']}") as one:
        yield one


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def ask(endpoint: Endpoint, *texts: str, **how):
    """The replies, or what was raised, to each of `texts`, asked together."""

    async def all_of_them():
        return await asyncio.gather(*(endpoint.ask(say(text), **how) for text in texts), return_exceptions=True)

    return asyncio.run(all_of_them())


def test_a_request_is_made_once_also_when_it_is_asked_twice_at_once(server):
    endpoint = Endpoint("loopback", server.url)
    first, second, other = ask(endpoint, "a", "a", "b")
    assert [first.text, other.text] == ["to: a", "to: b"]
    assert second.text == first.text
    assert {first.cached, second.cached} == {False, True}
    (again,) = ask(Endpoint("loopback", server.url), "a")  # of another run
    assert again.cached
    (seeded,) = ask(endpoint, "a", seed=1)
    assert not seeded.cached
    assert len(server.requests) == 3
    assert (endpoint.spent.calls, endpoint.spent.cached) == (3, 1)
    assert endpoint.spent.cost is None
    ask(Endpoint("loopback", server.url, cache=False), "a")
    assert len(server.requests) == 4


@pytest.mark.parametrize("trouble", [too_many(0.05), broken(500), broken(503), cut("before"), cut("inside")], ids=str)
def test_what_passes_is_tried_again(server, trouble):
    server.next = [trouble]
    started = time.monotonic()
    (reply,) = ask(Endpoint("loopback", server.url, retries=2), "a")
    assert reply.text == "to: a"
    assert len(server.requests) == 2
    if trouble.status == 429:
        assert time.monotonic() - started >= 0.05


@pytest.mark.parametrize(
    ("replies", "error", "says"),
    [
        ([broken(500)], EndpointError, "answered 500"),
        ([garbled()], EndpointError, "127.0.0.1"),
        ([garbled(b'{"choices": []}')], EndpointError, "no chat completion"),
        ([garbled(b"[1, 2]")], EndpointError, "no chat completion"),
        ([slow(1.0)], TimeoutError, "no answer within 0.2 s"),
        ([cut("before")], EndpointError, "can't be reached"),
    ],
)
def test_what_stays_wrong_is_an_error_of_that_call_alone(server, replies, error, says):
    endpoint = Endpoint("loopback", server.url, retries=0, timeout=0.2, concurrency=1)
    server.next = replies
    wrong, right = ask(endpoint, "a", "b")
    assert isinstance(wrong, error)
    assert says in str(wrong)
    assert right.text == "to: b"
    (again,) = ask(endpoint, "a")  # nothing of it was kept
    assert again.text == "to: a"


def test_a_refusal_and_a_cut_reply_are_told(server):
    endpoint = Endpoint("loopback", server.url, concurrency=1)
    server.next = [refusal("no"), Reply("half", finish_reason="length"), Reply("", finish_reason="content_filter")]
    refused, half, filtered = ask(endpoint, "a", "b", "c")
    assert (refused.refusal, half.finished, half.refusal) == ("no", False, None)
    assert filtered.refusal == "stopped by its filter"


def test_the_key_is_sent_and_never_told(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("MY_JUDGE", KEY)
    with EndpointServer(lambda request: "fine", key=KEY) as server:
        (reply,) = ask(Endpoint("loopback", server.url, "MY_JUDGE"), "a")
        assert reply.text == "fine"
        monkeypatch.setenv("MY_JUDGE", KEY.upper())
        (error,) = ask(Endpoint("loopback", server.url, "MY_JUDGE"), "b")  # whose message repeats it
        assert error.fatal
        assert "the key in MY_JUDGE" in str(error)
        assert KEY.upper() not in str(error) + repr(error.__cause__) + caplog.text
        (error,) = ask(Endpoint("loopback", server.url), "b")
        assert "api_key_env=" in str(error)
    kept = b"".join(file.read_bytes() for file in (tmp_path / "cache").rglob("*") if file.is_file())
    assert b"fine" in kept
    assert KEY.encode() not in kept


def test_a_key_of_the_environment_is_not_sent_to_another_host(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-mine")
    ask(Endpoint("loopback", server.url), "a")
    assert KEY not in json.dumps(server.requests[0].headers)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)  # whose key that is
    ask(Endpoint("loopback"), "b")
    assert server.requests[1].headers["authorization"] == f"Bearer {KEY}"


def test_what_an_endpoint_does_not_support_is_left_out():
    def answer(request):
        for name in ("max_tokens", "temperature", "response_format"):
            if name in request.body:
                hint = "Use max_completion_tokens instead." if name == "max_tokens" else ""
                return Reply(status=400, error=f"Unsupported parameter: {name}. {hint}")
        return "fine"

    with EndpointServer(answer) as server:
        endpoint = Endpoint("loopback", server.url)
        assert ask(endpoint, "a", schema={"type": "object"})[0].text == "fine"
        assert server.requests[-1].body["max_completion_tokens"] == 512
        before = len(server.requests)
        assert ask(endpoint, "b", schema={"type": "object"})[0].text == "fine"
        assert len(server.requests) == before + 1  # it is remembered
        (error,) = ask(Endpoint("other", server.url), "a")
        assert error.fatal
        assert "there is no model 'other'" in str(error)


def test_what_can_not_work_is_said_at_once(server, monkeypatch, tmp_path):
    for given, says in (
        ({}, "OPENAI_API_KEY is not set"),
        ({"base_url": server.url, "api_key_env": "NOT_SET"}, "NOT_SET is not set"),
        ({"base_url": "localhost:8000"}, "write an address"),
        ({"base_url": server.url, "max_cost": 5}, "price of 'loopback' is not known"),
        ({"base_url": server.url, "prices": "1-2"}, "prices"),
        ({"base_url": server.url, "api_key_env": "kq7-93ba1f"}, "takes the name of an environment variable"),
        ({"base_url": server.url, "concurrency": 0}, "concurrency=0: a number from 1"),
        ({"base_url": server.url, "timeout": float("nan")}, "timeout=nan: a number from 0.01"),
    ):
        with pytest.raises(UserError, match=says):
            Endpoint("loopback", **given)
    with pytest.raises(UserError, match="there is no model 'other'"):
        asyncio.run(Endpoint("other", server.url).check())
    asyncio.run(Endpoint("loopback", server.url).check())
    with pytest.raises(UserError, match="can't be reached"):
        asyncio.run(Endpoint("loopback", "http://127.0.0.1:9/v1", retries=0).check())


def test_concurrency_and_rate_are_kept(server):
    server.next = [slow(0.05)] * 8
    ask(Endpoint("loopback", server.url, concurrency=2), *"abcdefgh")
    assert server.most_at_once == 2
    now = [0.0]
    rate = Rate(60, lambda: now[0])
    assert [rate.take(1) for _ in range(4)] == [0, 0, 1, 2]  # a burst of a second, then one a second
    now[0] = 100
    assert [rate.take(30), rate.take(1)] == [0, 29]
    assert Rate(None).take(1e9) == 0


def test_a_budget_is_never_exceeded(server):
    endpoint = Endpoint("loopback", server.url, max_calls=3)
    found = ask(endpoint, *"abcde")
    stopped = [one for one in found if isinstance(one, RunStopped)]
    assert len(stopped) == 2
    assert "max_calls=3" in str(stopped[0])
    assert len(server.requests) == 3
    assert ask(endpoint, "a")[0].cached  # what was answered still is
    dear = Endpoint("loopback", server.url, max_cost=0.05, prices="0/1000", concurrency=5)
    server.next, server.most_at_once = [slow(0.1)] * 2, 0
    found = ask(dear, *"vwxyz", max_tokens=20)  # each may take 2 cents, and takes 0.1
    assert not any(isinstance(one, RunStopped) for one in found)  # three waited for what two did not need
    assert server.most_at_once == 2
    assert dear.spent.cost == pytest.approx(5 * 0.001)
    (stopped,) = ask(dear, "longer", max_tokens=46)
    assert "of max_cost=0.05 dollars $0.005 are spent, and the next call may take $0.046" in str(stopped)


def test_a_call_that_is_too_late_counts_as_the_most_that_it_may_cost(server):
    late = Endpoint("loopback", server.url, timeout=0.1, retries=0, prices="0/1000")
    server.next = [slow(0.5)]
    assert isinstance(ask(late, "late", max_tokens=20)[0], TimeoutError)
    assert late.spent.cost == pytest.approx(0.02)


def test_each_of_several_processes_has_its_share(monkeypatch):
    budget = Budget(Price(1, 1), max_cost=None, max_calls=4, share=0.5)
    for _ in range(2):
        budget.settle(budget.reserve(10, 10), 10, 10)
    with pytest.raises(RunStopped, match="one of 2 processes"):
        budget.reserve(10, 10)
    assert budget.spent.cost == pytest.approx(40e-6)


def test_prices_are_those_of_the_model_of_its_dated_name_and_of_a_file(tmp_path):
    assert price_of("gpt-4o-2024-08-06", None) == price_of("gpt-4o", None) == Price(2.5, 10)
    assert price_of("mine", None) is None
    assert price_of("mine", "0.5/1.5") == Price(0.5, 1.5)
    file = tmp_path / "prices.yaml"
    file.write_text("mine: [1, 2]\nwrong: [1]\nworse: [-1, .inf]\n")
    assert price_of("mine", str(file)) == Price(1, 2)
    for wrong in ("wrong", "worse"):
        with pytest.raises(UserError, match=f"the price of {wrong} is"):
            price_of(wrong, str(file))


def test_an_estimate_says_calls_tokens_and_price(server):
    endpoint = Endpoint("gpt-4o", server.url)
    said = endpoint.estimate(12_800, 875, 100)
    assert said.startswith("12,800 calls, about 11.2 M tokens read and 1.3 M written: about $40.80 (")
    assert "not known" in Endpoint("loopback", server.url).estimate(1, 1, 1)
    assert tokens("abcdefgh") == 2
    assert tokens("头痛三天") == 4


def _write(place, start, count):
    cache = Cache(place)
    for i in range(start, start + count):
        cache.keep(str(i), f"reply {i}")


def test_several_processes_share_a_cache(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path, n * 100, 100)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    cache = Cache(tmp_path)
    assert [cache.find(str(i)) for i in range(400)] == [f"reply {i}" for i in range(400)]


def test_a_cache_that_can_not_be_used_is_said_once_and_does_without(tmp_path, caplog, monkeypatch):
    (tmp_path / "replies.sqlite").write_bytes(b"no database, whatever it is called" * 100)
    cache = Cache(tmp_path)
    assert cache.find("a") is None
    cache.keep("a", "b")
    assert cache.find("a") is None
    assert caplog.text.count("replies are not kept") == 1
    (tmp_path / "file").write_text("")
    assert Cache(tmp_path / "file" / "folder").find("a") is None


def test_a_full_cache_drops_what_was_used_longest_ago(tmp_path, monkeypatch):
    assert MOST > 100_000
    monkeypatch.setattr("rlhf_core.endpoint.cache.MOST", 10)
    cache = Cache(tmp_path)
    for i in range(12):
        cache.keep(str(i), "x")
    table = sqlite3.connect(tmp_path / "replies.sqlite")
    with table:
        table.execute("UPDATE replies SET used = CAST(key AS INTEGER)")
    opened = Cache(tmp_path)
    assert [opened.find(str(i)) for i in range(4)] == [None, None, None, "x"]


@pytest.mark.parametrize(
    ("trouble", "cost"),
    [(cut("inside"), 0.02), (cut("before"), 0.02), (garbled(), 0.02), (broken(500), 0.0), (too_many(0), 0.0)],
    ids=str,
)
def test_what_may_have_been_billed_counts_as_the_most_that_it_may_cost(server, trouble, cost):
    endpoint = Endpoint("loopback", server.url, retries=0, prices="0/1000")
    server.next = [trouble]
    ask(endpoint, "a", max_tokens=20)
    assert endpoint.spent.cost == pytest.approx(cost)


def test_a_request_that_is_made_again_needs_a_budget_of_its_own(server):
    endpoint = Endpoint("loopback", server.url, retries=5, max_calls=1)
    server.next = [cut("inside")]
    (stopped,) = ask(endpoint, "a")
    assert isinstance(stopped, RunStopped)
    assert len(server.requests) == endpoint.spent.calls == 1
    nowhere = Endpoint("loopback", "http://127.0.0.1:9/v1", retries=0, prices="1/1")
    ask(nowhere, "a")
    assert nowhere.spent.cost == 0  # nothing was sent


@pytest.mark.parametrize("count", [-1_000_000, 10**40, 1.5, "many", True, None])
def test_numbers_of_tokens_that_can_not_be_are_estimated(server, count):
    server.next = [Reply("fine", usage={"prompt_tokens": count, "completion_tokens": count})]
    (reply,) = ask(Endpoint("loopback", server.url, cache=False), "a question")
    assert (reply.prompt_tokens, reply.completion_tokens) == (3, 1)


def test_a_redirect_is_not_followed(server):
    with EndpointServer() as other:
        target = f"{other.url}/chat/completions"
        server.next = [Reply(status=307, headers=(("Location", target),))]
        (error,) = ask(Endpoint("loopback", server.url), "a")
        assert error.fatal
        assert target in str(error)
        assert not other.requests


def test_an_answer_has_an_end(server, monkeypatch):
    monkeypatch.setattr("rlhf_core.endpoint.client.LARGEST", 1000)
    server.next = [
        Reply(body=b"x" * 2000),
        Reply(body=b"x", headers=(("Content-Encoding", "gzip"),)),
        Reply("slow", pause=0.05),
    ]
    large, packed, slowly = (ask(Endpoint("loopback", server.url, retries=0, timeout=0.2), text)[0] for text in "abc")
    assert "more than" in str(large)
    assert "compressed" in str(packed)
    assert isinstance(slowly, TimeoutError)


@pytest.mark.parametrize("key", ["sk-first\nsk-second-12345", "two keys", "schlüssel"])
def test_a_key_that_can_not_be_one_is_refused_unseen(server, monkeypatch, key):
    monkeypatch.setenv("MY_JUDGE", key)
    with pytest.raises(UserError, match="MY_JUDGE holds spaces") as error:
        Endpoint("loopback", server.url, "MY_JUDGE")
    assert key[:3] not in str(error.value)
    with pytest.raises(UserError) as error:
        Endpoint("loopback", server.url, "abcdef0123456789")
    assert "abcdef0123456789" not in str(error.value)


def test_a_key_that_is_repeated_in_a_reply_is_kept_nowhere(monkeypatch, tmp_path):
    monkeypatch.setenv("MY_JUDGE", KEY)
    with EndpointServer(lambda request: f"got {request.headers['authorization']}, {KEY[:12]}…") as server:
        (reply,) = ask(Endpoint("loopback", server.url, "MY_JUDGE"), "a")
    assert reply.text == "got Bearer ***, ***…"
    assert not any(KEY[:12].encode() in file.read_bytes() for file in (tmp_path / "cache").rglob("replies*"))


def test_what_the_environment_says_of_openai_is_not_sent_to_another_host(server, monkeypatch):
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-mine")
    ask(Endpoint("loopback", server.url), "a")
    assert "proj-mine" not in str(server.requests[0].headers)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://bob:hunter2@localhost:1/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert Endpoint("loopback").host == "localhost:1"
