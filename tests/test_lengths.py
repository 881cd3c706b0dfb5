"""Rows that are too long, or that have nothing to learn from: found and counted before training."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from rlhf_core import builtin
from rlhf_core.data import encoding, lengths
from rlhf_core.data.chat_template import ChatTemplate
from rlhf_core.data.left_out import Unusable


@pytest.fixture(scope="module")
def template():
    return ChatTemplate(AutoTokenizer.from_pretrained(builtin.MODEL))


def pair(chosen: str, rejected: str, prompt: str = "How?") -> dict:
    turns = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    return {"prompt": [{"role": "user", "content": prompt}], "chosen": turns[0], "rejected": turns[1]}


def conversation(*texts: str) -> dict:
    roles = ("user", "assistant") * len(texts)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]}


LONG = "word " * 100
SHORT_PAIR = pair("Rest.", "Run.")
SHORT = conversation("How?", "Rest.")


def limits(template, need: str, limit: int, rule: str) -> lengths.Limits:
    """All limits are `limit`, whatever is longer is dealt with by `rule`."""
    names = ("max_length", "max_prompt_length", "max_completion_length")
    rules = {"overlong_prompts": rule, "overlong_completions": rule}
    return lengths.Limits(need, SimpleNamespace(**dict.fromkeys(names, limit), **rules), template)


def left_out(made: lengths.Limits, row: dict) -> Unusable:
    with pytest.raises(Unusable) as raised:
        made(row)
    return raised.value


@pytest.mark.parametrize("rule", ["error", "drop", "truncate"])
def test_what_fits_stays_as_it_is(template, rule):
    for limit in (40, 1000):  # by its tokens, or by its bytes
        for need, row in (("preferences", SHORT_PAIR), ("conversations", SHORT)):
            made = limits(template, need, limit, rule)
            assert made(row) is row
            assert made.warnings(1) == []


def test_a_pair_without_a_difference_has_nothing_to_learn(template):
    error = left_out(limits(template, "preferences", 50, "error"), pair("a", "a"))
    assert (str(error), error.kind) == ("the two answers are the same", "nothing to learn")


# need, row, what is too long, the limit and the rule
OVERLONG = {
    "prompt": ("prompts", {"prompt": pair("", "", LONG)["prompt"]}, "the prompt has", *lengths.PROMPTS),
    "prompt of a pair": ("preferences", pair("a", "b", LONG), "the prompt has", *lengths.PROMPTS),
    "chosen": ("preferences", pair(LONG, "Run."), "an answer has", *lengths.ANSWERS),
    "rejected": ("preferences", pair("Rest.", LONG), "an answer has", *lengths.ANSWERS),
    "conversation": ("conversations", conversation("How?", LONG), "the conversation has", *lengths.CONVERSATIONS),
}


def tokens(template, need: str, row: dict, what: str) -> int:
    if need == "conversations":
        return len(encoding.encode_conversation(template, row["messages"])[0][0])
    if what == "the prompt has":
        return len(template.prompt_ids(row["prompt"]))
    encoded = encoding.encode_pair(row, template)
    return max(len(encoded["chosen_ids"]), len(encoded["rejected_ids"]))


@pytest.mark.parametrize("case", OVERLONG)
def test_what_is_too_long_is_left_out_refused_or_cut(template, case):
    need, row, what, limit, rule = OVERLONG[case]
    said, found = f"{what} more than {limit} 50 tokens", tokens(template, need, row, what)
    error = left_out(limits(template, need, 50, "drop"), row)
    assert (str(error), error.tokens, error.kind, error.refused) == (said, found, "too long", False)
    assert error.hint == f"Allow more ({limit}), or cut: {rule} truncate"
    error = left_out(limits(template, need, 50, "error"), row)
    assert (error.refused, error.hint) == (True, f"Allow more ({limit}), or cut: {rule} truncate (or drop)")
    made = limits(template, need, 50, "truncate")
    made(row)
    no_end = "; no learned token ends these turns, so the model does not learn to stop there"
    cut = "cut" if what == "the prompt has" else f"cut{no_end}"
    assert made.warnings(9) == [f"1 of 9 rows: {said}, the longest {found}: {cut}"]
    assert limits(template, need, found, "error")(row) is row  # it may fill the limit
    left_out(limits(template, need, found - 1, "error"), row)


def test_pairs_that_are_the_same_once_cut_have_nothing_to_learn(template):
    error = left_out(limits(template, "preferences", 50, "truncate"), pair(LONG + "a", LONG + "b"))
    assert (str(error), error.kind) == ("the two answers are the same once cut", "nothing to learn")


def test_conversations_whose_answers_are_all_cut_off_have_nothing_to_learn(template):
    made = limits(template, "conversations", 60, "truncate")
    error = left_out(made, conversation(LONG, "Rest."))
    assert (str(error), error.kind) == ("its first answer begins after --max-length 60 tokens", "nothing to learn")
    part = conversation("How?", "Rest.", LONG, "Fine.")
    assert made(part) is part
    assert made.warnings(2)[0].startswith("2 of 2 rows: the conversation has more than --max-length 60 tokens")


def test_a_system_message_of_the_template_counts(template):
    wordy = with_template(template, "{{ 'be kind ' * 300 }}" + template.source)
    assert left_out(limits(wordy, "conversations", 500, "drop"), SHORT).kind == "too long"


def test_a_call_of_a_tool_may_be_written_in_more_tokens_than_it_has_bytes(template):
    source = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}
{%- for call in m.tool_calls or [] %}{{ call|tojson(indent=8) }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"""
    indented = with_template(template, source)
    call = {"name": "sum", "arguments": {"numbers": [1] * 50}}
    row = {"messages": [*SHORT["messages"][:1], {"role": "assistant", "content": "", "tool_calls": [call]}]}
    [(ids, _)] = encoding.encode_conversation(indented, row["messages"])
    assert len(ids) - 1 > len(json.dumps(row)) + 4 * 64
    assert left_out(limits(indented, "conversations", len(ids) - 1, "drop"), row).tokens == len(ids)


def with_template(template, source: str) -> ChatTemplate:
    tokenizer = copy.deepcopy(template.tokenizer)
    tokenizer.chat_template = source
    return ChatTemplate(tokenizer)


WRITTEN = """{% for m in messages %}{% if m.role not in ('user', 'assistant') %}{{ raise_exception('A role') }}{% endif %}
{{- '12345' * 10 + m.content + '<|im_end|>' }}{% endfor %}"""
# a template, the row's tools
ADDED = {
    "60 tokens to each turn": (WRITTEN, None),
    "tools": ("{{ tools }}" + WRITTEN, [{"name": "x 1" * 100}]),
}


@pytest.mark.parametrize("case", ADDED)
def test_what_a_template_adds_counts(template, case):
    source, tools = ADDED[case]
    made, row = with_template(template, source), {**SHORT, "tools": tools}
    [(ids, _)] = encoding.encode_conversation(made, SHORT["messages"], tools)
    assert limits(made, "conversations", len(ids), "error")(row) is row
    assert left_out(limits(made, "conversations", len(ids) - 1, "error"), row).tokens == len(ids)
