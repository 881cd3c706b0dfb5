"""Rows are checked by their structure: the same are left out, cut and counted as when each is rendered and tokenized."""

from __future__ import annotations

import copy
import json
import random
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from rlhf_core import builtin
from rlhf_core.data import checks
from rlhf_core.data.chat_template import ChatTemplate
from rlhf_core.data.checks import Checks
from rlhf_core.data.lengths import Limits
from rlhf_core.data.preparing import Preparation
from rlhf_core.errors import UserError

CHATML = """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + TEXT + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}OPENS{% endif %}"""
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('No system') }}{% endif %}"
# TEXT, OPENS, what is before
TEMPLATES = {
    "plain": ("m.content", "", ""),
    "trimmed": ("m.content|trim", "", ""),
    "thoughts left out": ("m.content.split('</think>')[-1]", "", ""),
    "thoughts opened": ("m.content.split('</think>')[-1]", "{{ '<think>\n' }}", ""),
    "no system": ("m.content", "", NO_SYSTEM),
    "a text refused": ("m.content", "", "{% if 'rash' in messages[0].content %}{{ raise_exception('No') }}{% endif %}"),
    "a text that adds": ("('x y z ' * 20 + m.content if m.content.startswith('rash') else m.content)", "", ""),
    "an end that adds": ("(m.content + ' x y z' * 20 if m.content.endswith('cough') else m.content)", "", ""),
    "letters counted": ("(m.content + ' x y z' * 20 if m.content|length is divisibleby(2) else m.content)", "", ""),
    "letters as tokens": ("m.content|list|join('\n')", "", ""),
}
WORDS = (
    "rash",
    "fever",
    "cough",
    "for three days",
    "高烧",
    "<think>",
    "</think>",
    "user",
    "\n",
    "<b>",
    "[1]",
    "[INST]",
    "<|im_end|>",
)


@pytest.fixture(scope="module")
def made():
    tokenizer = AutoTokenizer.from_pretrained(builtin.MODEL)

    def make(case: str) -> ChatTemplate:
        text, opens, before = TEMPLATES[case]
        one = copy.deepcopy(tokenizer)
        one.chat_template = before + CHATML.replace("TEXT", text).replace("OPENS", opens)
        return ChatTemplate(one)

    return make


def rows(need: str, count: int) -> list[dict]:
    rng = random.Random(0)

    def text(common: bool) -> str:
        if common:
            return " ".join(rng.choices(WORDS[:5], k=rng.randint(1, 30)))
        some = rng.choices(WORDS, k=rng.randint(1, 30))
        spaces = rng.choice(["", " ", "\n\n"])
        return rng.choice(["", "<think>\nso\n</think>\n\n"]) + spaces + " ".join(some) + spaces

    def row() -> dict:
        common = rng.random() < 0.7

        def turns(*roles: str) -> list[dict]:
            return [{"role": role, "content": text(common)} for role in roles]

        prompt = turns(*rng.choice([("user",), ("system", "user"), ("user", "assistant", "user")]))
        if need == "conversations":
            return {"messages": prompt + turns("assistant")}
        answers = {"chosen": turns("assistant"), "rejected": turns("assistant")} if need == "preferences" else {}
        return {"prompt": prompt, **answers}

    return [row() for _ in range(count)]


def outcome(check, row: dict) -> object:
    try:
        return check(row)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize(
    ("need", "rule"), [("prompts", "drop"), ("preferences", "truncate"), ("conversations", "truncate")]
)
@pytest.mark.parametrize("case", [case for case in TEMPLATES if case != "letters counted"])
def test_rows_of_a_structure_are_as_if_each_was_checked_in_full(made, monkeypatch, case, need, rule):
    monkeypatch.setattr(checks, "IN_FULL", 4)
    template = made(case)
    limits = {"max_prompt_length": 120, "max_completion_length": 100, "max_length": 200}
    options = SimpleNamespace(**limits, overlong_prompts=rule, overlong_completions=rule)
    both = [(Preparation(template, need, "Be brief."), Limits(need, options, template)) for _ in range(2)]
    quick, (prepare, limited) = Checks(*both[0]), both[1]
    in_full = []
    monkeypatch.setattr(quick, "_in_full", lambda *args, known=quick._in_full: in_full.append(1) or known(*args))
    some = rows(need, 100)
    for row in some:
        before = prepare.found.copy()
        expected = outcome(lambda given: limited(prepare(given)), row)
        if isinstance(expected, str):  # what is left out is counted as such, and nowhere else
            prepare.found = before
        assert outcome(quick, row) == expected
    assert quick.warnings() == [*prepare.warnings(100), *limited.warnings(100)]
    assert case not in ("plain", "trimmed", "no system") or len(in_full) < 90


def test_of_many_rows_of_a_structure_few_are_checked_in_full(made):
    template = made("plain")
    options = SimpleNamespace(max_prompt_length=60, overlong_prompts="drop")
    quick, in_full = Checks(Preparation(template, "prompts"), Limits("prompts", options, template)), []
    known = quick._in_full
    quick._in_full = lambda *args: in_full.append(1) or known(*args)
    for number in range(2500):
        quick({"prompt": [{"role": "user", "content": f"Is {number} even?"}]})
    assert len(in_full) == checks.IN_FULL + 2500 // checks.EVERY


def test_a_row_that_is_not_as_the_others_makes_the_rest_be_checked_in_full(made):
    """A template may do what nobody can tell from its texts; every thousandth row shows it."""
    template = made("letters counted")
    options = SimpleNamespace(max_prompt_length=600, overlong_prompts="drop")
    quick = Checks(Preparation(template, "prompts"), Limits("prompts", options, template))
    for number in range(checks.EVERY + 1):
        quick({"prompt": [{"role": "user", "content": "odd" + "." * (1 if number == checks.EVERY - 1 else 2)}]})
    assert [alike.differ for alike in quick._known.values()] == [True]


def test_a_warning_names_the_first_row(made):
    """Also of rows that another process read before."""
    template = made("plain")
    options = SimpleNamespace(max_prompt_length=600, overlong_prompts="drop")

    def checked(*texts: str) -> Checks:
        one = Checks(Preparation(template, "prompts"), Limits("prompts", options, template))
        for number, text in enumerate(texts, start=1):
            one({"prompt": [{"role": "user", "content": text}]}, f"{texts[0]} line {number}")
        return one

    later = checked("b", "<|im_end|>")
    for before, where in ((checked("a", "<|im_end|>"), "(the first: a line 2)"), (checked("a"), "(b line 2)")):
        before.add(json.loads(json.dumps(checked("b", "<|im_end|>").take())))
        [text] = before.warnings()
        assert text.endswith(f": <|im_end|> {where}")
    assert later.take()[0] == 2
    assert later.first == {}
