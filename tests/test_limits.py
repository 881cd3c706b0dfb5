"""Answers are as long as a model that thinks needs, unless the user says otherwise, and the data's own answers tell when
that is too short.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rlhf_core import builtin
from rlhf_core.catalog import Catalog
from rlhf_core.config import resolve
from rlhf_core.data.chat_template import ChatTemplate
from rlhf_core.data.template_checks import thinks
from rlhf_core.estimate import planning
from rlhf_core.estimate.shapes import thinks_by_name
from rlhf_core.training import limits
from rlhf_core.training.plan import summary

CHATML = """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}BEGINS{% endif %}"""
EMPTY = "{{ '<think>\n\n</think>\n\n' }}"
TEMPLATES = {
    "none": CHATML.replace("BEGINS", ""),
    "on unless switched off": CHATML.replace(
        "BEGINS", "{% if not enable_thinking|default(true) %}" + EMPTY + "{% endif %}"
    ),
    "off unless switched on": CHATML.replace("BEGINS", "{% if enable_thinking is not true %}" + EMPTY + "{% endif %}"),
    "opened": CHATML.replace("BEGINS", "{{ '<think>\n' }}"),
    "opened if switched on": CHATML.replace("BEGINS", "{{ '<think>' if thinking else '</think>' }}"),
    "taken from earlier answers": CHATML.replace("m.content", "m.content.split('</think>')[-1]").replace("BEGINS", ""),
    "a key of messages": CHATML.replace("m.content", "(m.thinking or '') + m.content").replace("BEGINS", ""),
    "by effort": "{{ 'Reasoning: ' + reasoning_effort|default('medium') }}" + CHATML.replace("BEGINS", ""),
}
ROWS = [{"prompt": f"How {i}?", "answer": "yes " * 10} for i in range(12)]
VALUES = {"reward": ["length"]}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(builtin.MODEL)


@pytest.mark.parametrize(
    ("name", "kwargs", "answer"),
    [
        ("none", {}, False),
        ("on unless switched off", {}, True),
        ("on unless switched off", {"enable_thinking": True}, True),
        ("on unless switched off", {"enable_thinking": False}, False),
        ("off unless switched on", {}, False),
        ("off unless switched on", {"enable_thinking": True}, True),
        ("opened", {}, True),
        ("opened if switched on", {}, False),
        ("opened if switched on", {"thinking": True}, True),
        ("taken from earlier answers", {}, True),
        ("a key of messages", {}, False),
        ("by effort", {}, True),
        ("by effort", {"reasoning_effort": "none"}, False),
    ],
)
def test_whether_a_model_thinks_is_in_its_template(tokenizer, name, kwargs, answer):
    own = copy.copy(tokenizer)
    own.chat_template = TEMPLATES[name]
    assert thinks(ChatTemplate(own, kwargs)) is answer


@pytest.mark.parametrize(
    ("values", "length"),
    [
        ({"method": "grpo"}, 1948),  # of the 2,048 tokens that the model reads
        ({"method": "ppo"}, 1948),
        ({"method": "grpo", "max_completion_length": 512}, 512),
        ({"method": "ppo", "max_completion_length": 3000}, 3000),
        ({"method": "grpo", "chat_template_kwargs": '{"enable_thinking": false}'}, 512),
        ({"method": "grpo", "max_prompt_length": 1800}, 512),
    ],
)
def test_answers_have_room_for_thoughts_unless_the_user_says_otherwise(made_run, values, length):
    Path("t.jinja").write_text(TEMPLATES["on unless switched off"])
    plan = made_run(**{"max_prompt_length": 100, **values}, chat_template="t.jinja").plan
    assert plan.config.options.max_completion_length == length
    shown = [text for label, text in summary(plan, None, Catalog()) if label == "Options" and "thinks" in text]
    text = f"because the model thinks before it answers: max_completion_length {length}"
    assert shown == ([text] if length == 1948 else [])


def test_a_name_tells_whether_a_usual_model_thinks():
    names = ("Qwen/Qwen3-8B", "Qwen/Qwen3-4B-Instruct-2507", "Qwen/Qwen3-4B-Thinking-2507", "Qwen/Qwen2.5-7B-Instruct")
    assert [thinks_by_name(name) for name in names] == [True, False, True, False]


@pytest.mark.parametrize(
    ("model", "more", "length"),
    [
        ("qwen3-0.6b", {}, 2048),
        ("qwen3-0.6b", {"chat_template_kwargs": {"enable_thinking": False}}, 512),
        ("qwen3-0.6b", {"max_completion_length": 512}, 512),
        ("smollm2-135m", {}, 512),
    ],
)
def test_an_estimate_by_name_has_the_length_of_the_run(tmp_path, model, more, length):
    config, method = resolve({"method": "grpo", "reward": ["length"], "model": model, **more}, Catalog())
    assert planning.plan(config, method, Catalog(), tmp_path).longest.completion == length


def test_answers_of_the_data_that_are_longer_than_the_limit_are_said(made_run, tokenizer):
    tokens = len(tokenizer("yes " * 10)["input_ids"]) + 1
    warnings = [made_run(method="grpo", max_completion_length=n).plan.data.warnings for n in (tokens - 1, tokens)]
    found = [[text for text in texts if "the data's own answers" in text] for texts in warnings]
    assert found[1] == []
    assert found[0] == [
        f"100 % of the data's own answers are longer than --max-completion-length {tokens - 1}, the longest has {tokens} "
        "tokens (of 12 looked at): such answers are cut before they end. 64 would do"
    ]


def test_of_many_rows_some_are_looked_at_and_a_few_long_ones_are_not_said(tokenizer):
    class Rows(list):
        looked_at = 0

        def __getitem__(self, index):
            Rows.looked_at += 1
            return super().__getitem__(index)

    _, method = resolve({"method": "grpo", "reward": ["length"]}, Catalog())
    options, template = method.Options(max_completion_length=16), ChatTemplate(tokenizer)
    rows = Rows([{"answer": "yes " * 40 if i % 100 < 2 else "yes"} for i in range(100_000)])
    assert limits.short_for_references(method, options, template, rows) == []
    assert Rows.looked_at == limits.LOOKED_AT
    rows = Rows([{"answer": "yes " * 40 if i % 100 < 30 else None} for i in range(1000)])
    assert "100 % of" in limits.short_for_references(method, options, template, rows)[0]
    assert limits.short_for_references(method, options, template, Rows([{"prompt": "How?"}])) == []
