"""Which tokens are learned, with the chat templates of several families."""

from __future__ import annotations

import copy

import datasets
import pytest
from transformers import AutoTokenizer

from rlhf_core import builtin
from rlhf_core.data import encoding
from rlhf_core.data.chat_template import ChatTemplate

CHATML = """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA = """{{ '<|begin_of_text|>' }}{%- for m in messages %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

# Qwen3's rule: a thought is shown only in answers to the last question
DROPS_THOUGHTS = """{%- set last = namespace(user=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- set text = m.content.split('</think>')[-1].lstrip('\n') if loop.index0 < last.user else m.content %}
{{- '<|im_start|>' + m.role + '\n' + text + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

OPENS_A_THOUGHT = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n\n</think>\n\n' }}{% endif")

NO_END = """{%- for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"""

TEMPLATES = {
    "builtin": None,
    "chatml": CHATML,
    "llama": LLAMA,
    "drops thoughts": DROPS_THOUGHTS,
    "opens a thought": OPENS_A_THOUGHT,
    "no end": NO_END,
}


@pytest.fixture(scope="module")
def original():
    return AutoTokenizer.from_pretrained(builtin.MODEL)


@pytest.fixture(params=TEMPLATES)
def tokenizer(request, original):
    return with_template(original, request.param)


def with_template(original, name: str):
    """A copy of the built-in tokenizer with another chat template, and Llama's special tokens where it is Llama's."""
    tokenizer = copy.deepcopy(original)
    if TEMPLATES[name] is not None:
        tokenizer.chat_template = TEMPLATES[name]
    if name == "llama":
        headers = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]
        tokenizer.add_special_tokens({"eos_token": "<|eot_id|>", "additional_special_tokens": headers})
    return tokenizer


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
PROMPTS = {
    "one question": [user("What helps against fever?")],
    "with a system message": [SYSTEM, user("发热怎么办？")],
    "after other turns": [user("Hello"), assistant("Hello!"), user("What now?")],
}


def asked(tokenizer, prompt: list[dict[str, str]]) -> list[int]:
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def learned(labels: list[int]) -> list[int]:
    return [label for label in labels if label != encoding.IGNORED]


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
@pytest.mark.parametrize(
    "content",
    ["Rest and water.", "多喝水，休息。", "<b>Rest</b>", "assistant", "im_end", "Two\n\nlines", "x", "Hello!"],
)
def test_an_answer_is_its_content_and_one_end_token(tokenizer, prompt, content):
    prompt_ids, answer_ids, _ = encoding.encode_answer(ChatTemplate(tokenizer), prompt, [assistant(content)])
    assert prompt_ids == asked(tokenizer, prompt)
    assert tokenizer.decode(answer_ids) == content + tokenizer.eos_token
    assert answer_ids.count(tokenizer.eos_token_id) == 1
    assert answer_ids[-1] == tokenizer.eos_token_id


def test_a_conversation_of_one_answer_is_its_prompt_and_answer(tokenizer):
    prompt, answer = [SYSTEM, user("What helps?")], assistant("Rest.")
    (ids, labels), *others = encoding.encode_conversation(ChatTemplate(tokenizer), [*prompt, answer])
    prompt_ids, answer_ids, _ = encoding.encode_answer(ChatTemplate(tokenizer), prompt, [answer])
    assert not others
    assert ids == prompt_ids + answer_ids
    assert labels == [encoding.IGNORED] * len(prompt_ids) + answer_ids


def test_every_answer_of_a_conversation_is_learned_once(tokenizer):
    turns = [user("One?"), assistant("First."), user("Two?"), assistant("<think>Hm.</think>Second."), user("Three?")]
    answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    parts = encoding.encode_conversation(ChatTemplate(tokenizer), turns)
    end = tokenizer.eos_token
    assert "".join(tokenizer.decode(learned(labels)) for _, labels in parts) == "".join(a + end for a in answers)
    for ids, labels in parts:
        assert len(ids) == len(labels)
        assert all(label in (encoding.IGNORED, token) for token, label in zip(ids, labels, strict=True))
    assert parts[0][0][: len(asked(tokenizer, turns[:1]))] == asked(tokenizer, turns[:1])


@pytest.mark.parametrize("name", ["builtin", "chatml", "llama"])
def test_turns_that_are_shown_as_they_were_asked_are_one_row(original, name):
    tokenizer = with_template(original, name)
    turns = [SYSTEM, user("One?"), assistant("First."), user("Two?"), assistant("Second.")]
    ((ids, labels),) = encoding.encode_conversation(ChatTemplate(tokenizer), turns)
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    assert tokenizer.decode(ids) == whole.rstrip("\n")
    assert learned(labels).count(tokenizer.eos_token_id) == 2
    assert ids.count(tokenizer.convert_tokens_to_ids("<|begin_of_text|>")) == (1 if name == "llama" else 0)


@pytest.mark.parametrize("name", ["drops thoughts", "opens a thought", "no end"])
def test_turns_that_are_shown_otherwise_later_are_a_row_each(original, name):
    tokenizer = with_template(original, name)
    turns = [user("One?"), assistant("<think>Hm.</think>First."), user("Two?"), assistant("<think>So.</think>Second.")]
    parts = encoding.encode_conversation(ChatTemplate(tokenizer), turns)
    assert len(parts) == 2
    for (ids, labels), i in zip(parts, (1, 3), strict=True):
        prompt_ids = asked(tokenizer, turns[:i])
        assert ids[: len(prompt_ids)] == prompt_ids
        assert labels[: len(prompt_ids)] == [encoding.IGNORED] * len(prompt_ids)
        assert tokenizer.decode(learned(labels)) == turns[i]["content"] + tokenizer.eos_token


def test_old_thoughts_are_not_in_the_prompt_of_later_answers(original):
    tokenizer = with_template(original, "drops thoughts")
    turns = [user("One?"), assistant("<think>Hm.</think>First."), user("Two?"), assistant("Second.")]
    assert "Hm." not in tokenizer.decode(encoding.encode_conversation(ChatTemplate(tokenizer), turns)[1][0])


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ("Say {end} to stop.", "Say {end} to stop."),
        ("{end}{end} first", "{end}{end} first"),
        ("Done.{end}", "Done."),
        ("Done.{end}{end}", "Done."),
    ],
)
def test_the_end_tokens_text_in_an_answer_ends_nothing(tokenizer, content, shown):
    """Inside an answer it is text, spelt in other tokens; at its end it is the end token, once."""
    end = tokenizer.eos_token
    content, shown = content.format(end=end), shown.format(end=end)
    _, answer_ids, _ = encoding.encode_answer(ChatTemplate(tokenizer), [user("How?")], [assistant(content)])
    assert tokenizer.decode(answer_ids) == shown + end
    assert answer_ids.count(tokenizer.eos_token_id) == 1
    parts = encoding.encode_conversation(
        ChatTemplate(tokenizer), [user("How?"), assistant(content), user("And?"), assistant("Fine.")]
    )
    assert sum(learned(labels).count(tokenizer.eos_token_id) for _, labels in parts) == 2
    assert "".join(tokenizer.decode(learned(labels)) for _, labels in parts) == f"{shown}{end}Fine.{end}"


@pytest.mark.parametrize("name", ["builtin", "chatml", "drops thoughts"])
def test_a_newline_at_the_start_of_an_answer_is_the_answers(original, name):
    """Tokenized together with the prompt it would merge with the prompt's last newline."""
    tokenizer = with_template(original, name)
    prompt_ids, answer_ids, _ = encoding.encode_answer(ChatTemplate(tokenizer), [user("How?")], [assistant("\nSo.\n")])
    assert prompt_ids == asked(tokenizer, [user("How?")])
    assert tokenizer.decode(answer_ids) == "\nSo.\n" + tokenizer.eos_token


def test_an_empty_answer_is_the_end_token(tokenizer):
    _, answer_ids, _ = encoding.encode_answer(ChatTemplate(tokenizer), [user("How?")], [assistant("")])
    assert answer_ids == [tokenizer.eos_token_id]


@pytest.mark.parametrize("name", ["builtin", "chatml", "llama", "drops thoughts"])
def test_a_reply_of_several_turns_is_shown_in_full(original, name):
    """A pair may part before its last question: what comes between is shown, with its own end tokens."""
    tokenizer = with_template(original, name)
    reply = [assistant("Yes."), user("Why?"), assistant("Yes.")]
    prompt_ids, answer_ids, _ = encoding.encode_answer(ChatTemplate(tokenizer), [user("Is it?")], reply)
    whole = tokenizer.apply_chat_template([user("Is it?"), *reply], tokenize=False)
    assert prompt_ids == asked(tokenizer, [user("Is it?")])
    assert tokenizer.decode(prompt_ids + answer_ids) == whole.rstrip("\n")
    assert answer_ids.count(tokenizer.eos_token_id) == 3


def test_both_answers_of_a_pair_follow_the_same_prompt(tokenizer):
    prompt = [user("How?")]
    row = {"prompt": prompt, "chosen": [assistant("<think>a</think>b")], "rejected": [assistant("c" * 99)], "x": 1}
    (pair,) = encoding.encode_pairs(
        datasets.Dataset.from_list([row]), ChatTemplate(tokenizer), max_completion_length=20
    )
    assert pair.keys() == {"prompt_ids", "chosen_ids", "rejected_ids", "chosen_mask", "rejected_mask"}
    assert all(pair["chosen_mask"])
    assert pair["prompt_ids"] == asked(tokenizer, prompt)
    assert pair["chosen_ids"] == encoding.encode_answer(ChatTemplate(tokenizer), prompt, row["chosen"])[1]
    assert pair["rejected_ids"] == encoding.encode_answer(ChatTemplate(tokenizer), prompt, row["rejected"])[1][:20]
    assert tokenizer.eos_token_id not in pair["rejected_ids"]


def test_a_cut_conversation_gets_no_end_token(tokenizer):
    messages = [user("How?"), assistant("word " * 50)]
    ((whole_ids, whole_labels),) = encoding.encode_conversation(ChatTemplate(tokenizer), messages)
    rows = datasets.Dataset.from_list([{"messages": messages}])
    (row,) = encoding.encode_conversations(rows, ChatTemplate(tokenizer), max_length=len(whole_ids) - 10)
    assert row == {"input_ids": whole_ids[:-10], "labels": whole_labels[:-10]}
    assert tokenizer.eos_token_id not in learned(row["labels"])


def test_rows_left_with_nothing_to_learn_are_not_rows(original):
    rows = [{"messages": [user("w " * n), assistant("Fine.")]} for n in (1, 90)]
    encoded = encoding.encode_conversations(datasets.Dataset.from_list(rows), ChatTemplate(original), max_length=40)
    assert len(encoded) == 1
    assert len(encoding.encode_conversations(rows[1:], ChatTemplate(original), max_length=40)) == 0
    assert original.decode(learned(encoded[0]["labels"])) == "Fine.<|im_end|>"
