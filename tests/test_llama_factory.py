"""Folders with LLaMA-Factory's list of data sets, and turns under names of one's own."""

from __future__ import annotations

import json

import pytest

from rlhf_core.catalog import Catalog
from rlhf_core.data.loading import load
from rlhf_core.errors import UserError
from rlhf_core.grammar import DataSpec
from rlhf_core.reward_report.answers import read_answers

Q, A, BAD = "Is 38.5 degrees a fever?", "Yes, that is a fever.", "No."
SPEAKERS = {"role_tag": "speaker", "content_tag": "text", "user_tag": "Patient", "assistant_tag": "Doctor"}
TALK = [{"speaker": "Patient", "text": Q}, {"speaker": "Doctor", "text": A}]


@pytest.fixture
def folder(tmp_path, write_jsonl):
    """Writes a folder with one data set, and returns its path."""

    def write(entry, row, **others):
        write_jsonl("data.jsonl", [row])
        listed = {"mine": {"file_name": "data.jsonl", **entry}, **others}
        (tmp_path / "dataset_info.json").write_text(json.dumps(listed), "utf-8")
        return str(tmp_path)

    return write


def made(source, need):
    [row] = load([DataSpec.read(source)], need, Catalog()).train
    return row


# an entry, a row, the texts of the conversation
CONVERSATIONS = {
    "alpaca": ({}, {"instruction": Q, "input": "", "output": A}, [Q, A]),
    "named columns": ({"columns": {"prompt": "q", "query": "more", "response": "a", "system": "s", "history": "before"}}, {"q": Q, "more": "Sure?", "a": A, "s": "Be brief.", "before": [["Hi", "Hello."]]}, ["Be brief.", "Hi", "Hello.", f"{Q}\nSure?", A]),
    "sharegpt": ({"formatting": "sharegpt", "columns": {"messages": "talk"}}, {"talk": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]}, [Q, A]),
    "OpenAI's tags": ({"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}}, {"messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]}, [Q, A]),
    "tags of its own": ({"formatting": "sharegpt", "columns": {"messages": "talk"}, "tags": SPEAKERS}, {"talk": TALK}, [Q, A]),
}  # fmt: skip


@pytest.mark.parametrize("case", CONVERSATIONS)
def test_conversations(folder, case):
    entry, row, texts = CONVERSATIONS[case]
    assert [turn["content"] for turn in made(folder(entry, row), "conversations")["messages"]] == texts


# an entry, a row
PAIRS = {
    "alpaca": ({"ranking": True, "columns": {"prompt": "q", "chosen": "good", "rejected": "bad"}}, {"q": Q, "good": A, "bad": BAD}),
    "sharegpt": ({"ranking": True, "formatting": "sharegpt", "columns": {"messages": "conversations", "chosen": "good", "rejected": "bad"}}, {"conversations": [{"from": "human", "value": Q}], "good": {"from": "gpt", "value": A}, "bad": {"from": "gpt", "value": BAD}}),
    "tags of its own": ({"ranking": True, "formatting": "sharegpt", "columns": {"messages": "talk", "chosen": "good", "rejected": "bad"}, "tags": SPEAKERS}, {"talk": TALK[:1], "good": TALK[1], "bad": {**TALK[1], "text": BAD}}),
}  # fmt: skip


@pytest.mark.parametrize("case", PAIRS)
def test_pairs(folder, case):
    row = made(folder(*PAIRS[case]), "preferences")
    assert [row[key][-1]["content"] for key in ("prompt", "chosen", "rejected")] == [Q, A, BAD]


def test_a_bad_answer_by_its_tag(folder):
    entry = {"columns": {"prompt": "q", "response": "a", "kto_tag": "liked"}}
    with pytest.raises(UserError, match="marked as bad"):
        made(folder(entry, {"q": Q, "a": BAD, "liked": False}), "conversations")


def test_the_calls_of_tools_by_tags(folder):
    turns = [{"speaker": "Patient", "text": "Weather?"}, {"speaker": "call", "text": '{"name": "weather", "arguments": {}}'}, {"speaker": "reply", "text": "4"}, {"speaker": "Doctor", "text": "4."}]  # fmt: skip
    tags = {**SPEAKERS, "function_tag": "call", "observation_tag": "reply"}
    row = made(folder({"formatting": "sharegpt", "tags": tags}, {"conversations": turns}), "conversations")
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert row["messages"][1]["tool_calls"][0]["function"]["name"] == "weather"


def test_one_of_several_is_named(folder, tmp_path):
    source = folder({}, {"instruction": Q, "output": A}, other={"file_name": "data.jsonl", "columns": {"prompt": "q"}}, hub={"hf_hub_url": "a/b"})  # fmt: skip
    with pytest.raises(UserError, match=r"has several data sets\. Write .*:config=NAME, with one of mine, other"):
        made(source, "conversations")
    assert made(f"{source}:config=mine", "conversations")["messages"][-1]["content"] == A
    with pytest.raises(UserError, match="'hub' has no file here, but hf_hub_url a/b: give that as --data"):
        made(f"{source}:config=hub", "conversations")
    with pytest.raises(UserError, match="no data set 'mien'. Did you mean 'mine'"):
        made(f"{source}:config=mien", "conversations")
    (tmp_path / "data.jsonl").unlink()
    with pytest.raises(UserError, match="names no file that is there"):
        made(source, "conversations")


def test_what_is_read_and_what_not_is_said(folder):
    source = folder({"columns": {"prompt": "q", "response": "a", "images": "pictures"}, "num_samples": 3}, {"q": Q, "a": A, "pictures": []})  # fmt: skip
    said = load([DataSpec(source)], "conversations", Catalog()).warnings
    assert said == [
        f"{source}: read data.jsonl as dataset_info.json says of 'mine'; not read: images pictures, num_samples 3"
    ]
    assert read_answers(source, Catalog()).warnings == said


def test_the_users_columns_win(folder):
    source = folder({"columns": {"prompt": "q", "response": "a"}}, {"q": Q, "a": BAD, "better": A})
    assert made(f"{source}:output=better", "conversations")["messages"][-1]["content"] == A


def test_a_description_of_another_kind_is_none(folder, tmp_path):
    source = folder({}, {"question": Q, "answer": A})
    for other in ({"features": {"question": {"dtype": "string"}}, "splits": {}}, ["mine"], {"default": {}}):
        (tmp_path / "dataset_info.json").write_text(json.dumps(other), "utf-8")
        assert made(source, "conversations")["messages"][-1]["content"] == A


def test_turns_under_names_of_ones_own(write_jsonl):
    path = write_jsonl("a.jsonl", [{"messages": TALK}])
    names = {"role": "speaker", "content": "text", "user": "Patient", "assistant": "Doctor"}
    spec = DataSpec.read(f"{path}:turns={json.dumps(names)}")
    assert DataSpec.read(str(spec)) == spec
    [row] = load([spec], "conversations", Catalog()).train
    assert [turn["content"] for turn in row["messages"]] == [Q, A]


@pytest.mark.parametrize("turns", ['{"speaker": "role"}', "x", '{"role": 1}'])
def test_turns_that_are_refused(turns):
    with pytest.raises(UserError, match="turns must be {key: TEXT} with keys of role, content, "):
        DataSpec.read(f"a.jsonl:turns={turns}")
