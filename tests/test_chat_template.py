"""One class renders messages for a run: the same prompt in training, evaluation, limits and the dry run."""

from __future__ import annotations

import copy
import datetime
from pathlib import Path

import pytest
from rlhf_method_grpo import GRPO
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from rlhf_core import builtin
from rlhf_core.data import chat_template
from rlhf_core.data.chat_template import ChatTemplate
from rlhf_core.data.files import Row
from rlhf_core.data.left_out import LeftOut
from rlhf_core.data.parts import Conversion
from rlhf_core.errors import UserError

CHATML = """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}BEGINS{% endif %}"""
SWITCH = CHATML.replace(
    "BEGINS", "{% if not enable_thinking|default(true) %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
DROPS_SYSTEM = "{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}"
ALTERNATES = """{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}"""
STRICT = """{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] or not m.content %}
{{- raise_exception('No such turn') }}{% endif %}{% endfor %}"""

ROWS = [{"prompt": "How?"}] * 12
VALUES: dict = {}
QUESTION = [{"role": "user", "content": "How?"}]
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture(scope="module")
def original():
    return AutoTokenizer.from_pretrained(builtin.MODEL)


@pytest.fixture
def made(original):
    def make(template: str, **kwargs) -> ChatTemplate:
        tokenizer = copy.copy(original)
        tokenizer.chat_template = template.replace("BEGINS", "")
        return ChatTemplate(tokenizer, kwargs)

    return make


def test_prompts_and_conversations_are_the_templates(original):
    template = ChatTemplate(original)
    for turns in (QUESTION, [SYSTEM, *QUESTION, {"role": "assistant", "content": "So."}]):
        for render, asks in ((template.prompt, True), (template.conversation, False)):
            assert render(turns) == original.apply_chat_template(turns, tokenize=False, add_generation_prompt=asks)
    ids = original.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    assert template.prompt_ids(QUESTION) == ids


def test_tokens_that_a_tokenizer_puts_around_a_text_are_the_templates_alone(original):
    """Llama's tokenizer begins every text with <s>, and its template writes one."""
    tokenizer = copy.deepcopy(original)
    around = TemplateProcessing(single="<|im_end|> $A", special_tokens=[("<|im_end|>", tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = around
    assert tokenizer("a")["input_ids"][0] == tokenizer.eos_token_id
    assert ChatTemplate(tokenizer).prompt_ids(QUESTION) == ChatTemplate(original).prompt_ids(QUESTION)


def test_which_tokens_are_special(original):
    """Pairs of tags mark up a text; <s> and </s> are no such pair. Of tokens that begin alike the longest is found."""
    tokenizer = copy.deepcopy(original)
    tokens = ["<s>", "<tool>", "</tool>", "[E]", "[E]]", "[E]]]", "<box>"]
    tokenizer.add_special_tokens({"eos_token": "</s>", "additional_special_tokens": tokens})
    template = ChatTemplate(tokenizer)
    assert template.special.findall("<s>a<tool>b</tool>[E]]][E]]<box></s>") == ["<s>", "[E]]]", "[E]]", "<box>", "</s>"]
    answer = template.ids("<tool>b</tool><box>c</s>")
    assert template.decode(answer) == "<tool>b</tool><box>c"
    tokenizer.eos_token = "of"  # a word of the vocabulary
    assert ChatTemplate(tokenizer).special.findall("of<box>") == ["of", "<box>"]


END_TOKENS = {
    "the template's": (STRICT + CHATML, "<|im_end|>"),
    "of an answer that is not shown": (CHATML.replace("in messages", "in messages if m.role == 'user'"), "<|endoftext|>"),
    "of an answer that is refused": ("{{ raise_exception('no') }}", "<|endoftext|>"),
    "none after an answer": ("<|im_end|>{% for m in messages %}{{ m.content }}{% endfor %}", "<|endoftext|>"),
}  # fmt: skip


@pytest.mark.parametrize("case", END_TOKENS)
def test_the_token_that_ends_an_answer(original, case):
    source, end = END_TOKENS[case]
    tokenizer = copy.deepcopy(original)
    tokenizer.chat_template, tokenizer.eos_token = source.replace("BEGINS", ""), "<|endoftext|>"
    assert ChatTemplate(tokenizer).end_token == end
    tokenizer.eos_token = None
    if end == "<|im_end|>":
        assert ChatTemplate(tokenizer).end_token == end
    else:
        with pytest.raises(UserError, match="no end token, and the chat template writes none after an answer"):
            assert not ChatTemplate(tokenizer).end_token


def test_a_prompt_that_is_asked_for_again_is_rendered_once(made, monkeypatch):
    """Limits, checks and encoding all ask for the prompt of a row; messages that were changed are other messages."""
    template, rendered = made(CHATML), []
    apply = template.tokenizer.apply_chat_template
    monkeypatch.setattr(template.tokenizer, "apply_chat_template", lambda *a, **k: rendered.append(1) or apply(*a, **k))
    turns = [{**QUESTION[0], "asked": datetime.date(2020, 1, 1)}]  # which JSON has no type for
    first = template.prompt_ids(turns)
    assert template.prompt_ids(turns) == first
    assert len(rendered) == 1
    first.append(0)  # a list of the caller's own
    assert template.prompt_ids(turns) == first[:-1]
    turns[0]["content"] = "Why?"
    assert "Why?" in template.prompt(turns)
    assert template.conversation(turns) != template.prompt(turns)


def test_an_answers_text_and_whether_it_ended(original):
    template = ChatTemplate(original)
    tokenizer = template.tokenizer
    ids = template.ids("Rest well.")
    end = tokenizer.convert_tokens_to_ids(template.end_token)
    assert template.decode([*ids, end]) == template.decode([*ids, tokenizer.eos_token_id]) == "Rest well."
    assert [template.finished(tokens) for tokens in ([*ids, end], [*ids, tokenizer.eos_token_id], ids, [])] == [
        True,
        True,
        False,
        False,
    ]


def test_variables_are_the_templates(made):
    assert made(SWITCH).prompt(QUESTION).endswith("assistant\n")
    assert made(SWITCH, enable_thinking=False).prompt(QUESTION).endswith("assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize("name", ["enable_thinkin", "tools", "tokenize", "thinking"])
def test_variables_that_the_template_has_not_are_refused(made, name):
    with pytest.raises(UserError, match=f"the chat template has no variable '{name}'"):
        made(SWITCH, **{name: True})


@pytest.mark.parametrize(
    ("begins", "opening"),
    [
        ("", ""),
        ("{{ '<think>\n' }}", "<think>\n"),
        ("<think>", "<think>"),
        ("{{ '[THINK]' }}", "[THINK]"),
        ("{{ '<seed:think>Hm' }}", "<seed:think>Hm"),
        ("{{ '<think>\n\n</think>\n\n' }}", ""),
    ],
)
def test_what_the_prompt_opens_of_the_answer(made, begins, opening):
    template = made(CHATML.replace("BEGINS", begins))
    assert template.opening(QUESTION) == opening
    assert template.opening([{"role": "user", "content": "What is <think>?"}]) == opening


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS_SYSTEM], ids=["refused", "dropped"])
def test_without_a_place_for_a_system_message_it_goes_before_the_question(made, template):
    whole = "<|im_start|>user\nBe brief.\n\nHow?<|im_end|>\n"
    assert made(template + CHATML).conversation([SYSTEM, *QUESTION]) == whole
    assert not made(template + CHATML).has_system
    assert made(CHATML).has_system
    assert made(STRICT + CHATML).has_system


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (ALTERNATES + CHATML, "refuses these messages (user, user): Conversation roles must alternate"),
        ("{% for m in messages %}\n{{ m.content }}", "is not valid Jinja: .* in line 2"),
        ("{{ messages[0].name + 'x' }}", "refuses these messages .user, user.: .*has no attribute 'name'"),
        ("{{ messages[0].content + 1 }}", "refuses these messages .user, user.: can only concatenate"),
    ],
)
def test_what_a_template_refuses_is_one_message(made, template, message):
    with pytest.raises(UserError, match=message.replace("(user, user)", ".user, user.")):
        made(template).prompt([*QUESTION, *QUESTION])


LOOPS = "{% for a in range(9999) %}" * 3 + "{% endfor %}" * 3


@pytest.mark.parametrize(
    ("template", "message"),
    {
        "": "shows nothing of what a user says: it renders ''",
        "{{ 'Always the same' }}": "it renders 'Always the same'",
        STRICT + "Nothing": "it renders 'Nothing'",
        "{% if add_generation_prompt %}Go: {% else %}{{ messages[0].content }}{% endif %}": "it renders 'Go: '",
        "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}": "it renders ''",
        LOOPS: "the chat template took over 0.2 seconds",
        "{{ messages[0].content }}{{ 'x' * 2000000 }}": "makes 2,000,001 characters of 1 messages",
        "{% if %}": "is not valid Jinja: .*, in line 1",
        r"{{ messages[0].content }}{{ '\ud800' }}": "writes half of a character",
    }.items(),
    ids=lambda text: text[:20],
)  # fmt: skip
def test_a_template_that_can_not_be_used_is_refused_before_any_row(made, monkeypatch, template, message):
    if template == LOOPS:
        monkeypatch.setattr(chat_template, "SECONDS", 0.2)
    with pytest.raises(UserError, match=message):
        made(template).check()


@pytest.mark.parametrize(
    ("expression", "message"),
    {
        "cycler.__init__.__globals__.os.popen('touch PWNED')": "is unsafe",
        "1 // 0": "division",
        "nothing.at.all": "undefined",
        "raise_exception('no')": "refuses these messages .user.: no",
        "'x' * (10 ** 19)": "refuses these messages",
        "again()": "nested too deeply",
    }.items(),
    ids=lambda text: str(text)[:20],
)  # fmt: skip
def test_whatever_an_expression_raises_is_one_message(made, expression, message):
    template = made("{% macro again() %}{{ again() }}{% endmacro %}{{ messages[0].content }}{{ " + expression + " }}")
    template.check()  # only the rows can tell whether it refuses all of them
    with pytest.raises(UserError, match=message):
        template.prompt(QUESTION)
    assert not Path("PWNED").exists()


def test_a_row_on_which_a_template_takes_too_long_ends_the_reading(made, monkeypatch):
    monkeypatch.setattr(chat_template, "SECONDS", 0.2)
    template = made("{{ messages[0].content }}{% if messages[0].content == 'How?' %}" + LOOPS + "{% endif %}")
    template.check()
    conversion = Conversion(None, "prompts", LeftOut("d.jsonl"))
    with pytest.raises(UserError, match="^d.jsonl line 3: the chat template took over 0.2 seconds$"):
        conversion.prepare(
            [Row("d.jsonl line 3", {})] * 2, [{"prompt": QUESTION}] * 2, lambda row, _: template.prompt(row["prompt"])
        )


def test_templates_with_a_need_of_their_own_are_taken(made):
    for source in (ALTERNATES + CHATML, NO_SYSTEM + CHATML, SWITCH, "{{ raise_exception('needs a system') }}"):
        made(source).check()
    long = [{"role": "user", "content": "x" * 3_000_000, "asked": datetime.date(2020, 1, 1)}]
    assert len(made(CHATML).prompt(long)) > 3_000_000


READS = """{% for m in messages %}{{ m.content + '|' + (m.thinking or '') + '|' + (m.reasoning_content or '') }}
{%- for call in m.tool_calls or [] %}{{ '|' + (call.function or call).arguments|tojson }}{% endfor %}{% endfor %}"""
# the keys of a turn, what a template finds in it
TURNS = {
    "no content": ({}, "||"),
    "the content None": ({"content": None}, "||"),
    "a thought": ({"content": "a", "reasoning_content": "t"}, "a|t|t"),
    "a thought of another name": ({"content": "a", "reasoning": "t"}, "a|t|t"),
    "a thought of a third name": ({"content": "a", "thinking": "t", "reasoning_content": None}, "a|t|t"),
    "two thoughts": ({"content": "a", "thinking": "t", "reasoning_content": "u"}, "a|t|u"),
    "no thought": ({"content": "a", "thinking": ""}, "a||"),
    "arguments": ({"tool_calls": [{"function": {"arguments": {"b": 1}}}]}, '|||{"b": 1}'),
    "arguments as JSON": ({"tool_calls": [{"function": {"arguments": '{"b": 1}'}}]}, '|||{"b": 1}'),
    "arguments that are none": ({"tool_calls": [{"arguments": "b"}]}, '|||"b"'),
    "a call without arguments": ({"tool_calls": [{"function": {"name": "b"}}]}, "|||{}"),
    "the arguments None": ({"tool_calls": [{"name": "b", "arguments": None}]}, "|||{}"),
}


@pytest.mark.parametrize("case", TURNS)
def test_what_a_template_reads_of_a_turn(made, case):
    turn, shown = TURNS[case]
    assert made(READS).conversation([{"role": "assistant", **turn}]) == shown


def test_nothing_else_renders():
    root = Path(__file__).parent.parent
    sources = [
        file for folder in ("rlhf_core", "plugins", "reward_functions") for file in (root / folder).rglob("*.py")
    ]
    rendering = [f.name for f in sources if "tests" not in f.parts and ".apply_chat_template(" in f.read_text("utf-8")]
    assert rendering == ["chat_template.py"]


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_training_and_evaluation_sample_from_the_same_prompt(go, method, tmp_path, monkeypatch):
    """With the run's variables, which TRL would be given too; `rollout` is given what the template makes of them."""
    from rlhf_method_grpo import trainer as grpo
    from rlhf_method_ppo import trainer as ppo

    from rlhf_core.training import answering

    asked: dict[str, set[str]] = {}
    for module in (grpo, ppo, answering):

        def spy(model, prompts, *arguments, real=module.rollout, name=module.__name__):
            asked.setdefault(name, set()).update(map(tuple, prompts))
            return real(model, prompts, *arguments)

        monkeypatch.setattr(module, "rollout", spy)
    file = tmp_path / "switch.jinja"
    file.write_text(SWITCH.replace("BEGINS", ""))
    values = {"max_steps": 1, "num_eval_prompts": 1, "max_completion_length": 4, "seed": 1}
    code, folder = go(
        method=method, chat_template=str(file), chat_template_kwargs='{"enable_thinking": false}', reward=["length"],
        **values,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    wanted = tuple(
        tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, enable_thinking=False)["input_ids"]
    )
    assert (code, len(asked)) == (0, 2)
    assert all(prompts == {wanted} for prompts in asked.values())
    assert tokenizer.decode(wanted).endswith("</think>\n\n")


def test_the_prompts_of_grpo_are_trls(made_run):
    from trl import GRPOTrainer

    run = made_run(method="grpo", reward=["length"], max_completion_length=4)
    trainer = GRPO().trainer(run)
    turns = [QUESTION, [SYSTEM, *QUESTION]]
    trainer.shown_tools = [None, None]
    assert trainer._tokenize_prompts(turns) == GRPOTrainer._tokenize_prompts(trainer, turns)


def test_rollouts_are_shown_the_tools_of_their_row(go, write_jsonl, tmp_path, monkeypatch):
    from rlhf_method_grpo import trainer as grpo

    from rlhf_core.training import answering

    asked: dict[str, set[str]] = {}
    for module in (grpo, answering):

        def spy(model, prompts, *arguments, real=module.rollout, name=module.__name__):
            asked.setdefault(name, set()).update(tokenizer.decode(ids) for ids in prompts)
            return real(model, prompts, *arguments)

        monkeypatch.setattr(module, "rollout", spy)
    tokenizer = AutoTokenizer.from_pretrained(builtin.MODEL)
    file = tmp_path / "tools.jinja"
    file.write_text("{% if tools %}{{ tools[0].name }}{% endif %}" + SWITCH.replace("BEGINS", ""))
    rows = [{"prompt": "How?", "tools": [{"name": f"tool {i % 2}"}]} for i in range(12)]
    values = {"max_steps": 1, "num_eval_prompts": 1, "max_completion_length": 4, "per_device_train_batch_size": 8}
    code, _ = go(
        method="grpo", data=write_jsonl("tools.jsonl", rows), chat_template=str(file), reward=["length"],
        num_generations=2, **values,
    )  # fmt: skip
    assert code == 0
    assert asked["rlhf_method_grpo.trainer"] == {
        f"tool {i}<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\n" for i in (0, 1)
    }
    assert asked["rlhf_core.training.answering"] < asked["rlhf_method_grpo.trainer"]
