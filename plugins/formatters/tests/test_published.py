"""Data sets as they are published: a row in the layout of each, the format that is found, and what is made of it.

The texts are our own.
"""

from __future__ import annotations

import json

import pytest

from rlhf_core.catalog import Catalog
from rlhf_core.data.loading import load
from rlhf_core.errors import UserError
from rlhf_core.grammar import DataSpec

Q, A, BAD = "Is 38.5 degrees a fever?", "Yes, that is a fever.", "No."
TOOL = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}}}
CALL = {"name": "weather", "arguments": '{"city": "Oslo"}'}
TREE = {"message_tree_id": "1", "tree_state": "ready_for_export"}


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


def message(text, role, replies=(), **others):
    return {"text": text, "role": role, "lang": "en", "replies": list(replies), **others}


# Two answers, of which the second is better; after it the user asks again, and is answered twice.
ROOT = message(Q, "prompter", [
    message(BAD, "assistant", rank=1),
    message(A, "assistant", [
        message("Thanks.", "prompter"),
        message("Sure?", "prompter", [message("Quite.", "assistant", rank=1), message("Yes, sure.", "assistant", rank=0)]),
    ], rank=0),
    message("deleted", "assistant", rank=-1, deleted=True),
    message("bad", "assistant", rank=-1, review_result=False),
])  # fmt: skip

# data set -> a row, its format, what it becomes
PAIRS = {
    "Intel/orca_dpo_pairs": ({"system": "s", "question": Q, "chosen": A, "rejected": BAD}, "prompt_preference", [system("s"), user(Q)]),
    "argilla/distilabel-intel-orca-dpo-pairs": ({"system": "", "input": Q, "chosen": A, "rejected": BAD, "generations": [A, BAD], "order": ["chosen", "rejected"], "status": "unchanged", "rating": [9.0, 7.0]}, "prompt_preference", [user(Q)]),
    "stanfordnlp/SHP, the first": ({"post_id": "x", "domain": "askdocs", "history": Q, "human_ref_A": A, "human_ref_B": BAD, "labels": 1, "score_A": 9, "score_B": 2, "score_ratio": 4.5}, "compared", [user(Q)]),
    "stanfordnlp/SHP, the second": ({"post_id": "x", "history": Q, "human_ref_A": BAD, "human_ref_B": A, "labels": 0, "score_A": 2, "score_B": 9}, "compared", [user(Q)]),
    "PKU-Alignment/PKU-SafeRLHF": ({"prompt": Q, "response_0": BAD, "response_1": A, "is_response_0_safe": True, "is_response_1_safe": True, "better_response_id": 1, "safer_response_id": 1}, "compared", [user(Q)]),
    "nvidia/HelpSteer2, preference": ({"split": "train", "prompt": Q, "response_1": BAD, "response_2": A, "preference_strength": 2, "preference_statement": "x"}, "compared", [user(Q)]),
    "nvidia/HelpSteer2, of several turns": ({"prompt": "Hi\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\n" + Q, "response_1": A, "response_2": BAD, "preference_strength": -1}, "compared", [user("Hi"), assistant("Hello."), user(Q)]),
    "nvidia/HelpSteer3": ({"domain": "general", "language": "english", "context": [user("Hi"), assistant("Hello."), user(Q)], "response1": A, "response2": BAD, "overall_preference": -3, "individual_preference": []}, "compared", [user("Hi"), assistant("Hello."), user(Q)]),
    "berkeley-nest/Nectar": ({"prompt": f"\n\nHuman: {Q}\n\nAssistant: ", "answers": [{"answer": "Well.", "model": "b", "rank": 2.0}, {"answer": A, "model": "a", "rank": 1.0}, {"answer": BAD, "model": "c", "rank": 3.0}], "turns": 1, "num_responses": 3, "good_natured": True}, "ranked", [user(Q)]),
    "openbmb/UltraFeedback": ({"source": "x", "instruction": Q, "models": ["a", "b"], "completions": [{"model": "a", "response": BAD, "overall_score": 3.0, "fine-grained_score": 2.5, "critique": "x", "annotations": {}}, {"model": "b", "response": A, "overall_score": 8.5, "fine-grained_score": 4.5, "critique": "x", "annotations": {}}]}, "ranked", [user(Q)]),
    "HuggingFaceH4/ultrafeedback_binarized": ({"prompt": Q, "prompt_id": "x", "chosen": [user(Q), assistant(A)], "rejected": [user(Q), assistant(BAD)], "messages": [user(Q), assistant(A)], "score_chosen": 8.0, "score_rejected": 3.0}, "prompt_preference", [user(Q)]),
    "Anthropic/hh-rlhf": ({"chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}", "rejected": f"\n\nHuman: {Q}\n\nAssistant: {BAD}"}, "hh", [user(Q)]),
    "ms-swift": ({"messages": [system("s"), user(Q), assistant(A)], "rejected_response": BAD}, "rejected_response", [system("s"), user(Q)]),
    "ms-swift with query and history": ({"system": "s", "query": Q, "response": A, "rejected_response": BAD, "history": [["Hi", "Hello."]]}, "response_preference", [system("s"), user("Hi"), assistant("Hello."), user(Q)]),
    "OpenAI": ({"input": {"messages": [user(Q)], "tools": [], "parallel_tool_calls": True}, "preferred_output": [assistant(A)], "non_preferred_output": [assistant(BAD)]}, "openai_preference", [user(Q)]),
    "LLaMA-Factory": ({"conversations": [human(Q)], "chosen": gpt(A), "rejected": gpt(BAD)}, "sharegpt_preference", [user(Q)]),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_of_a_published_pair_the_better_answer_is_chosen(write_jsonl, name):
    row, formatter, prompt = PAIRS[name]
    data = load([DataSpec(write_jsonl("a.jsonl", [row]))], "preferences", Catalog())
    assert list(data.parts[0].formats) == [formatter]
    [made] = data.train
    assert (made["prompt"], made["chosen"], made["rejected"]) == (prompt, [assistant(A)], [assistant(BAD)])


THINKING = [{"role": "assistant", "content": A, "reasoning_content": "38.5 is above 38."}]
OPTIONS = {"A": "cold", "B": "flu", "C": "cough", "D": ""}
LETTERED = f"{Q}\nA. cold\nB. flu\nC. cough"
CALLED = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]}
WEATHER = [user("Weather in Oslo?"), CALLED, {"role": "tool", "content": "4 degrees"}]
# data set -> a row, its format, the prompt, the answer that is learned, the reference
ANSWERS = {
    "Open-Orca/OpenOrca": ({"id": "1", "system_prompt": "s", "question": Q, "response": A}, "prompt_completion", [system("s"), user(Q)], [assistant(A)], A),
    "Open-Orca/SlimOrca": ({"conversations": [{"from": "system", "value": "s", "weight": None}, {**human(Q), "weight": 0.0}, {**gpt(A), "weight": 1.0}]}, "sharegpt", [system("s"), {**user(Q), "weight": 0.0}], [{**assistant(A), "weight": 1.0}], A),
    "databricks/databricks-dolly-15k": ({"instruction": Q, "context": "38.5", "response": A, "category": "closed_qa"}, "alpaca", [user(f"{Q}\n38.5")], [assistant(A)], A),
    "nvidia/HelpSteer2": ({"prompt": f"Hi\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\n{Q}", "response": A, "helpfulness": 4, "correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 1}, "prompt_completion", [user("Hi"), assistant("Hello."), user(Q)], [assistant(A)], A),
    "OpenAssistant/oasst1, trees": ({**TREE, "prompt": ROOT}, "oasst_tree", [user(Q), assistant(A), user("Sure?")], [assistant("Yes, sure.")], "Yes, sure."),
    "timdettmers/openassistant-guanaco": ({"text": f"### Human: Hi### Assistant: Hello.### Human: {Q}### Assistant: {A}"}, "guanaco", [user("Hi"), assistant("Hello."), user(Q)], [assistant(A)], A),
    "open-r1/OpenR1-Math-220k": ({"problem": Q, "solution": "x", "answer": "yes", "problem_type": "Algebra", "generations": [A], "correctness_count": 1, "messages": [user(Q), assistant(A)]}, "messages", [user(Q)], [assistant(A)], "yes"),
    "open-r1/DAPO-Math-17k-Processed": ({"prompt": Q, "solution": "34", "data_source": "math_dapo", "source_prompt": [user(Q)], "ability": "MATH", "reward_model": {"ground_truth": "34", "style": "rule"}, "extra_info": {"index": "1"}}, "prompt_completion", [user(Q)], [assistant("34")], "34"),
    "FreedomIntelligence/medical-o1-reasoning-SFT": ({"Question": Q, "Complex_CoT": "38.5 is above 38.", "Response": A}, "prompt_completion", [user(Q)], THINKING, A),
    "FreedomIntelligence/medical-o1-verifiable-problem": ({"Open-ended Verifiable Question": Q, "Ground-True Answer": "yes"}, "question_answer", [user(Q)], [assistant("yes")], "yes"),
    "FreedomIntelligence/huatuo_encyclopedia_qa": ({"questions": [[Q, "Is it one?"]], "answers": [A]}, "question_lists", [user(Q)], [assistant(A)], A),
    "FreedomIntelligence/HuatuoGPT-sft-data-v1": ({"id": 1, "data": [f"问：{Q}", f"答：{A}"]}, "huatuogpt", [user(Q)], [assistant(A)], A),
    "FreedomIntelligence/Huatuo26M-Lite": ({"id": 1, "question": Q, "answer": A, "score": 5, "label": "内科", "related_diseases": "x"}, "question_answer", [user(Q)], [assistant(A)], A),
    "Congliu/Chinese-DeepSeek-R1-Distill": ({"input": Q, "reasoning_content": "38.5 is above 38.", "content": A, "repo_name": "x", "score": 9}, "prompt_completion", [user(Q)], THINKING, A),
    "qiaojin/PubMedQA": ({"pubid": 1, "question": Q, "context": {"contexts": ["Text one.", "Text two."], "labels": ["BACKGROUND", "RESULTS"], "meshes": []}, "long_answer": A, "final_decision": "yes"}, "pubmedqa", [user(f"Text one.\n\nText two.\n\n{Q}")], [assistant(A)], "yes"),
    "openlifescienceai/medmcqa": ({"id": "x", "question": Q, "opa": "cold", "opb": "flu", "opc": "cough", "opd": None, "cop": 1, "choice_type": "single", "exp": None, "subject_name": "Medicine"}, "multiple_choice", [user(LETTERED)], [assistant("B. flu")], "B"),
    "FreedomIntelligence/CMB, one letter": ({"exam_type": "x", "exam_class": "x", "question": Q, "answer": "C", "question_type": "单项选择题", "option": OPTIONS}, "multiple_choice", [user(LETTERED)], [assistant("C. cough")], "C"),
    "FreedomIntelligence/CMB, several": ({"exam_type": "x", "question": Q, "answer": "AC", "question_type": "多项选择题", "option": OPTIONS}, "multiple_choice", [user(LETTERED)], [assistant("A. cold\nC. cough")], "AC"),
    "haonan-li/cmmlu": ({"Question": Q, "A": "cold", "B": "flu", "C": "cough", "D": None, "Answer": "B"}, "multiple_choice", [user(LETTERED)], [assistant("B. flu")], "B"),
    "YeungNLP/firefly-train-1.1M": ({"kind": "QA", "input": Q, "target": A}, "prompt_completion", [user(Q)], [assistant(A)], A),
    "ms-swift": ({"system": "s", "query": Q, "response": A, "history": [["Hi", "Hello."]]}, "prompt_completion", [system("s"), user("Hi"), assistant("Hello."), user(Q)], [assistant(A)], A),
    "OpenAI with parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": Q}]}, {"role": "assistant", "content": [{"type": "text", "text": A}]}]}, "messages", [user(Q)], [assistant(A)], A),
    "OpenAI with functions": ({"messages": [user("Weather in Oslo?"), {"role": "assistant", "content": None, "function_call": CALL}, {"role": "function", "name": "weather", "content": "4 degrees"}, assistant("4.")], "functions": [TOOL["function"]]}, "messages", [*WEATHER[:2], {**WEATHER[2], "name": "weather"}], [assistant("4.")], "4."),
    "LLaMA-Factory with calls": ({"conversations": [human("Weather in Oslo?"), {"from": "function_call", "value": json.dumps(CALL)}, {"from": "observation", "value": "4 degrees"}, gpt("4.")], "tools": json.dumps([TOOL])}, "sharegpt", WEATHER, [assistant("4.")], "4."),
    "ms-swift with calls": ({"messages": [user("Weather in Oslo?"), {"role": "tool_call", "content": json.dumps(CALL)}, {"role": "tool_response", "content": "4 degrees"}, assistant("4.")], "tools": json.dumps([TOOL])}, "messages", WEATHER, [assistant("4.")], "4."),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_the_answer_of_a_published_row(write_jsonl, name):
    row, formatter, prompt, completion, reference = ANSWERS[name]
    path = write_jsonl("a.jsonl", [row])
    data = load([DataSpec(path)], "conversations", Catalog())
    assert list(data.parts[0].formats) == [formatter]
    assert data.train[0]["messages"] == [*prompt, *completion]
    assert load([DataSpec(path)], "prompts", Catalog()).train[0]["answer"] == reference


@pytest.mark.parametrize("name", ["OpenAI with functions", "LLaMA-Factory with calls", "ms-swift with calls"])
def test_the_tools_of_a_published_row_are_given_to_the_template(write_jsonl, name):
    [row] = load([DataSpec(write_jsonl("a.jsonl", [ANSWERS[name][0]]))], "conversations", Catalog()).train
    tools = json.loads(row["tools"]) if isinstance(row["tools"], str) else row["tools"]
    assert tools == [TOOL]


def test_the_prompt_of_dapo(write_jsonl):
    row = {"data_source": "math_dapo", "prompt": [user(Q)], "ability": "MATH", "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"}, "extra_info": {"index": "x"}}  # fmt: skip
    [made] = load([DataSpec(write_jsonl("a.jsonl", [row]))], "prompts", Catalog()).train
    assert (made["prompt"], made["answer"]) == ([user(Q)], "34")


def test_the_pair_of_a_tree_is_its_last_answer_that_was_ranked(write_jsonl):
    path = write_jsonl("a.jsonl", [{**TREE, "prompt": ROOT}])
    [made] = load([DataSpec(path)], "preferences", Catalog()).train
    assert load([DataSpec(path)], "prompts", Catalog()).parts[0].columns().startswith("prompt from prompt; not used: ")
    assert made["prompt"] == [user(Q), assistant(A), user("Sure?")]
    assert (made["chosen"], made["rejected"]) == ([assistant("Yes, sure.")], [assistant("Quite.")])


def test_the_answer_of_a_tree_goes_on_after_its_last_pair(write_jsonl):
    root = message(Q, "prompter", [message(BAD, "assistant", rank=1), message(A, "assistant", [message("Sure?", "prompter", [message("Quite.", "assistant")])], rank=0)])  # fmt: skip
    path = write_jsonl("a.jsonl", [{**TREE, "prompt": root}])
    [pair] = load([DataSpec(path)], "preferences", Catalog()).train
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == ([user(Q)], [assistant(A)], [assistant(BAD)])
    [conversation] = load([DataSpec(path)], "conversations", Catalog()).train
    assert conversation["messages"] == [user(Q), assistant(A), user("Sure?"), assistant("Quite.")]


def flat(node, parent=None, number=0):
    """The messages of a tree, each in a row."""
    name = f"{parent}.{number}" if parent else str(number)
    rest = {key: value for key, value in node.items() if key != "replies"}
    yield {"message_id": name, "parent_id": parent, "message_tree_id": "1", "rank": None, "deleted": False, **rest}
    for i, reply in enumerate(node["replies"]):
        yield from flat(reply, name, i)


def test_messages_in_rows_of_their_own_become_the_conversation_of_their_tree(write_jsonl):
    rows = [*flat(ROOT), *flat(message("Hi", "prompter", [message("Hello.", "assistant")]), number=1)]
    data = load([DataSpec(write_jsonl("a.jsonl", rows))], "conversations", Catalog())
    found = sorted([turn["content"] for turn in row["messages"]] for row in data.train)
    assert found == [["Hi", "Hello."], [Q, A, "Sure?", "Yes, sure."]]
    assert (
        f"left out {len(rows) - 2} of {len(rows)} rows: formatter oasst_messages: a message within a tree"
        in data.warnings[0]
    )


def test_a_pair_that_is_judged_as_equal_is_left_out(write_jsonl):
    good = PAIRS["nvidia/HelpSteer2, preference"][0]
    ties = [{**good, "preference_strength": 0}, {"prompt": Q, "response_a": "x", "response_b": "y", "winner": "tie"}]
    ranked = {"prompt": Q, "answers": [{"answer": "x", "rank": 1}, {"answer": "y", "rank": 1}]}
    data = load([DataSpec(write_jsonl("a.jsonl", [good, *ties, ranked]))], "preferences", Catalog())
    assert len(data.train) == 1
    assert sum("left out 1 of 4 rows" in text for text in data.warnings) == 3
    with pytest.raises(UserError, match="winner is 'x', not one of a, b"):
        load([DataSpec(write_jsonl("a.jsonl", [{**ties[1], "winner": "x"}]))], "preferences", Catalog())


def test_where_the_safer_answer_is_another_than_the_chosen_one(write_jsonl):
    row = {**PAIRS["PKU-Alignment/PKU-SafeRLHF"][0], "safer_response_id": 0}
    path = write_jsonl("a.jsonl", [row])
    data = load([DataSpec(path)], "preferences", Catalog())
    assert data.train[0]["chosen"] == [assistant(A)]
    assert "safer_response_id says the other one in 1 of 1 rows" in data.warnings[0]
    told = data.warnings[0].partition("chooses with FILE:")[2]
    data = load([DataSpec.read(f"{path}:{told}")], "preferences", Catalog())
    assert data.train[0]["chosen"] == [assistant(BAD)]
    assert data.warnings == []


def test_other_wordings_of_a_question_are_said(write_jsonl):
    rows = [{"questions": [[Q, "x?"]], "answers": [A]}, {"questions": [[Q]], "answers": [A]}]
    path = write_jsonl("a.jsonl", rows)
    assert load([DataSpec(path)], "conversations", Catalog()).warnings == [
        f"{path}: 1 of 2 rows have their question in several wordings, of which the first is read"
    ]


# the answer, the letters
SEVERAL = {"ABD": "ABD", "A,B": "AB", "A、C": "AC", "A B": "AB", "Ａ，Ｃ": "AC", "B": "B", "ac.": "AC"}


@pytest.mark.parametrize("answer", [*SEVERAL, ["C", "A"], ["one", "three"], [0, 2], '["A", "C"]'])
def test_several_options_may_be_right(write_jsonl, answer):
    row = {"question": Q, "options": ["one", "two", "three", "four"], "answer": answer}
    [made] = load([DataSpec(write_jsonl("a.jsonl", [row]))], "prompts", Catalog()).train
    assert made["answer"] == SEVERAL.get(str(answer), "AC")


@pytest.mark.parametrize("answer", ["BAD", "AE", "AA", [], [0, 9], "BA"])
def test_letters_that_are_none_of_several_options(write_jsonl, answer):
    row = {"question": Q, "options": ["one", "two", "three", "four"], "answer": answer}
    with pytest.raises(UserError, match="answer .*is (empty|not one of A, B, C, D)"):
        load([DataSpec(write_jsonl("a.jsonl", [row]))], "prompts", Catalog())


# a row, what the error says
REFUSED = {
    "several questions": ({"questions": [["a"], ["b"]], "answers": [A]}, "one question and one answer to a row, not 2 and 1"),
    "no wording": ({"questions": [[]], "answers": [A]}, "questions is empty"),
    "a tree of an assistant": ({"prompt": {"text": "a", "role": "assistant", "replies": []}}, "begins with a message of the prompter, not of 'assistant'"),
    "input without messages": ({"input": {}, "preferred_output": [assistant(A)], "non_preferred_output": [assistant(BAD)]}, "input must be {messages"),
    "an assistant's message alone": ({"message_id": "1", "parent_id": None, "role": "assistant", "text": "a"}, "not of 'assistant'"),
    "an unanswered tree": ({"prompt": {"text": "a", "role": "prompter", "replies": []}}, "nobody answers the first message of the tree"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(write_jsonl, case):
    row, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        load([DataSpec(write_jsonl("a.jsonl", [row]))], "conversations", Catalog())
