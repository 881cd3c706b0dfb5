"""Columns that the user names, within others too, and the line to copy that names them where no format fits."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from rlhf_core.catalog import Catalog
from rlhf_core.data.loading import load
from rlhf_core.data.misfit import guess
from rlhf_core.errors import UserError
from rlhf_core.grammar import DataSpec, read_data

Q, A = "What helps against a cough?", "Warm drinks, and rest for a few days."


def conversation(entry):
    [row] = load(read_data([entry], None, None), "conversations", Catalog()).train
    return [turn["content"] for turn in row["messages"]]


def pair(entry):
    [row] = load(read_data([entry], None, None), "preferences", Catalog()).train
    return [row[key][-1]["content"] for key in ("prompt", "chosen", "rejected")]


def test_columns_of_preferences_in_csv_under_their_own_names(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("prompt_zh,good,bad\n发热？,休息,没事\n", "utf-8")
    assert pair(f"{path}:question=prompt_zh,response_chosen=good,response_rejected=bad") == ["发热？", "休息", "没事"]
    columns = {"question": "prompt_zh", "response_chosen": "good", "response_rejected": "bad"}
    assert pair({str(path): {"columns": columns}}) == ["发热？", "休息", "没事"]


# a row, the columns, what is learned
WITHIN = {
    "an object": ({"input": {"text": Q, "lang": "en"}, "out": A}, {"question": "input.text", "answer": "out"}),
    "a list": ({"q": Q, "answers": [{"text": A}, {"text": "x"}]}, {"question": "q", "answer": "answers.0.text"}),
    "a list of texts": ({"q": Q, "answers": {"text": [A]}}, {"question": "q", "answer": "answers.text.0"}),
    "JSON in a cell": ({"input": json.dumps({"text": Q}), "out": A}, {"question": "input.text", "answer": "out"}),
    "two of one object": ({"qa": {"q": Q, "a": A}}, {"prompt": "qa.q", "completion": "qa.a"}),
    "a name with a dot": ({"qa.q": Q, "qa": {"q": "not it"}, "a": A}, {"prompt": "qa.q", "completion": "a"}),
}


@pytest.mark.parametrize("case", WITHIN)
def test_what_is_within_a_column(write_jsonl, case):
    row, columns = WITHIN[case]
    assert conversation({write_jsonl("a.jsonl", [row]): columns}) == [Q, A]


def test_a_row_without_what_is_within_a_column_is_an_error_of_its_own(write_jsonl):
    rows = [{"input": {"text": Q}, "out": A}, {"input": "text", "out": A}]
    spec = DataSpec.read(write_jsonl("a.jsonl", rows) + ":question=input.text,answer=out")
    with pytest.raises(UserError, match=r"line 2: .* has no question; its columns: input, answer"):
        load([spec], "conversations", Catalog())


def test_what_is_read_within_a_column_is_said_and_what_is_not(write_jsonl):
    row = {"input": {"text": Q, "lang": "english"}, "out": A}
    [part] = load(
        [DataSpec.read(write_jsonl("a.jsonl", [row]) + ":question=input.text,answer=out")], "prompts", Catalog()
    ).parts
    assert part.columns() == "prompt from input.text; answer from out; not used: input.lang"


def test_a_misspelt_name_within_a_column_is_refused_with_the_nearest(write_jsonl):
    spec = DataSpec.read(write_jsonl("a.jsonl", [{"input": {"text": Q}, "out": A}]) + ":question=input.txt,answer=out")
    with pytest.raises(UserError, match=r"no row has a column 'input.txt', .* Did you mean 'input.text'"):
        load([spec], "conversations", Catalog())


def test_a_name_that_no_formatter_knows_is_a_column_for_rewards(write_jsonl):
    path = write_jsonl("a.jsonl", [{"question": Q, "answer": A, "meta": {"kw": ["tea"]}}])
    data = load(read_data([{path: {"columns": {"keywords": "meta.kw"}}}], None, None), "prompts", Catalog())
    assert data.train[0]["keywords"] == ["tea"]
    [part] = data.parts
    assert part.warn(["keywords"]) == []
    assert part.warn([]) == [f"{path}: the column meta.kw may change what should be learned, and nothing uses it"]


# settings, what the error says
REFUSED = {
    "no mapping": ({"columns": "question=a"}, "columns must be {what it is read as: COLUMN}, not 'question=a'"),
    "twice": ({"prompt": "a", "columns": {"prompt": "b"}}, "prompt is given twice"),
    "no name": ({"prompt": ""}, "prompt must be the name of a column, not ''"),
    "a list": ({"prompt": ["a", "b"]}, r"prompt must be the name of a column, not \['a', 'b'\]"),
    "a misspelt setting": ({"responce_chosen": "a"}, "no setting 'responce_chosen'. Did you mean 'response_chosen'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_columns_that_are_refused(case):
    settings, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        DataSpec.read({"a.jsonl": settings})


def test_columns_are_written_as_they_are_read():
    for text in ("a.csv:question=input.text", 'a.csv:prompt=b,columns={"keywords": "kw"}', "a.csv:completion=3"):
        spec = DataSpec.read(text)
        assert DataSpec.read(str(spec)) == spec
    assert DataSpec.read('a.csv:columns={"dialogue":"x"}').columns == {"dialogue": "x"}


OTHER = "An answer that is quite a bit longer than the question is."
# a row, the names that are guessed
GUESSED = {
    "words of the names": ({"my_out": A, "my_in": Q}, {"prompt": "my_in", "completion": "my_out"}),
    "camel case": ({"userQuestion": Q, "botAnswer": A}, {"prompt": "userQuestion", "completion": "botAnswer"}),
    "Chinese": ({"医生回复": A, "患者提问": Q, "问题": "x?"}, {"prompt": "问题", "completion": "医生回复"}),
    "an instruction alone": ({"the_task": Q, "gold_out": A}, {"prompt": "the_task", "completion": "gold_out"}),
    "instruction and input": ({"my_task": "t", "my_in": Q, "my_out": A}, {"instruction": "my_task", "input": "my_in", "output": "my_out"}),
    "a pair": ({"q": Q, "good": A, "bad": "No."}, {"prompt": "q", "chosen": "good", "rejected": "bad"}),
    "a pair within": ({"q": Q, "answers": {"better": A, "worse": "No."}}, {"prompt": "q", "chosen": "answers.better", "rejected": "answers.worse"}),
    "half of a pair is none": ({"q": Q, "best": A}, {"prompt": "q", "completion": "best"}),
    "lengths": ({"x": Q, "y": OTHER}, {"prompt": "x", "completion": "y"}),
    "numbers are no text": ({"id": "17", "x": Q, "n": 3, "y": OTHER}, {"prompt": "x", "completion": "y"}),
    "turns": ({"chat_log": [{"role": "user", "content": Q}], "x": Q}, {"messages": "chat_log"}),
    "a system prompt": ({"my_system": "s", "x": Q, "y": OTHER}, {"system": "my_system", "prompt": "x", "completion": "y"}),
    "a pair of conversations": ({"win": [{"role": "user", "content": Q}], "lose": [{"role": "user", "content": Q}]}, {"chosen": "win", "rejected": "lose"}),
    "a pair after a conversation": ({"talk": [{"role": "user", "content": Q}], "win": A, "lose": "No."}, {"conversations": "talk", "chosen": "win", "rejected": "lose"}),
    "a history of turns": ({"q": Q, "a": A, "before": [{"role": "user", "content": Q}]}, {"prompt": "q", "completion": "a"}),
    "a pair after an instruction and an input": ({"my_task": "t", "in": Q, "win": A, "lose": "No."}, {"instruction": "my_task", "input": "in", "chosen": "win", "rejected": "lose"}),
    "an identifier is no answer": ({"x": Q, "row_id": "a-b-c-d-e-f-g-h-i-j-k-l-m-n-o-p-q-r-s"}, {"prompt": "x"}),
    "JSON is no text": ({"talk": "[{'role': 'user'}]"}, {}),
    "nothing": ({"n": 1, "pieces": [{"label": True}]}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", GUESSED)
def test_the_guess_at_names(case):
    row, expected = GUESSED[case]
    assert guess([row]) == expected


def test_a_text_that_is_the_same_in_all_rows_is_neither_question_nor_answer():
    rows = [{"origin": "a text that is longer than both", "x": f"{Q} {i}", "y": f"{A} {i}"} for i in range(3)]
    assert guess(rows) == {"prompt": "x", "completion": "y"}


@pytest.mark.parametrize("case", ["words of the names", "Chinese", "instruction and input", "lengths"])
def test_the_line_of_a_refusal_can_be_copied(tmp_path, write_jsonl, case):
    row, _ = GUESSED[case]
    path = write_jsonl("my data.jsonl", [row])
    with pytest.raises(UserError, match="no formatter fits") as refused:
        load([DataSpec(path)], "conversations", Catalog())
    words = shlex.split(str(refused.value).partition("perhaps: ")[2])
    assert conversation(words[0])[-1] == (OTHER if case == "lengths" else A)


def test_a_refusal_names_the_nearest_format_and_what_is_missing(write_jsonl):
    path = write_jsonl("a.jsonl", [{"question": Q, "response_chosen": "x", "n": 1}])
    with pytest.raises(UserError, match="The nearest format, preference, also needs response_rejected"):
        load([DataSpec(path)], "preferences", Catalog())
    with pytest.raises(UserError, match="no formatter fits") as refused:
        load([DataSpec(write_jsonl("b.jsonl", [{"n": 1}]))], "preferences", Catalog())
    assert not re.search("nearest|perhaps", str(refused.value))


def test_a_forced_formatter_that_does_not_fit_says_how_to_name_columns(write_jsonl):
    path = write_jsonl("a.jsonl", [{"q": Q, "answer": A}])
    with pytest.raises(
        UserError, match=r'needs question; the row has q, answer\. .*FILE:columns={"question": "COLUMN"}'
    ):
        load([DataSpec(path, formatter="question_answer")], "conversations", Catalog())


# a method's need, a row that some format reads but that lacks what the method needs, the columns that are guessed
LACKING = {
    "a pair": ("preferences", {"prompt": Q, "good": A, "bad": "No."}, "prompt=prompt,chosen=good,rejected=bad"),
    "an answer": ("conversations", {"prompt": Q, "my_reply": A}, "prompt=prompt,completion=my_reply"),
    "an answer within": (
        "conversations",
        {"question": Q, "answer": {"text": A}},
        "prompt=question,completion=answer.text",
    ),
    "a pair that nothing can be": ("preferences", {"prompt": Q, "completion": A}, None),
    "an answer that is empty": ("conversations", {"question": Q, "answer": ""}, None),
}


@pytest.mark.parametrize("case", LACKING)
def test_what_a_method_needs_and_no_format_finds_is_guessed(write_jsonl, case):
    need, row, guessed = LACKING[case]
    path = write_jsonl("a.jsonl", [row])
    with pytest.raises(UserError, match=r"can be used|can't be used") as refused:
        load([DataSpec(path)], need, Catalog())
    line = re.search(r"Name the columns \((perhaps )?(.*?)\), or write a formatter", str(refused.value))
    assert line is not None
    assert line[2] == (f"{path}:{guessed}" if guessed else "FILE:prompt=COLUMN,…")
    if guessed:
        assert load([DataSpec.read(line[2])], need, Catalog()).train
