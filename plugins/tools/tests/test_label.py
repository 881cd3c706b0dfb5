"""`rlhf preferences label`: which row comes next, what is written, the terminal and the page."""

from __future__ import annotations

import ast
import http.client
import json
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.cells import cell_len
from rlhf_tools import preferences
from rlhf_tools.preferences import finishing, labelling, serving, viewing
from rlhf_tools.preferences.keys import first_key
from rlhf_tools.preferences.label import label, name_of, where
from rlhf_tools.preferences.labelling import Row, Task, Work, thoughts_apart
from rlhf_tools.preferences.words import TRANSLATIONS

from rlhf_core import Catalog, UserError
from rlhf_core.commands import Screen, Terminal, current_labels, pair_id, read_labels

HERE = Path(preferences.__file__).parent


def turns(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def row(i: int, **columns) -> Row:
    prompt, a, b = [{"role": "user", "content": f"q{i}"}], turns(f"good {i}"), turns(f"bad {i}")
    return Row(pair_id(prompt, a, b), f"line {i}", prompt, a, b, columns)


@pytest.fixture
def work(tmp_path):
    def make(count: int = 6, labels_per_row: int | None = None, **columns) -> Work:
        rows = {one.id: one for one in (row(i, **columns) for i in range(count))}
        return Work(rows, tmp_path / "p.labels.jsonl", 0, labels_per_row)

    return make


def everything(work: Work, who: str, key: str = "1") -> list[Task]:
    seen = []
    while (task := work.next(who)) is not None:
        seen.append(task)
        work.answer(who, task.row.id, task.better(key), task.first)
    return seen


def test_rows_and_sides_have_an_order_of_their_own_for_each_labeller(work):
    ann, bob = everything(work(40), "ann"), everything(work(40), "bob")
    assert [task.row.id for task in ann] != [task.row.id for task in bob]
    assert sorted(task.row.id for task in ann) == sorted(task.row.id for task in bob)
    for seen in (ann, bob):
        assert 8 < sum(task.first == "a" for task in seen) < 32
    sides = {task.row.id: task.first for task in ann}
    assert sum(sides[task.row.id] != task.first for task in bob) > 5


def test_who_comes_back_goes_on_where_they_were(work):
    first = work()
    for _ in range(2):
        task = first.next("ann")
        first.answer("ann", task.row.id, "tie", task.first)
    expected = first.next("ann")
    again = work()
    assert (again.next("ann").row.id, again.next("ann").first) == (expected.row.id, expected.first)
    assert again.progress("ann")["done"] == 2
    assert again.progress("bob") == {"done": 0, "total": 6, "seconds": None}


def test_back_shows_what_was_said_and_the_later_label_counts(work):
    here = work()
    first = here.next("ann")
    here.answer("ann", first.row.id, first.better("2"), first.first)
    second = here.next("ann")
    here.answer("ann", second.row.id, "skip", second.first)
    assert here.back("ann").said_key == "skip"
    task = here.back("ann")
    assert (task.row.id, task.said_key) == (first.row.id, "2")
    assert here.back("ann") is None
    here.answer("ann", task.row.id, task.better("1"), task.first)
    assert here.progress("ann")["done"] == 2
    counting = {label.id: label.better for label in current_labels(read_labels(here.path).labels)}
    assert counting == {first.row.id: first.first, second.row.id: "skip"}
    assert here.counts[second.row.id] == 0  # a skip says nothing


def test_two_processes_share_a_file_and_a_row_gets_as_many_labels_as_asked_for(work):
    one, other = work(6, 1), work(6, 1)
    seen = []
    for _ in range(3):
        for here, who in ((one, "ann"), (other, "bob")):
            task = here.next(who)
            seen.append(task.row.id)
            here.answer(who, task.row.id, "a", task.first)
    assert sorted(seen) == sorted(one.rows)
    assert one.next("ann") is None


def test_a_row_that_another_labeller_reads_is_not_given_twice(work, monkeypatch):
    here = work(1, 1)
    reading = here.next("ann")
    assert here.next("bob") is None
    assert here.next("ann").row.id == reading.row.id
    monkeypatch.setattr(labelling.time, "monotonic", lambda: reading.since + labelling.AWAY + 1)
    assert here.next("bob").row.id == reading.row.id  # ann went away
    here.answer("bob", reading.row.id, "skip", "a")
    assert here.next("ann") is not None  # a skip is no label
    here.answer("ann", reading.row.id, "a", "a")
    assert here.next("cid") is None


def test_a_pause_is_cut_and_told(work, monkeypatch):
    here = work()
    task = here.next("ann")
    monkeypatch.setattr(labelling.time, "monotonic", lambda: task.since + 4000)
    assert here.answer("ann", task.row.id, "a", task.first).seconds == labelling.PAUSE
    assert here.paused == 1
    assert "5 minutes at most" in dict(finishing.summary(finishing.result_of(here), "en"))["time"]


def test_agreed_pairs_are_written_with_what_is_known_of_each_answer(work, tmp_path):
    here = work(5, score_chosen=3, score_rejected=1, margin=2, model_chosen="m", model_rejected="n", judge="j", x=1)
    ids = list(here.rows)
    said = {ids[0]: "aab", ids[1]: "bb", ids[2]: "tt", ids[3]: "ab", ids[4]: "s"}
    for name, letters in said.items():
        for who, letter in zip(("ann", "bob", "cid"), letters, strict=False):
            here.answer(who, name, {"t": "tie", "s": "skip"}.get(letter, letter), "a")
    output = tmp_path / "out.jsonl"
    sheet = finishing.write_pairs(here, finishing.check_output(str(output), here.path))
    assert (sheet["pairs"], sheet["left_out"]) == (
        2,
        {"tie": 1, "no majority": 1, "only skipped": 1, "not labelled": 0},
    )
    kept, turned = map(json.loads, output.read_text().splitlines())
    assert (kept["response_chosen"], kept["score_chosen"], kept["margin"], kept["model_chosen"]) == (
        "good 0",
        3,
        2,
        "m",
    )
    assert (kept["judge"], kept["labellers"], kept["labellers_agree"], kept["x"]) == ("people", 3, 2, 1)
    assert (turned["response_chosen"], turned["score_chosen"], turned["margin"], turned["model_chosen"]) == (
        "bad 1",
        1,
        -2,
        "n",
    )
    finishing.write_pairs(here, finishing.check_output(str(output), here.path))  # the same labels: made again
    with pytest.raises(UserError, match="was not made of"):
        finishing.check_output(str(output), tmp_path / "others.labels.jsonl")
    for name, problem in (
        ("x.json", "end in .jsonl"),
        (here.path.name, "is the file of labels"),
        ("no/x.jsonl", "no folder"),
    ):
        with pytest.raises(UserError, match=problem):
            finishing.check_output(str(tmp_path / name), here.path)


def test_what_is_labelled_may_be_pairs_or_labels(write_jsonl, work):
    pairs = [
        {"question": f"q{i % 3}", "response_chosen": "a", "response_rejected": "b", "judge": "x"} for i in range(4)
    ]
    rows, told = labelling.read_rows(write_jsonl("p.jsonl", pairs), Catalog(), 0.05, lambda *_: None)
    assert (len(rows), next(iter(rows.values())).columns) == (3, {"judge": "x"})
    assert "labelled once" in told[-1]
    everything(here := work(), "ann")
    again, _ = labelling.read_rows(str(here.path), Catalog(), 0.05, lambda *_: None)
    assert again.keys() == here.rows.keys()
    assert where(str(here.path), None) == here.path
    assert where("some/data.parquet", "x.jsonl") == Path("x.jsonl")
    with pytest.raises(UserError, match="no file"):
        where("owner/name", None)
    with pytest.raises(UserError, match="holds no labels"):
        where("p.jsonl", write_jsonl("q.jsonl", pairs))


@pytest.mark.parametrize(
    ("typed", "key", "rest"),
    [("1", "1", ""), ("T", "t", ""), ("１x", "1", "x"), ("\x1b[A", "up", ""), ("\x1b[6~q", "page down", "q"),
     ("\x1b[1;5C2", None, "2"), ("\x1b", "\x1b", ""), ("\x1b[", None, ""), ("ｑ", "q", ""), ("", None, "")],
)  # fmt: skip
def test_keys(typed, key, rest):
    assert first_key(typed) == (key, rest)


def test_thoughts_stand_apart():
    assert thoughts_apart(turns("<think>a</think>\nb")) == [(True, "a"), (False, "b")]
    assert thoughts_apart(turns("a</think>b")) == [(True, "a"), (False, "b")]
    assert thoughts_apart(turns("b <think>never closed")) == [(False, "b"), (True, "never closed")]
    assert thoughts_apart([{"role": "assistant", "content": "b", "reasoning_content": "a"}]) == [
        (True, "a"),
        (False, "b"),
    ]
    assert thoughts_apart(turns("")) == []


@pytest.mark.parametrize("width", [40, 80, 100, 140])
def test_answers_stand_beside_each_other_where_there_is_room(width):
    prompt = [{"role": "user", "content": "孩子发烧怎么办？" * 9}]
    texts = ["<think>秘密</think>多喝水。" * 1 + "多喝水。" * 30, "\x1b[31mred\u202e"]
    task = Task(Row("i", "", prompt, turns(texts[0]), turns(texts[1])), "b", None, 0.0)
    console = Terminal(width=width, height=30, force_terminal=True)
    lines = [
        "".join(segment.text for segment in line)
        for line in viewing.lines_of(console, viewing.body(task, "en", width, folded=True), width)
    ]
    assert all(cell_len(line) <= width for line in lines)
    beside = [line for line in lines if "1  first answer" in line and "2  second answer" in line]
    assert bool(beside) == (width >= 100)
    text = "\n".join(lines)
    assert "秘密" not in text
    assert "\x1b" not in text
    assert "␛[31mred\\u202e" in text
    unfolded = viewing.lines_of(console, viewing.body(task, "en", width, folded=False), width)
    assert "秘密" in "".join(segment.text for line in unfolded for segment in line)


def test_every_sentence_has_a_chinese_one():
    for file in ("label", "labelling", "viewing", "terminal", "serving", "finishing"):
        for node in ast.walk(ast.parse((HERE / f"{file}.py").read_text())):
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", "") == "say"
                and isinstance(node.args[1], ast.Constant)
            ):
                assert any(node.args[1].value in table for table in TRANSLATIONS), node.args[1].value
    for sentence in (*(what for _, what in viewing.HELP), *finishing.LEFT_OUT):
        assert any(sentence in table for table in TRANSLATIONS), sentence
    script = (HERE / "label.js").read_text()
    english, chinese = (
        set(re.findall(r"(\w+):", part))
        for part in re.search(r"en: \{(.*?)\n  zh: \{(.*?)\n\};", script, re.DOTALL).groups()
    )
    assert english == chinese


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "needs a terminal"),
        (("--port", "1"), "--port has no effect without --serve"),
        (("--host", "::"), "--host has no effect without --serve"),
        (("--serve", "--labeller", "x"), "the page asks each labeller"),
        (("--serve", "--host", "no.such.host.invalid"), "can't be used"),
        (("--serve", "--labels", "no/x.jsonl"), "there is no folder"),
        (("--serve", "--lang", "fr"), "write en or zh"),
    ],
)
def test_what_is_refused(arguments, problem, write_jsonl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_jsonl("p.jsonl", [{"question": "q", "response_chosen": "a", "response_rejected": "b"}])
    result = CliRunner().invoke(label, [path, *arguments])
    assert problem in str(result.exception)
    for name in (" ", "x" * 65, "a\nb"):
        with pytest.raises(UserError, match="up to 64"):
            name_of(name)


def test_in_a_terminal(write_jsonl, tmp_path):
    """Keys in a pseudo-terminal."""
    path = write_jsonl(
        "p.jsonl", [{"question": f"问题 {i}", "response_chosen": "好" * 9, "response_rejected": "no"} for i in range(4)]
    )
    command = [sys.executable, "-m", "rlhf_core", "preferences", "label", path, "--labeller", "ann"]
    env = {**os.environ, "COLUMNS": "90", "LINES": "24", "TERM": "xterm"}

    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True)
    os.close(theirs)

    def until(what: str) -> str:
        seen, end = b"", time.monotonic() + 20
        while what not in seen.decode("utf-8", "ignore"):
            assert time.monotonic() < end, seen.decode("utf-8", "replace")
            if select.select([ours], [], [], 0.2)[0]:
                seen += os.read(ours, 65536)
        return seen.decode("utf-8", "ignore")

    screen = until("? help")
    assert "0 / 4" in screen
    for number, key in enumerate(("1", "t"), start=1):
        time.sleep(0.3)  # a key held down labels nothing unseen
        os.write(ours, key.encode())
        until(f"{number} / 4")
    os.write(ours, b"11")  # too soon: it is not read as a label
    os.write(ours, b"q")
    said = until("goes on where this ended")
    assert "\x1b[?1049l" in said  # the screen is as it was
    assert process.wait(20) == 0
    os.close(ours)
    labels = read_labels(tmp_path / "p.labels.jsonl").labels
    assert [one.better for one in labels] == [labels[0].shown_first, "tie"]


@pytest.fixture
def server(work):
    found = serving.Server(work(3), "127.0.0.1", 0, "en")
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def ask(server, path: str, body: object = None, method: str = "POST", **headers: str | None):
    """(status, JSON or text). A header that is None is left out."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=5)
    usual = {
        "Host": f"127.0.0.1:{server.server_address[1]}",
        "Content-Type": "application/json",
        serving.TOKEN: server.token,
    }
    usual |= {name.replace("_", "-"): value for name, value in headers.items()}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.putrequest(method, path, skip_host=True)
    for name, value in usual.items():
        if value is not None:
            connection.putheader(name, value)
    if method == "POST" and "Content-Length" not in usual:
        connection.putheader("Content-Length", str(len(content)))
    connection.endheaders(content if method == "POST" else None)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, json.loads(text) if answer.getheader("Content-Type").startswith("application/json") else text


def test_the_page_labels(server):
    status, page = ask(server, "/", method="GET")
    assert status == 200
    assert server.token in page
    assert "connect-src 'self'" in page
    status, found = ask(server, "/next", {"labeller": "ann"})
    assert {"id", "shown_first", "turns", "answers", "said"} == found["task"].keys()  # nothing else: blind
    for _ in range(3):
        task = found["task"]
        status, found = ask(
            server, "/label", {"labeller": "ann", "id": task["id"], "better": "a", "shown_first": task["shown_first"]}
        )
        assert status == 200
    assert (found["task"], found["done"], found["people"]["labels"]) == (None, 3, 3)
    assert ask(server, "/back", {"labeller": "ann"})[1]["task"]["said"] == "a"
    assert ask(server, "/back", {"labeller": "bob"})[1] == {"first": True}
    assert len(read_labels(server.work.path).labels) == 3


def test_the_page_refuses_what_is_not_its_own(server):
    good = {"labeller": "ann"}
    assert ask(server, "/next", good, Host="evil.example:80")[0] == 403  # DNS rebinding
    assert ask(server, "/", method="GET", Host="evil.example")[0] == 403
    assert ask(server, "/", method="GET", Host="[evil")[0] == 403
    assert ask(server, "/", method="GET", Host="localhost:9")[0] == 200  # a port that is forwarded
    assert ask(server, "/next", good, **{serving.TOKEN.replace("-", "_"): None})[0] == 403
    assert ask(server, "/next", good, **{serving.TOKEN.replace("-", "_"): "x" + server.token})[0] == 403
    assert ask(server, "/next", good, Content_Type="text/plain")[0] == 415  # what a form of another site may send
    assert ask(server, "/next", b"{", Content_Length=str(10**9))[0] == 413
    assert ask(server, "/next", b"{")[0] == 400
    assert ask(server, "/next", b"[1]")[0] == 400
    for name in ("", " ", "x" * 65, 3, None, "a\u202eb"):
        assert ask(server, "/next", {"labeller": name})[0] == 400
    for change in ({"id": "no"}, {"id": []}, {"better": "c"}, {"shown_first": "x"}, {"better": ["a"]}):
        row = next(iter(server.work.rows))
        assert (
            ask(server, "/label", {"labeller": "ann", "id": row, "better": "a", "shown_first": "a", **change})[0] == 400
        )
    assert ask(server, "/../etc/passwd", method="GET")[0] == 404
    assert ask(server, "/label", good, method="GET")[0] == 404
    assert not server.work.path.exists()


def test_beyond_loopback_the_address_needs_its_token(work, monkeypatch):
    monkeypatch.setattr(serving, "is_loopback", lambda host: False)
    found = serving.Server(work(3), "127.0.0.1", 0, "en")
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        assert f"?token={found.token}" in found.url
        assert ask(found, "/", method="GET")[0] == 403
        assert ask(found, "/?token=x", method="GET")[0] == 403
        assert ask(found, f"/?token={found.token}", method="GET")[0] == 200
        assert ask(found, f"/?token={found.token}", method="GET", Host="evil.example")[0] == 403
    finally:
        found.shutdown()
        thread.join()
        found.server_close()


def test_texts_of_rows_go_to_the_page_as_text(server):
    evil = Row(
        "e",
        "",
        [{"role": "user", "content": "</script>"}],
        turns("</script><img onerror=alert(1)>\x1b[2J\u202e"),
        turns("b" * 200_000),
    )
    server.work.rows = {"e": evil}
    task = ask(server, "/next", {"labeller": "eve"})[1]["task"]
    answers = sorted((part[0][1] for part in task["answers"]), key=len)
    assert answers[0] == "</script><img onerror=alert(1)>␛[2J\\u202e"
    assert len(answers[1]) == 200_000
    script = (HERE / "label.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", script)


def test_a_summary_is_shown(work, capsys):
    here = work()
    everything(here, "ann")
    everything(here, "bob", "2")
    finishing.show(Screen(), finishing.result_of(here), "zh")
    shown = capsys.readouterr().out
    assert "6 / 6" in shown
    assert "Krippendorff" in shown
