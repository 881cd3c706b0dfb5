"""What text rewards see: strings or messages, what the prompt opened of an answer, tags that are special tokens."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rlhf_core import builtin
from rlhf_core.catalog import Catalog
from rlhf_core.data.chat_template import ChatTemplate
from rlhf_core.data.loading import load
from rlhf_core.grammar import DataSpec, RewardSpec
from rlhf_core.reward_report import measuring
from rlhf_core.reward_report.answers import read_answers
from rlhf_core.rewards.binding import bind, read_signature
from rlhf_core.rewards.runtime import RewardRuntime
from rlhf_core.rewards.smoke_test import smoke_test

ROWS = [{"prompt": f"What is {i}?", "answer": str(i)} for i in range(12)]
VALUES = {"method": "grpo", "reward": ["./views.py:near"], "max_completion_length": 4, "num_generations": 2}
VIEWS = """
from collections.abc import Sequence
def bare(prompts, completions, **kwargs): return [kind(prompts) + kind(completions)] * len(completions)
def near(completions: list[str], **_): return [kind(completions)] * len(completions)
def asked(prompts: Sequence[str], completions, **_): return [kind(prompts)] * len(completions)
def turns(prompts, completions: list[list[dict]], **_): return [kind(completions)] * len(completions)
def kind(values): return 1.0 if all(isinstance(v, str) for v in values) else 0.0
class Judge:
    def __call__(self, completions: "list[str]", **_: "Unknown"): return [kind(completions)] * len(completions)
"""


def annotated(annotation) -> inspect.Signature:
    def function(completions, **_): ...

    function.__annotations__ = {"completions": annotation}
    return read_signature(function)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (list[str], True), (tuple[str, ...], True), ("list[str]", True), ("typing.List[str]", True),
        ("collections.abc.Sequence[str] | None", True), ("Optional[Iterable[str]]", True),
        (list[dict[str, str]], False), (list[list[dict]], False), ("List[Messages]", False),
        (list, None), ("list[Any]", None), ("Missing", None), (str, None),
    ],
)  # fmt: skip
def test_annotations_that_say_what_a_list_holds(annotation, text):
    assert annotated(annotation).texts.get("completions") is text


# text prompts, specification -> 1 for strings, 0 for messages
SEEN = {
    (True, "bare"): 2.0, (True, "near"): 1.0, (True, "asked"): 1.0, (True, "turns"): 0.0, (True, "Judge"): 1.0,
    (False, "bare"): 0.0, (False, "near"): 1.0, (False, "asked"): 1.0, (False, "turns"): 0.0, (False, "Judge"): 1.0,
}  # fmt: skip


@pytest.mark.parametrize(("text_prompts", "name"), SEEN)
def test_bare_functions_get_strings_where_they_say_so_or_prompts_are_text(tmp_path, text_prompts, name):
    (tmp_path / "views.py").write_text(VIEWS)
    reward = bind(RewardSpec.read(f"{tmp_path / 'views.py'}:{name}"), Catalog())
    runtime = RewardRuntime([reward], str, text_prompts=text_prompts)
    row = {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]}
    column = runtime.evaluate(runtime.batch([row], [[1]]))[name]
    assert (column.scores, column.errors) == ([SEEN[text_prompts, name]], [None])


@pytest.mark.parametrize("text", ["c[0]['content']", "c.strip()"])
def test_a_bare_function_that_cannot_take_strings_gets_messages(tmp_path, text):
    """A batch in which it fails either way decides nothing."""
    (tmp_path / "indexes.py").write_text(
        "def indexes(completions, fail, **_):\n"
        "    assert not fail[0]\n"
        f"    return [float(len({text})) for c in completions]\n"
    )
    reward = bind(RewardSpec.read(f"{tmp_path / 'indexes.py'}:indexes"), Catalog())
    runtime = RewardRuntime([reward], str, text_prompts=True)
    row = {"prompt": [{"role": "user", "content": "q"}]}
    scores = [
        runtime.evaluate(runtime.batch([{**row, "fail": fail}], [[1, 2]]))["indexes"].scores for fail in (1, 0, 1, 0)
    ]
    assert scores == [[None], [6.0], [None], [6.0]]  # the text is [1, 2]


@pytest.mark.parametrize(("text_prompts", "seen"), [(True, [True, True]), (False, [False, False])])
def test_messages_are_tried_only_until_strings_did(tmp_path, text_prompts, seen):
    """And only where prompts are text. A batch in which all rows fail later is called once, and its one row again."""
    (tmp_path / "strict.py").write_text(
        "CALLS = []\n"
        "def strict(completions, fail, **_):\n"
        "    CALLS.append(isinstance(completions[0], str))\n"
        "    assert not fail[0]\n"
        "    return [1.0] * len(completions)\n"
    )
    reward = bind(RewardSpec.read(f"{tmp_path / 'strict.py'}:strict"), Catalog())
    runtime = RewardRuntime([reward], str, text_prompts=text_prompts)
    row = {"prompt": [{"role": "user", "content": "q"}]}
    for fail in (0, 1):
        runtime.evaluate(runtime.batch([{**row, "fail": fail}], [[1, 2]]))
    assert reward.function.__globals__["CALLS"] == seen


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([{"prompt": "a"}, {"prompt": "b", "system": "s"}], True),
        ([{"prompt": "a", "completion": "b"}], True),
        ([{"prompt": "a"}, {"prompt": [{"role": "user", "content": "b"}]}], False),
        ([{"question": "a", "answer": "b"}], False),
    ],
)
def test_which_data_has_text_prompts(write_jsonl, rows, text):
    data = load([DataSpec(write_jsonl("rows.jsonl", rows))], "prompts", Catalog())
    assert data.text_prompts is text


def test_training_and_evaluation_pass_strings(go):
    Path("views.py").write_text(VIEWS)
    code, folder = go(reward=["./views.py:bare"], max_steps=1, num_eval_prompts=1)
    assert code == 0
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert {sample["rewards"]["bare"] for sample in samples} == {2.0}
    found = read_answers(str(folder), Catalog())  # rlhf score, on the run's samples
    rescored = measuring.score([bind(RewardSpec.read("./views.py:bare"), Catalog())], found)["rewards"]["bare"]
    assert (rescored["min"], rescored["errors"]) == (2.0, 0)
    assert "text_prompt" not in found.columns
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert [evaluation[when]["rewards"]["bare"] for when in ("before", "after")] == [2.0, 2.0]


@pytest.fixture(scope="module")
def tokenizer():
    """The built-in one, with tags that are special tokens, another end of a turn, and a prompt that opens a thought."""
    tokenizer = copy.deepcopy(AutoTokenizer.from_pretrained(builtin.MODEL))
    tags = ["<think>", "</think>", "<answer>", "</answer>", "<|turn_end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": tags})
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}")
    return tokenizer


def test_tags_that_are_special_tokens_stay_and_control_tokens_go(tokenizer):
    template = ChatTemplate(tokenizer, {}, tokenizer.convert_tokens_to_ids(["<|turn_end|>"]))
    text = "a\n</think>\n<answer>b</answer>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    named = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert tokenizer.decode(ids, skip_special_tokens=True) != text  # the trap
    assert template.decode([*ids, *named, *template.ends]) == text


def test_a_perfect_answer_to_a_prompt_that_opened_the_thought_scores_one(tokenizer):
    template = ChatTemplate(tokenizer, {})
    reward = bind(RewardSpec.read("medical_format"), Catalog())
    runtime = RewardRuntime([reward], template.decode, opening=template.opening)
    row = {"prompt": [{"role": "user", "content": "q"}], "answer": "x", "tools": None}
    ids = tokenizer.encode("I know it.\n</think>\n<answer>b</answer><|im_end|>", add_special_tokens=False)
    batch = runtime.batch([row], [ids])
    assert batch.texts == ["<think>\nI know it.\n</think>\n<answer>b</answer>"]
    assert batch.completions[0][0]["content"] == batch.texts[0]
    assert runtime.evaluate(batch)["medical_format"].scores == [1.0]


ANSWER = "<think>\na\n</think>\n<answer>b</answer>"


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"answer": ANSWER}, ANSWER),
        ({"answer": ["0.000", "0"]}, "0.000"),
        ({"answer": [["a"], "b"]}, "a"),
        ({"answer": []}, "Yes."),
        ({"answer": float("nan")}, "Yes."),
        ({"answer": {"a": 1}}, "Yes."),
        ({"answer": False}, "False"),
        ({"answer": "half \ud83d"}, "half \ud83d"),
        ({"answer": None, "chosen": "text that is no turns"}, "Yes."),
        ({"answer": float("nan"), "chosen": [{"role": "assistant", "content": "c"}]}, "c"),
    ],
)
def test_the_answer_that_the_smoke_test_tries(tokenizer, row, answer):
    """A reference answer is a complete one: nothing is put before it."""
    template = ChatTemplate(tokenizer, {})
    runtime = RewardRuntime(
        [bind(RewardSpec.read("medical_format"), Catalog())], template.decode, opening=template.opening
    )
    found = smoke_test([{"prompt": [{"role": "user", "content": "q"}], **row}], runtime, template.ids)
    assert (found.answers, found.placeholder) == ([answer], answer == "Yes.")
    assert found.columns["medical_format"].scores == [float(answer == ANSWER)]
    assert smoke_test([], runtime, template.ids) is None
    assert smoke_test([{"prompt": []}], RewardRuntime([], template.decode), template.ids) is None
