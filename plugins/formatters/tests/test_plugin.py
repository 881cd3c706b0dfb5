"""Each format: a row of it, what it becomes, and the rows it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rlhf_formatter_common import (
    alpaca,
    full_hh,
    hh,
    implicit_preference,
    messages,
    multiple_choice,
    oasst_pairwise,
    preference,
    prompt,
    prompt_completion,
    prompt_preference,
    question_answer,
    rlhf_formatters,
    sharegpt,
    sharegpt_preference,
)
from rlhf_formatter_common.choices import first_option
from rlhf_formatter_common.preferences import compared, is_compared, is_ranked, ranked, rejected_response
from rlhf_formatter_common.reading import is_conversation

from rlhf_core.catalog import Catalog
from rlhf_core.data.files import Row, read_file
from rlhf_core.data.formats import choose_formatter, convert
from rlhf_core.data.projecting import project

SHARED_DATA = Path(__file__).parents[4] / "shared" / "data"


def system(text):
    return {"role": "system", "content": text}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


CATALOG = Catalog()  # which reads what is installed once


def formatter_of(row):
    return choose_formatter(Row("row 1", row), "rows", CATALOG)


def converted(row):
    return convert(Row("row 1", row), formatter_of(row))


Q = {"question": "Fever?"}
OPTIONS = {**Q, "options": ["cold", "flu"]}
LETTERED = {**Q, "A": "cold", "B": "flu"}
REPLIES = {"chosen": "good", "rejected": "bad"}
PROMPT = {"prompt": "a", **REPLIES}
CHAT = {"conversations": [human("a")], **REPLIES}
OASST = "prompter: a\nsecond line\nassistant: b\nprompter: c"
HH = "\n\nHuman: a\n\nsecond part\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
FULL = {"chosen": [user("a"), assistant("good")], "rejected": [user("a"), assistant("bad")]}

# a row, the format that is found, and the prompt
FORMATS = {
    "GSM8K": ({**Q, "answer": "So\n#### 4"}, "question_answer", [user("Fever?")]),
    "no options after all": ({**OPTIONS, "options": None, "answer": "flu"}, "question_answer", [user("Fever?")]),
    "no options in an array": ({**Q, "choices": np.array([]), "answer": "flu"}, "question_answer", [user("Fever?")]),
    "options": ({**OPTIONS, "answer": "B"}, "multiple_choice", [user("Fever?\nA. cold\nB. flu")]),
    "options and a system": ({"system": "s", **OPTIONS, "answer": "B"}, "multiple_choice", [system("s"), user("Fever?\nA. cold\nB. flu")]),
    "MMLU": ({**Q, "subject": "x", "choices": ["cold", "flu"], "answer": 1}, "multiple_choice", [user("Fever?\nA. cold\nB. flu")]),
    "C-Eval": ({**LETTERED, "answer": "B"}, "multiple_choice", [user("Fever?\nA. cold\nB. flu")]),
    "alpaca": ({"instruction": "a", "input": "b", "output": "c"}, "alpaca", [user("a\nb")]),
    "medical finetune": ({"instruction": "a", "input": "", "output": "c"}, "alpaca", [user("a")]),
    "alpaca with history": ({"instruction": "a", "input": None, "output": "c", "system": "s", "history": [["d", "e"]]}, "alpaca", [system("s"), user("d"), assistant("e"), user("a")]),
    "history from CSV": ({"instruction": "a", "output": "c", "system": "", "history": '[["d", "e"]]'}, "alpaca", [user("d"), assistant("e"), user("a")]),
    "messages": ({"messages": [system("s"), user("a"), assistant("b")]}, "messages", [system("s"), user("a")]),
    "messages from CSV": ({"messages": json.dumps([user("a"), assistant("b")])}, "messages", [user("a")]),
    "messages beside their prompt": ({"prompt": "a", "messages": [user("a"), assistant("b")]}, "messages", [user("a")]),
    "array of messages": ({"messages": np.array([user("a"), assistant("b")])}, "messages", [user("a")]),
    "ShareGPT": ({"conversations": [{"from": "system", "value": "s"}, human("a"), gpt("b"), human("c"), gpt("d")]}, "sharegpt", [system("s"), user("a"), assistant("b"), user("c")]),
    "ShareGPT, gpt first": ({"conversations": [{"from": "system", "value": ""}, gpt("hi"), human("a"), gpt("b")]}, "sharegpt", [user("a")]),
    "ShareGPT with roles": ({"system": "s", "conversations": [user("a"), assistant("b")]}, "sharegpt", [system("s"), user("a")]),
    "ShareGPT from CSV": ({"conversations": json.dumps([human("a"), gpt("b")])}, "sharegpt", [user("a")]),
    "prompt": ({"prompt": "a", "system": "s"}, "prompt", [system("s"), user("a")]),
    "prompt of messages": ({"prompt": [system("s"), user("a")], "answer": "b"}, "prompt", [system("s"), user("a")]),
    "a prompt that is a list in text": ({"prompt": '[{"a": 1}]'}, "prompt", [user('[{"a": 1}]')]),
    "prompt and completion": ({"prompt": "a", "completion": "b"}, "prompt_completion", [user("a")]),
    "their messages": ({"prompt": [user("a")], "completion": [assistant("b")]}, "prompt_completion", [user("a")]),
    "medical reward": ({**Q, "response_chosen": "good", "response_rejected": "bad"}, "preference", [user("Fever?")]),
    "prompt preference": (PROMPT, "prompt_preference", [user("a")]),
    "its messages": ({"prompt": [system("s"), user("a")], "chosen": [assistant("good")], "rejected": [assistant("bad")]}, "prompt_preference", [system("s"), user("a")]),
    "UltraFeedback": ({"prompt": "a", "messages": FULL["chosen"], **FULL}, "prompt_preference", [user("a")]),
    "full conversations after a system prompt": ({"prompt": [system("s"), user("a")], **FULL}, "prompt_preference", [system("s"), user("a")]),
    "implicit prompt": (FULL, "implicit_preference", [user("a")]),
    "OpenOrca": ({"id": "1", "system_prompt": "s", "question": "a", "response": "b"}, "prompt_completion", [system("s"), user("a")]),
    "Dolly": ({"instruction": "a", "context": "b", "response": "c", "category": "qa"}, "alpaca", [user("a\nb")]),
    "Firefly": ({"kind": "QA", "input": "a", "target": "b"}, "prompt_completion", [user("a")]),
    "open-r1": ({"problem": "a", "solution": "long", "answer": "1"}, "prompt_completion", [user("a")]),
    "NuminaMath": ({"problem": "a", "solution": "b", "messages": FULL["chosen"]}, "messages", [user("a")]),
    "PubMedQA": ({"question": "a", "context": {"contexts": ["x"]}, "long_answer": "b", "final_decision": "yes"}, "pubmedqa", [user("x\n\na")]),
    "huatuo_encyclopedia": ({"questions": [["a", "a?"]], "answers": ["b"]}, "question_lists", [user("a")]),
    "plain text": ({"text": "a", "source": "b"}, "text", []),
    "a text beside a prompt": ({"text": "a", "prompt": "b"}, "prompt", [user("b")]),
    "guanaco": ({"text": "### Human: a### Assistant: b"}, "guanaco", [user("a")]),
    "oasst": ({"prompt": {"text": "a", "role": "prompter", "replies": [{"text": "b", "role": "assistant", "replies": []}]}}, "oasst_tree", [user("a")]),
    "query and rejected response": ({"query": "a", "response": "good", "rejected_response": "bad"}, "response_preference", [user("a")]),
    "OpenAI's pairs": ({"input": {"messages": [user("a")]}, "preferred_output": [assistant("good")], "non_preferred_output": [assistant("bad")]}, "openai_preference", [user("a")]),
    "HelpSteer": ({"prompt": "a", "response": "b", "helpfulness": 4}, "prompt_completion", [user("a")]),
    "HuatuoGPT": ({"data": ["问：a", "答：b"]}, "huatuogpt", [user("a")]),
    "DAPO": ({"prompt": [user("a")], "reward_model": {"ground_truth": "34"}}, "prompt", [user("a")]),
    "orca_dpo_pairs": ({"system": "s", "question": "a", **REPLIES}, "prompt_preference", [system("s"), user("a")]),
    "history of pairs": ({"prompt": "c", "history": [["a", "b"]], **REPLIES}, "prompt_preference", [user("a"), assistant("b"), user("c")]),
    "ms-swift": ({"messages": FULL["chosen"], "rejected_response": "bad"}, "rejected_response", [user("a")]),
    "two conversations": ({"messages": FULL["chosen"], "rejected_messages": FULL["rejected"]}, "rejected_response", [user("a")]),
    "PKU-SafeRLHF": ({"prompt": "a", "response_0": "bad", "response_1": "good", "better_response_id": 1}, "compared", [user("a")]),
    "SHP": ({"history": "a", "human_ref_A": "good", "human_ref_B": "bad", "labels": 1}, "compared", [user("a")]),
    "HelpSteer3": ({"context": [user("a")], "response1": "good", "response2": "bad", "overall_preference": -2}, "compared", [user("a")]),
    "UltraFeedback's answers": ({"instruction": "a", "completions": [{"response": "bad", "overall_score": 3.0}, {"response": "good", "overall_score": 8.5}]}, "ranked", [user("a")]),
    "Nectar": ({"prompt": "\n\nHuman: a\n\nAssistant: ", "answers": [{"answer": "good", "rank": 1.0}, {"answer": "bad", "rank": 7.0}]}, "ranked", [user("a")]),
    "ShareGPT preference": ({"system": "s", **CHAT}, "sharegpt_preference", [system("s"), user("a")]),
    "LLaMA-Factory": ({**CHAT, "chosen": gpt("good"), "rejected": gpt("bad")}, "sharegpt_preference", [user("a")]),
    "alpaca preference": ({"instruction": "a", "input": "b", **REPLIES}, "alpaca_preference", [user("a\nb")]),
    "Anthropic HH": ({"chosen": HH + " good", "rejected": HH + " bad"}, "hh", [user("a\n\nsecond part"), assistant("b"), user("c")]),
    "full-hh-rlhf": ({"prompt": HH, "response": " good", "chosen": " good", "rejected": " bad"}, "full_hh", [user("a\n\nsecond part"), assistant("b"), user("c")]),
    "oasst1 pairwise after a blank": ({"prompt": " " + OASST, **REPLIES}, "oasst_pairwise", [user("a\nsecond line"), assistant("b"), user("c")]),
    "options in JSON after a blank": ({**Q, "options": ' ["cold", "flu"]', "answer": "B"}, "multiple_choice", [user("Fever?\nA. cold\nB. flu")]),
    "a prompt that names a speaker": ({**PROMPT, "prompt": "assistant: a"}, "prompt_preference", [user("assistant: a")]),
    "oasst1 pairwise": ({"lang": "en", "parent_id": "x", "prompt": OASST, **REPLIES}, "oasst_pairwise", [user("a\nsecond line"), assistant("b"), user("c")]),
}  # fmt: skip


@pytest.mark.parametrize("case", FORMATS)
def test_format(case):
    row, name, turns = FORMATS[case]
    assert formatter_of(row).name == name
    example = converted(row)
    assert example.prompt == turns
    if example.chosen is not None:
        assert (example.chosen, example.rejected) == ([assistant("good")], [assistant("bad")])


TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
# formatter -> its columns, and for one of them its other names
OTHER_NAMES = {
    "multiple_choice": ({"question": "a?", "options": ["x", "y"], "answer": "A"}, "question", "query problem stem question_stem 题目 问题"),
    "alpaca": ({"instruction": "a", "output": "b"}, "output", "response completion answer 输出"),
    "alpaca in Chinese": ({"instruction": "a", "输出": "b"}, "instruction", "指令"),
    "alpaca with an input": ({"instruction": "a", "input": "c", "output": "b"}, "input", "context 输入"),
    "messages": ({"messages": TURNS}, "messages", "conversation dialogue"),
    "prompt": ({"prompt": "a"}, "prompt", "problem"),
    "rejected_response": ({"messages": TURNS, "rejected_response": "c"}, "messages", "conversations"),
    "rejected_response by its answer": ({"messages": TURNS, "rejected_response": "c"}, "rejected_response", "rejected_messages rejected"),
    "alpaca_preference": ({"instruction": "a", "input": "b", "chosen": "c", "rejected": "d"}, "chosen", "preferred_response accepted"),
    "compared": ({"prompt": "a", "response_0": "b", "response_1": "c", "better_response_id": 1}, "prompt", "history context instruction"),
    "ranked": ({"prompt": "a", "completions": [{"response": "b", "score": 1}, {"response": "c", "score": 2}]}, "prompt", "history context instruction"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("case", "other"), [(case, other) for case, (*_, names) in OTHER_NAMES.items() for other in names.split()]
)
def test_a_column_by_another_of_its_names(case, other):
    row, column, _ = OTHER_NAMES[case]
    renamed = {other if name == column else name: value for name, value in row.items()}
    assert formatter_of(renamed).name == formatter_of(row).name == case.partition(" ")[0]
    assert converted(renamed) == converted(row)


@pytest.mark.parametrize(
    ("role", "said"),
    [
        ("bot", 'system, user, assistant, tool: write \'assistant\' for it, or FILE:turns={"assistant": "bot"}$'),
        ("nurse", "system, user, assistant, tool$"),
    ],
)
def test_a_role_of_another_name_is_told(role, said):
    with pytest.raises(ValueError, match=f"messages: role '{role}' is not one of {said}"):
        messages({"messages": [user("a"), {"role": role, "content": "b"}]})


def test_the_reference_of_a_row_under_another_name():
    row = {"prompt": [user("a")], "completion": [assistant("b")]}
    assert prompt_completion({**row, "ground_truth": "c"}).answer == "c"
    assert prompt_completion({**row, "answer": " ", "reward_model": {"ground_truth": "d"}}).answer == "d"
    assert prompt_completion({**row, "answer": "e", "ground_truth": "c"}).answer == "e"


@pytest.mark.parametrize(
    ("options", "read"),
    [
        (["A. x", "B. y"], ["x", "y"]),
        (["(A) x", "(B) y"], ["x", "y"]),
        (["A type", "B type"], ["A type", "B type"]),
        (["A. x", "y"], ["A. x", "y"]),
        (["A.", "B."], ["A.", "B."]),
    ],
)
def test_letters_of_options_are_read_where_each_has_its_own(options, read):
    shown = multiple_choice({"question": "Which?", "options": options, "answer": "A"}).prompt[-1]["content"]
    assert [line.partition(". ")[2] for line in shown.splitlines()[-2:]] == read


def test_what_is_no_question_with_options():
    row = {"question": "Which?", "options": ["x", "y"], "answer": "A"}
    formatter = Catalog().load("formatters", "multiple_choice")[0]
    assert formatter.fits(row)
    for change in ({"answer": ""}, {"options": ""}, {"options": []}, {"options": {}}, {"options": None}):
        assert not formatter.fits({**row, **change})
    huatuo = Catalog().load("formatters", "huatuogpt")[0]
    assert [huatuo.fits({"data": value}) for value in (["问：a", "答：b"], ["a", "b"], "问：a", ["问：a", 3])] == [
        True,
        False,
        False,
        False,
    ]


def test_a_dialogue_in_text_may_end_with_blanks():
    row = {"prompt": f"{HH} \n", "chosen": " good", "rejected": " bad"}
    assert full_hh(row) == full_hh({**row, "prompt": HH})


def test_every_formatter_is_declared_tested_and_described():
    names = {formatter.name for formatter in rlhf_formatters()}
    assert names == {e.name for e in Catalog().entries("formatters") if e.distribution == "rlhf-formatter-common"}
    of_several_rows = {"oasst_messages"}
    assert names == {name for _, name, _ in FORMATS.values()} | of_several_rows
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert not [name for name in names if f"`{name}`" not in readme]


@pytest.mark.parametrize("name", [formatter.name for formatter in rlhf_formatters()])
def test_found_by_its_name(name):
    assert Catalog().load("formatters", name)[0].name == name


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


def test_a_solution_of_the_row_stays():
    assert "solution" not in question_answer({"question": "a", "answer": "b", "solution": "c"}).columns


def test_an_answer_that_is_not_a_number_is_no_reference():
    """NaN marks an empty cell of a table."""
    assert converted({"prompt": "a", "answer": float("nan")}).answer is None
    assert converted({"prompt": "a", "answer": np.float64("nan"), "ground_truth": 3}).answer == "3"


def test_numbers_are_text():
    assert question_answer({"question": "2+2", "answer": 4}).answer == "4"


def test_preference_with_system_and_history():
    row = {"system": "Be brief.", "history": [["a", "b"], ("c", "d")], "question": "e"}
    example = preference({**row, "response_chosen": "good", "response_rejected": "bad"})
    turns = [user("a"), assistant("b"), user("c"), assistant("d"), user("e")]
    assert example.prompt == [system("Be brief."), *turns]
    assert (example.chosen, example.rejected) == ([assistant("good")], [assistant("bad")])


@pytest.mark.parametrize(
    "empty", [{}, {"system": "", "history": []}, {"system": None, "history": None}, {"system": " ", "history": "[]"}]
)
def test_preference_without_system_and_history(empty):
    row = {"question": "e", "response_chosen": "good", "response_rejected": "bad", **empty}
    assert preference(row).prompt == [user("e")]


def test_messages():
    turns = [system("s"), user("a"), assistant("b"), user("c"), assistant("d")]
    example = messages({"messages": turns})
    assert example.prompt == turns[:-1]
    assert example.completion == [assistant("d")]
    assert example.answer == "d"
    assert messages({"system": "other", "messages": turns}).prompt == turns[:-1]
    assert messages({"messages": turns[:-1]}).completion is None
    assert messages({"messages": turns[:-1], "answer": "4"}).answer == "4"


def test_a_turn_of_calls_alone_is_one():
    calls = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    row = {"messages": json.dumps([user("a"), {"role": "assistant", "tool_calls": calls}])}
    assert formatter_of(row).name == "messages"
    assert converted(row).completion[0]["tool_calls"] == calls
    assert converted(row).answer is None
    asked = {"prompt": [user("a")], "completion": [{"role": "assistant", "content": "", "tool_calls": calls}]}
    assert converted(asked).answer is None


@pytest.mark.parametrize(
    ("value", "known"),
    [
        ([], True), ([user("a")], True), ([user("a"), "b"], False), (user("a"), False), ({}, False), (3, False), ("a", False),
        (json.dumps([user("a")]), True), (" " + json.dumps([human("a")]), True), ("[]", False), ('[{"role": "user"}]', False),
        ('{"role": "user", "content": "a"}', False), ("[1", False),
    ],
)  # fmt: skip
def test_what_is_a_conversation(value, known):
    assert is_conversation(value) is known


def test_a_turn_has_one_role_and_its_text():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    read = messages({"messages": [system(" "), {"role": "user", "content": parts}, {**gpt("c"), "role": "x"}]})
    assert (read.prompt, read.completion) == ([user("ab")], [assistant("c")])


def test_answers_that_are_no_numbers_need_no_first_option():
    assert first_option([{**OPTIONS, "answer": "B", "exp": "b is right"}]) == ({}, "")


COMPARED = {"prompt": "a", "response_0": "bad", "response_1": "good", "better_response_id": 1}
SCORED = {"prompt": "a", "answers": [{"text": "b", "score": 1}, {"text": "c", "score": 2}]}


def test_what_is_no_comparison_and_no_ranking():
    missing = [{k: v for k, v in COMPARED.items() if k != name} for name in ("response_1", "better_response_id")]
    assert [is_compared(row) for row in (COMPARED, *missing)] == [True, False, False]
    lists = [[], ["b", "c"], [{"text": "b"}, {"text": "c"}], [{"score": 1}, {"score": 2}], SCORED["answers"][:1]]
    rows = [{"prompt": "a", "answers": value} for value in lists] + [{**SCORED, "responses": SCORED["answers"]}]
    assert [is_ranked(row) for row in (SCORED, *rows)] == [True, *[False] * 6]
    for row, says in ((missing[0], "no two answers"), (missing[1], "no verdict"), ({"prompt": "a"}, "no two answers")):
        with pytest.raises(ValueError, match=says):
            compared(row)
    for row in ({"prompt": "a"}, *rows[:4]):
        with pytest.raises(ValueError, match="is a list of answers with a score"):
            ranked(row)


def test_a_verdict_in_any_spelling():
    row = {"prompt": "a", "response_a": "good", "response_b": "bad", "winner": " Model_A "}
    assert converted(row).chosen == [assistant("good")]


def test_a_pair_that_differs_in_a_turn_in_between():
    first, second = (
        [user("a"), assistant("b"), user("c"), assistant(text), user("d"), assistant("e")] for text in "xy"
    )
    example = implicit_preference({"chosen": first, "rejected": second})
    assert (example.prompt, example.chosen, example.rejected) == (first[:3], first[3:], second[3:])
    with pytest.raises(ValueError, match="they have no user's turn in common"):
        implicit_preference({"chosen": [system("s"), *first[:1]], "rejected": [system("s"), *second[1:2]]})


def test_a_conversation_and_another_answer_to_it():
    turns = [user("a"), assistant("b"), user("c"), assistant("d")]
    for rejected in ("x", [assistant("x")], assistant("x"), [*turns[:3], assistant("x")]):
        example = rejected_response({"messages": turns, "rejected_response": rejected})
        assert (example.prompt, example.chosen, example.rejected) == (turns[:3], turns[3:], [assistant("x")])


def test_marks_of_what_is_learned_become_weights():
    turns = [user("a"), {**assistant("b"), "loss": 0}, {**assistant("c"), "train": True}, {**assistant("d"), "loss": 2}]
    read = messages({"messages": [*turns, {**assistant("e"), "weight": 0, "loss": 1}]})
    assert [turn.get("weight") for turn in [*read.prompt, *read.completion]] == [None, 0, 1, None, 0]
    assert read.prompt[3]["loss"] == 2


def test_an_answer_that_is_called_bad_is_no_reference():
    row = {"prompt": "a", "completion": "b"}
    assert (converted(row).answer, converted({**row, "label": True}).answer) == ("b", "b")
    bad = converted({**row, "label": False, "mark": "label"})
    assert (bad.rejected, bad.answer) == ([assistant("b")], None)
    assert converted({**row, "label": False, "mark": "label", "answer": "c"}).answer == "c"


@pytest.mark.parametrize(
    ("row", "completion"),
    [
        ({"conversations": [human("q"), gpt("full answer")]}, "full answer"),
        ({"messages": [user("q"), assistant("full answer")]}, "full answer"),
        ({"prompt": "q", "completion": "full answer"}, "full answer"),
        ({"instruction": "q", "output": "full answer"}, "full answer"),
    ],
)
def test_the_reference_is_the_answer_of_the_row_or_else_the_completion(row, completion):
    assert converted(row).completion == [assistant(completion)]
    assert converted(row).answer == completion
    assert converted({**row, "answer": 42}).answer == "42"
    assert converted({**row, "answer": ["4", "2"]}).answer is None  # is passed through as it is


def test_a_pair_that_differs_early_keeps_all_its_turns():
    turns = [user("a"), assistant("good"), user("c"), assistant("d")]
    example = implicit_preference({"chosen": turns, "rejected": [user("a"), assistant("bad")]})
    assert (example.prompt, example.chosen, example.rejected) == (turns[:1], turns[1:], [assistant("bad")])


def test_an_identical_pair_is_left_as_it_is():
    example = implicit_preference({"chosen": FULL["chosen"], "rejected": FULL["chosen"]})
    assert (example.prompt, example.chosen, example.rejected) == ([user("a")], [assistant("good")], [assistant("good")])


def test_an_empty_turn_of_a_dialogue_is_dropped_and_its_neighbours_joined():
    text = "\n\nHuman: a\n\nAssistant: \n\nHuman: b\n\nAssistant: "
    assert hh({"chosen": text + "c", "rejected": text + "d"}).prompt == [user("a\n\nb")]


MEDMCQA = {"question": "Fever?", "opa": "cold", "opb": "flu", "opc": "burn", "opd": "gout", "exp": None}
ARC = {"question": "Fever?", "choices": {"text": ["cold", "flu"], "label": ["1", "2"]}}
NUMBERS = {"question": "1+1", "options": ["1", "2", "3"]}
# a row of two or more options, and the right one's letter
CHOICES = {
    "letter": ({**OPTIONS, "answer": "B"}, "B"),
    "small letter": ({**OPTIONS, "answer": " b "}, "B"),
    "letter with a point": ({**OPTIONS, "answer": "B."}, "B"),
    "letter in brackets": ({**OPTIONS, "answer": "(B)"}, "B"),
    "full width": ({**OPTIONS, "answer": "Ｂ．"}, "B"),
    "index": ({**OPTIONS, "answer": 0}, "A"),
    "index of an array": ({**OPTIONS, "options": np.array(["cold", "flu"]), "answer": np.int64(1)}, "B"),
    "index in a column with gaps": ({**OPTIONS, "label": 1.0}, "B"),
    "index as text": ({**OPTIONS, "answer": "1"}, "B"),
    "text": ({**OPTIONS, "answer": "flu "}, "B"),
    "the letter before the text": ({**OPTIONS, "answer": "influenza", "answer_idx": "B"}, "B"),
    "a label before a text": ({**Q, "options": ["B", "A"], "answer": "A"}, "A"),
    "a text before an index": ({**NUMBERS, "answer": "2"}, "B"),
    "a number is an index": ({**NUMBERS, "answer": 2}, "C"),
    "a number among numbers": ({**NUMBERS, "options": [1, 2, 3], "answer": 2}, "B"),
    "dict": ({**Q, "options": {"B": "flu", "A": "cold", "C": None}, "answer": "B"}, "B"),
    "dict from CSV": ({**Q, "options": '{"A": "cold", "B": "flu"}', "answer": "B"}, "B"),
    "list from CSV": ({**Q, "options": '["cold", "flu"]', "answer": "flu"}, "B"),
    "texts and labels": ({**ARC, "answerKey": "2"}, "B"),
    "columns": ({**LETTERED, "C": "", "answer": "B"}, "B"),
    "MedMCQA": ({**MEDMCQA, "cop": 1}, "B"),
    "objects": ({**Q, "options": [{"key": "A", "value": "cold"}, {"key": "B", "value": "flu"}], "answer": "B"}, "B"),
    "text with letters": ({**Q, "options": "A. cold B. flu", "answer": "B"}, "B"),
    "text in lines": ({**Q, "options": "cold\nflu", "answer": "flu"}, "B"),
    "CMB": ({**Q, "option": {"A": "cold", "B": "flu", "C": ""}, "answer": "B"}, "B"),
    "choice": ({**Q, "choice": ["cold", "flu"], "answer": "B"}, "B"),
    "columns with a prefix": ({**Q, "option_a": "cold", "option_b": "flu", "correct_option": "b"}, "B"),
    "columns with numbers": ({**Q, "option1": "cold", "option2": "flu", "answer": "flu"}, "B"),
    "a letter in a list": ({**OPTIONS, "answer": ["B"]}, "B"),
    "columns with spaces": ({**Q, "Option A": "cold", "Option B": "flu", "correct answer": "B"}, "B"),
    "columns in Chinese": ({"问题": "1+1", "选项A": "cold", "选项B": "flu", "答案": "B"}, "B"),
    "lines with letters": ({**Q, "options": "A cold\nB flu", "answer": "B"}, "B"),
    "letters that belong to the options": ({**Q, "options": ["A type", "B type"], "answer": "B type"}, "B"),
    "letter and text": ({**OPTIONS, "answer": "B. flu"}, "B"),
    "options with letters": ({**Q, "options": ["A. cold", "B．flu"], "answer": "B．flu"}, "B"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_multiple_choice(case):
    row, letter = CHOICES[case]
    assert formatter_of(row).name == "multiple_choice"
    example = converted(row)
    place = "ABCD".index(letter)
    assert example.answer == letter
    assert example.completion == [assistant(f"{letter}. {example.columns['options'][place]}")]


def test_multiple_choice_has_the_letter_and_the_options_for_a_verifier():
    row = {"question": "发热咳嗽？", "options": ["感冒", "肺炎"], "answer": "肺炎"}
    projected = project(Row("row 1", row), converted(row), "prompts")
    assert projected == {
        "prompt": [user("发热咳嗽？\nA. 感冒\nB. 肺炎")],
        "question": "发热咳嗽？",
        "options": ["感冒", "肺炎"],
        "answer": "B",
    }


PAIRED = {"question": "q", "response_chosen": "a", "response_rejected": "b"}
# the function, a row, what the error says
REFUSED = {
    "empty question": (question_answer, {"question": " ", "answer": "b"}, "question is empty"),
    "no text": (question_answer, {"question": None, "answer": "b"}, "question is NoneType, not text"),
    "a list": (preference, {**PAIRED, "response_chosen": ["a"]}, "is list, not text"),
    "history of strings": (preference, {**PAIRED, "history": ["a"]}, "history must have"),
    "history of single strings": (preference, {**PAIRED, "history": [["a"]]}, "history must have"),
    "history in prose": (preference, {**PAIRED, "history": "none"}, "history is not JSON"),
    "system of another kind": (preference, {**PAIRED, "system": ["s"]}, "system is list, not text"),
    "empty output": (alpaca, {"instruction": "a", "output": ""}, "output is empty"),
    "no roles": (messages, {"messages": [{"text": "a"}]}, "messages must have"),
    "unknown role": (messages, {"messages": [{"role": "human", "content": "a"}]}, "role 'human' is not one of"),
    "no user": (messages, {"messages": [assistant("a")]}, "no turn with the role 'user'"),
    "no messages": (messages, {"messages": []}, "messages is empty"),
    "no list": (messages, {"messages": None}, "messages is not a list"),
    "broken JSON": (messages, {"messages": "[{"}, "messages is not JSON"),
    "a call that is no JSON": (sharegpt, {"conversations": [human("a"), {"from": "function_call", "value": "weather()"}]}, "conversations is not JSON"),
    "a call without a name": (sharegpt, {"conversations": [human("a"), {"from": "function_call", "value": "{}"}]}, "a function_call must be"),
    "unknown speaker": (sharegpt, {"conversations": [{"from": "narrator", "value": "a"}]}, "role 'narrator'"),
    "only gpt": (sharegpt, {"conversations": [gpt("a")]}, "conversations has no turn with the role 'user'"),
    "empty turn": (sharegpt, {"conversations": [human("a"), gpt("")]}, "the text of gpt is empty"),
    "empty prompt": (prompt, {"prompt": ""}, "prompt is empty"),
    "empty completion": (prompt_completion, {"prompt": "a", "completion": " "}, "completion is empty"),
    "no completion": (prompt_completion, {"prompt": "a", "completion": []}, "completion is empty"),
    "user's completion": (prompt_completion, {"prompt": "a", "completion": [user("b")]}, "the reply in completion .* not: user"),
    "empty chosen": (prompt_preference, {**PROMPT, "chosen": ""}, "chosen is empty"),
    "empty rejected": (sharegpt_preference, {**CHAT, "rejected": gpt("")}, "rejected: the text of gpt is empty"),
    "nothing shared": (implicit_preference, {"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]}, "must begin with the same prompt"),
    "one without a reply": (implicit_preference, {**FULL, "rejected": [user("a")]}, "the reply in rejected .* not: no turns"),
    "no speakers": (hh, {"chosen": "a", "rejected": "b"}, "chosen does not begin with the name of a speaker"),
    "empty dialogue answer": (hh, {"chosen": HH + " good", "rejected": HH}, "rejected ends with an empty turn"),
    "empty reply": (full_hh, {"prompt": HH, "chosen": " ", "rejected": "b"}, "chosen is empty"),
    "ranked questions": (oasst_pairwise, {"prompt": "prompter: a\nassistant: b", **REPLIES}, "prompt ends with the assistant's turn"),
    "no answer": (multiple_choice, OPTIONS, "the row has no answer"),
    "no options": (multiple_choice, {**Q, "answer": "B"}, "the row has no options"),
    "one option": (multiple_choice, {**Q, "options": ["a"], "answer": "A"}, "from 2 to 26 options, not 1"),
    "empty option": (multiple_choice, {**Q, "options": ["a", ""], "answer": "A"}, "an option is empty"),
    "a gap between columns": (multiple_choice, {**LETTERED, "B": "", "C": "burn", "answer": "C"}, "an option is empty"),
    "options in prose": (multiple_choice, {**Q, "options": "cold or flu", "answer": "A"}, "options is text without options A"),
    "options in broken JSON": (multiple_choice, {**Q, "options": "['cold' 'flu']", "answer": "A"}, "options is not JSON"),
    "options as odd objects": (multiple_choice, {**Q, "options": [{"x": "cold"}], "answer": "A"}, "options must have options"),
    "letter out of range": (multiple_choice, {**OPTIONS, "answer": "C"}, "answer 'C' is not one of A, B"),
    "index out of range": (multiple_choice, {**OPTIONS, "answer": 2}, "answer '2' is not one of A, B"),
    "hidden": (multiple_choice, {**MEDMCQA, "cop": -1}, "cop '-1' is not one of A, B, C, D"),
    "several": (multiple_choice, {**OPTIONS, "answer": "AC"}, "answer 'AC' is not one of A, B"),
    "calls of no tool": (messages, {"messages": [user("a"), {"role": "assistant", "tool_calls": [1]}]}, "messages: .*tool_calls"),
    "a reply that ends with the user": (prompt_completion, {"prompt": "a", "completion": [assistant("b"), user("c")]}, "not: assistant, user"),
    "text before the speakers": (hh, {"chosen": "x" + HH, "rejected": HH}, "chosen does not begin with the name of a speaker"),
    "no dialogue": (oasst_pairwise, {"prompt": " ", **REPLIES}, "prompt is empty"),
    "no number": (multiple_choice, {**OPTIONS, "answer": True}, "answer is bool, not text"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    convert, row, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        convert(row)


# a file, its format, and what it is for
FILES = {
    "medical_sft_sharegpt.jsonl": ("sharegpt", "conversations"),
    "dpo_zh_conversations.jsonl": ("sharegpt_preference", "preferences"),
    "preference_question_chosen_rejected.jsonl": ("preference", "preferences"),
    "medical_grpo_question_answer.jsonl": ("question_answer", "prompts"),
    "gsm8k.jsonl": ("question_answer", "prompts"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_row_of_a_real_file(name):
    if not (SHARED_DATA / name).exists():
        pytest.skip("the file is not part of the repository")
    format, need = FILES[name]
    rows = read_file(SHARED_DATA / name)
    formatter = formatter_of(rows[0].values)
    assert formatter.name == format
    assert len([project(row, convert(row, formatter), need) for row in rows]) == len(rows) > 0


def test_sharegpts_calls_of_tools_and_their_answers():
    """As LLaMA-Factory has them."""
    call = {"name": "weather", "arguments": {"city": "Oslo"}}
    for value in (json.dumps(call), json.dumps([call]), call):
        asked = [human("a"), {"from": "function_call", "value": value}, {"from": "observation", "value": "4"}, gpt("b")]
        example = sharegpt({"conversations": asked})
        called = {**assistant(""), "tool_calls": [{"type": "function", "function": call}]}
        assert example.prompt == [user("a"), called, {"role": "tool", "content": "4"}]
        assert example.completion == [assistant("b")]
