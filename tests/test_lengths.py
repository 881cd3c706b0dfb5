"""Rows that are too long, or that have nothing to learn from: found and counted before training."""

from __future__ import annotations

import copy
import json

import pytest
from transformers import AutoTokenizer

from rlhf_core import builtin
from rlhf_core.data import encoding, lengths
from rlhf_core.data.chat_template import ChatTemplate
from rlhf_core.errors import UserError


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


def test_pairs_without_difference_are_left_out_and_counted():
    assert lengths.drop_pairs_without_difference([SHORT_PAIR]) == ([SHORT_PAIR], [])
    left, warnings = lengths.drop_pairs_without_difference([pair("a", "a"), SHORT_PAIR, pair("b", "b")])
    assert left == [SHORT_PAIR]
    assert warnings == ["left out 2 of 3 pairs, whose two answers are the same"]
    with pytest.raises(UserError, match="in every pair"):
        lengths.drop_pairs_without_difference([pair("a", "a")])


class Limits:
    max_length = max_prompt_length = max_completion_length = 50
    overlong_prompts, overlong_completions = "error", "error"


@pytest.mark.parametrize("bad", [pair("a", "a"), pair(LONG, "x"), pair("a", "b", LONG)])
def test_held_out_rows_that_can_not_be_used_are_left_out_and_counted(template, bad):
    left, warnings = lengths.limit_held_out([bad, SHORT_PAIR, bad], "preferences", Limits, template)
    assert left == [SHORT_PAIR]
    assert warnings[0].startswith("left out 2 of 3 held-out rows, which can't be used; the first: ")
    assert lengths.limit_held_out([bad], "preferences", Limits, template)[0] == []
    with pytest.raises(UserError):
        lengths.apply_limits([bad], "preferences", Limits, template)


@pytest.mark.parametrize("rule", ["error", "drop", "truncate"])
def test_what_fits_stays_as_it_is(template, rule):
    for limit in (40, 1000):  # by its tokens, or by its bytes
        assert lengths.limit_answers([SHORT_PAIR], template, limit, rule) == ([SHORT_PAIR], [])
        assert lengths.limit_conversations([SHORT], template, limit, rule) == ([SHORT], [])


def test_what_each_limit_says_is_told(template):
    class Options(Limits):
        overlong_prompts, overlong_completions = "truncate", "truncate"

    rows = [pair("a", "a"), pair("a", "b", LONG), pair(LONG, "x")]
    left, warnings = lengths.apply_limits(rows, "preferences", Options, template)
    assert len(left) == 2
    assert [text.partition(",")[0].partition(" have ")[0] for text in warnings] == [
        "1 of 3 prompts",
        "left out 1 of 3 pairs",
        "1 of 2 pairs",
    ]


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_overlong_answers(template, side):
    long = pair(LONG, "Run.") if side == "chosen" else pair("Rest.", LONG)
    rows = [SHORT_PAIR, long, SHORT_PAIR]
    tokens = len(encoding.encode_answer(template, long["prompt"], long[side])[1])
    said = f"1 of 3 pairs have an answer of more than --max-completion-length 50 tokens, the longest {tokens}"
    with pytest.raises(UserError, match=rf"{said}. Allow more, or use --overlong-completions truncate \(or drop\)"):
        lengths.limit_answers(rows, template, 50, "error")
    assert lengths.limit_answers(rows, template, 50, "drop") == ([SHORT_PAIR] * 2, [f"{said}: left out"])
    assert lengths.limit_answers(rows, template, 50, "truncate") == (rows, [f"{said}: cut"])


def test_an_answer_and_its_end_token_may_fill_the_limit(template):
    row = pair(LONG, "Run.")
    tokens = len(encoding.encode_answer(template, row["prompt"], row["chosen"])[1])
    assert lengths.limit_answers([row], template, tokens, "error") == ([row], [])
    with pytest.raises(UserError, match=f"the longest {tokens}"):
        lengths.limit_answers([row], template, tokens - 1, "error")


def test_pairs_that_are_the_same_once_cut_are_left_out(template):
    same = pair(LONG + "a", LONG + "b")
    left, warnings = lengths.limit_answers([SHORT_PAIR, same], template, 50, "truncate")
    assert left == [SHORT_PAIR]
    assert warnings[0].startswith("1 of 2 pairs have an answer of more than")
    assert warnings[1] == "left out 1 of 2 pairs, whose two answers are the same once cut"
    with pytest.raises(UserError, match="nothing to learn is left of 1 pairs"):
        lengths.limit_answers([same], template, 50, "truncate")


def test_nothing_left_is_an_error_that_says_what_to_do(template):
    with pytest.raises(UserError, match=r"2 of 2 pairs.*use --overlong-completions truncate\.$"):
        lengths.limit_answers([pair(LONG, "x")] * 2, template, 50, "drop")
    rows = [pair(LONG, "x")] * 2
    assert lengths.limit_answers(rows, template, 50, "truncate")[0] == rows


def test_overlong_conversations(template):
    long = conversation("How?", LONG)
    rows = [SHORT, long]
    tokens = len(encoding.encode_conversation(template, long["messages"])[0][0])
    said = f"1 of 2 conversations have more than --max-length 60 tokens, the longest {tokens}"
    with pytest.raises(UserError, match=rf"{said}\. Allow more, or use --overlong-completions truncate"):
        lengths.limit_conversations(rows, template, 60, "error")
    assert lengths.limit_conversations(rows, template, 60, "drop") == ([SHORT], [f"{said}: left out"])
    assert lengths.limit_conversations(rows, template, 60, "truncate") == (rows, [f"{said}: cut"])
    assert lengths.limit_conversations(rows, template, tokens, "error") == (rows, [])


def test_conversations_whose_answers_are_all_cut_off_are_left_out(template):
    nothing, part = conversation(LONG, "Rest."), conversation("How?", "Rest.", LONG, "Fine.")
    left, warnings = lengths.limit_conversations([nothing, part, SHORT], template, 60, "truncate")
    assert left == [part, SHORT]
    assert warnings[0].startswith("2 of 3 conversations have more than")
    assert warnings[1] == "left out 1 of 3 conversations, whose first answer begins after that"
    with pytest.raises(UserError, match="nothing to learn is left of 2 conversations.*Allow a larger --max-length"):
        lengths.limit_conversations([nothing, nothing], template, 60, "truncate")


def test_a_system_message_of_the_template_counts(template):
    wordy = with_template(template, "{{ 'be kind ' * 300 }}" + template.source)
    with pytest.raises(UserError, match="1 of 1 conversations have more than --max-length 500 tokens"):
        lengths.limit_conversations([SHORT], wordy, 500, "error")


def test_a_call_of_a_tool_may_be_written_in_more_tokens_than_it_has_bytes(template):
    source = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}
{%- for call in m.tool_calls or [] %}{{ call|tojson(indent=8) }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"""
    indented = with_template(template, source)
    call = {"name": "sum", "arguments": {"numbers": [1] * 50}}
    row = {"messages": [*SHORT["messages"][:1], {"role": "assistant", "content": "", "tool_calls": [call]}]}
    [(ids, _)] = encoding.encode_conversation(indented, row["messages"])
    assert len(ids) - 1 > len(json.dumps(row)) + 4 * 64
    with pytest.raises(UserError, match=f"the longest {len(ids):,}"):
        lengths.limit_conversations([row], indented, len(ids) - 1, "error")


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
    assert lengths.limit_conversations([row], made, len(ids), "error") == ([row], [])
    with pytest.raises(UserError, match=f"the longest {len(ids)}"):
        lengths.limit_conversations([row], made, len(ids) - 1, "error")
