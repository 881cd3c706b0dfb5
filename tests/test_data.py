"""From files to rows a method trains on; every error names the place."""

from __future__ import annotations

import json

import pytest

from rlhf_core.errors import UserError
from rlhf_core.plugins import Catalog
from rlhf_core.training.data import add_system_prompt, choose_formatter, load, read

QA = {"question": "2+2?", "answer": "4"}
PAIR = {"question": "q", "response_chosen": "good", "response_rejected": "bad"}
CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


def load_file(path: str, need: str, **options):
    return load(path, None, need, Catalog(), **{"formatter": None, "held_out": 0, "seed": 0, **options})


def test_jsonl_json_and_folders(tmp_path, write_jsonl):
    write_jsonl("a.jsonl", [QA, "", {**QA, "question": "b"}])
    (tmp_path / "b.json").write_text(json.dumps([QA]))
    (tmp_path / "notes.txt").write_text("not data")
    assert [row.place for row in read(str(tmp_path))] == ["a.jsonl line 1", "a.jsonl line 3", "b.json row 1"]


def test_a_json_file_with_a_byte_order_mark_and_unicode_separators(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"question": "a\u2028b", "answer": "c"}, ensure_ascii=False), "utf-8-sig"
    )
    assert read(str(tmp_path / "a.jsonl"))[0].values["question"] == "a\u2028b"


# file name, content, what the error says
BAD_FILES = {
    "malformed line": ("a.jsonl", '{"a": 1}\n{"a": 1,,}\n', "a.jsonl line 2 is not JSON"),
    "malformed list": ("a.json", '[{"a": 1},\n{"a" 1}]', "a.json line 2 is not JSON"),
    "empty": ("a.jsonl", "\n \n", "the file is empty"),
    "empty list": ("a.json", "[]", "there is no row in it"),
    "not objects": ("a.jsonl", '{"a": 1}\n[1, 2]', "a.jsonl line 2: expected an object"),
    "unknown kind": ("a.docx", "x", "can't read .docx files"),
    "no layout": ("a.jsonl", '{"frage": "x", "antwort": "y"}', "no formatter fits. a.jsonl line 1 has the columns frage, antwort"),
    "empty answer": ("a.jsonl", json.dumps(QA) + '\n{"question": "x", "answer": " "}', "a.jsonl line 2: .* answer is empty"),
    "missing in a later row": ("a.jsonl", json.dumps(QA) + '\n{"question": "x"}', "a.jsonl line 2: .* has no 'answer'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(tmp_path, case):
    name, content, message = BAD_FILES[case]
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_file(str(tmp_path / name), "prompts")


def test_not_utf8(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match="not UTF-8 text"):
        read(str(tmp_path / "a.jsonl"))


def test_a_path_that_is_not_there_comes_with_the_nearest(write_jsonl):
    path = write_jsonl("train.jsonl", [QA])
    with pytest.raises(UserError, match="no such file or folder. Did you mean .*train.jsonl"):
        read(path.replace("train", "trian"))


def test_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match=r"the folder has no \.json or \.jsonl file"):
        read(str(tmp_path))


# row, need -> projected row
PROJECTIONS = {
    "qa for prompts": (QA, "prompts", {"prompt": [{"role": "user", "content": "2+2?"}], "answer": "4", "question": "2+2?"}),
    "pair for prompts": (PAIR, "prompts", {"prompt": [{"role": "user", "content": "q"}], "question": "q"}),
    "pair for preferences": (
        PAIR,
        "preferences",
        {"chosen": [{"role": "assistant", "content": "good"}], "rejected": [{"role": "assistant", "content": "bad"}]},
    ),
    "pair for conversations": (
        PAIR,
        "conversations",
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}]},
    ),
    "chat for prompts": (CHAT, "prompts", {"prompt": [CHAT["messages"][0]], "answer": "hello"}),
    "chat for conversations": (CHAT, "conversations", {"messages": CHAT["messages"]}),
}  # fmt: skip


@pytest.mark.parametrize("case", PROJECTIONS)
def test_projection(write_jsonl, case):
    row, need, expected = PROJECTIONS[case]
    projected = load_file(write_jsonl("a.jsonl", [row]), need).train[0]
    assert {key: projected[key] for key in expected} == expected


def test_other_columns_ride_along_for_rewards(write_jsonl):
    row = load_file(write_jsonl("a.jsonl", [{**QA, "keywords": ["x"], "level": 3}]), "prompts").train[0]
    assert (row["keywords"], row["level"]) == (["x"], 3)


def test_data_without_pairs_or_answers_is_refused(write_jsonl):
    with pytest.raises(UserError, match="a.jsonl line 1: this method needs pairs"):
        load_file(write_jsonl("a.jsonl", [QA]), "preferences")
    with pytest.raises(UserError, match="this method needs an answer to learn"):
        load_file(write_jsonl("b.jsonl", [{"messages": CHAT["messages"][:1]}]), "conversations")


def test_held_out_rows_are_a_seeded_share_and_not_trained_on(write_jsonl):
    path = write_jsonl("a.jsonl", [{**QA, "question": f"q{i}"} for i in range(50)])
    one, same, other = (load_file(path, "prompts", held_out=16, seed=seed) for seed in (1, 1, 2))
    assert len(one.held_out) == 5  # a tenth at most
    assert one == same
    assert one.held_out != other.held_out
    assert {r["question"] for r in one.held_out}.isdisjoint(r["question"] for r in one.train)


def test_the_embedded_data_has_its_own_held_out_part():
    data = load_file("embedded", "prompts", held_out=32)
    assert (data.formatter, len(data.held_out)) == ("question_answer", 32)
    assert {r["question"] for r in data.held_out}.isdisjoint(r["question"] for r in data.train)


FORMATTER = """
from rlhf_core import Example, Formatter, hookimpl
def convert(row): return Example(prompt=[{{"role": "user", "content": "third"}}], answer="third")
@hookimpl
def rlhf_formatters(): return [Formatter("third", columns={columns}, convert=convert)]
"""


def third_party(distribution, columns: str):
    code = FORMATTER.format(columns=columns)
    distribution("third", {"third_module": code}, {"rlhf.formatters": {"third": "third_module"}})


def test_built_in_formatters_go_first_unless_one_is_forced(distribution, write_jsonl):
    third_party(distribution, '{"question", "answer", "level"}')
    path = write_jsonl("a.jsonl", [{**QA, "level": 1}])
    assert load_file(path, "prompts").formatter == "question_answer"
    assert load_file(path, "prompts", formatter="third").train[0]["answer"] == "third"


def test_a_third_partys_formatter_is_found_by_its_columns(distribution, write_jsonl):
    third_party(distribution, '{"frage", "antwort"}')
    path = write_jsonl("a.jsonl", [{"frage": "x", "antwort": "y"}])
    assert load_file(path, "prompts").formatter == "third"


def test_a_forced_formatter_that_does_not_fit(distribution, write_jsonl):
    third_party(distribution, '{"frage"}')
    with pytest.raises(UserError, match="formatter third needs frage; there is question, answer"):
        load_file(write_jsonl("a.jsonl", [QA]), "prompts", formatter="third")


def test_a_broken_formatter_matters_only_when_no_other_fits(distribution, write_jsonl):
    distribution("bad", {"bad_format": "import no_such"}, {"rlhf.formatters": {"bad": "bad_format"}})
    assert load_file(write_jsonl("a.jsonl", [QA]), "prompts").formatter == "question_answer"
    with pytest.raises(UserError, match="formatter 'bad' of bad 1.0 could not be loaded"):
        load_file(write_jsonl("b.jsonl", [{"frage": "x"}]), "prompts")


def test_the_most_columns_win(write_jsonl):
    rows = read(write_jsonl("a.jsonl", [{**PAIR, "answer": "x"}]))
    assert choose_formatter(rows[0], "a.jsonl", Catalog(), None).name == "preference"


def test_a_system_prompt_goes_where_there_is_none():
    rows = [{"prompt": [{"role": "user", "content": "q"}]}, {"prompt": [{"role": "system", "content": "own"}]}]
    assert add_system_prompt(rows, "new") == 1
    assert [row["prompt"][0]["content"] for row in rows] == ["new", "own"]
