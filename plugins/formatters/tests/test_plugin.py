"""Each layout: a row of it, what it becomes, and the rows it refuses."""

from __future__ import annotations

import pytest
from rlhf_formatter_common import messages, preference, question_answer

from rlhf_core.plugins import Catalog


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_question_answer():
    example = question_answer({"question": "肺炎挂什么科？", "answer": "呼吸科"})
    assert example.prompt == [user("肺炎挂什么科？")]
    assert example.completion == [assistant("呼吸科")]
    assert example.answer == "呼吸科"


def test_gsm8k():
    text = "He has 3 + 4 = <<3+4=7>>7.\n#### 1,007"
    example = question_answer({"question": "How many?", "answer": text})
    assert example.answer == "1,007"
    assert example.completion == [assistant(text)]
    assert example.columns == {"solution": text}


def test_numbers_are_text():
    assert question_answer({"question": "2+2", "answer": 4}).answer == "4"


def test_preference_with_system_and_history():
    row = {"system": "Be brief.", "history": [["a", "b"], ("c", "d")], "question": "e"}
    example = preference({**row, "response_chosen": "good", "response_rejected": "bad"})
    turns = [user("a"), assistant("b"), user("c"), assistant("d"), user("e")]
    assert example.prompt == [{"role": "system", "content": "Be brief."}, *turns]
    assert (example.chosen, example.rejected) == ([assistant("good")], [assistant("bad")])


@pytest.mark.parametrize("empty", [{}, {"system": "", "history": []}, {"system": None, "history": None}])
def test_preference_without_system_and_history(empty):
    row = {"question": "e", "response_chosen": "good", "response_rejected": "bad", **empty}
    assert preference(row).prompt == [user("e")]


def test_messages():
    turns = [{"role": "system", "content": "s"}, user("a"), assistant("b"), user("c"), assistant("d")]
    example = messages({"messages": turns})
    assert example.prompt == turns[:-1]
    assert example.completion == [assistant("d")]
    assert messages({"messages": turns[:-1]}).completion is None


REFUSED = {
    "empty question": (question_answer, {"question": " ", "answer": "b"}, "question is empty"),
    "no text": (question_answer, {"question": None, "answer": "b"}, "question is NoneType, not text"),
    "a list": (preference, {"question": "q", "response_chosen": ["a"], "response_rejected": "b"}, "is list, not text"),
    "history of strings": (
        preference,
        {"history": ["a"], "question": "q", "response_chosen": "a", "response_rejected": "b"},
        "history holds",
    ),
    "no roles": (messages, {"messages": [{"text": "a"}]}, "messages holds"),
    "unknown role": (messages, {"messages": [{"role": "human", "content": "a"}]}, "role 'human' is none of"),
    "no user": (messages, {"messages": [assistant("a")]}, "no turn with the role 'user'"),
    "no messages": (messages, {"messages": []}, "no turn with the role 'user'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    convert, row, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        convert(row)


@pytest.mark.parametrize("name", ["question_answer", "preference", "messages"])
def test_found_by_its_name(name):
    assert Catalog().load("formatters", name)[0].name == name
