"""Rows before a run: what a chat template refuses, leaves out or takes for its own tokens is found with the row."""

from __future__ import annotations

import copy
import re

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from rlhf_core import builtin
from rlhf_core.catalog import Catalog
from rlhf_core.data import loading
from rlhf_core.data.chat_template import ChatTemplate
from rlhf_core.data.preparing import Preparation
from rlhf_core.data.template_checks import own_text
from rlhf_core.errors import UserError
from rlhf_core.grammar import DataSpec

CHATML = """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}BEGINS{% endif %}"""
TOOLS = "{% if tools %}{{ tools|tojson }}{% endif %}" + CHATML.replace(
    "+ '<|im_end|>", "+ (m.tool_calls|tojson if m.tool_calls else '') + '<|im_end|>"
)
ALTERNATES = """{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Roles must alternate') }}{% endif %}{% endfor %}"""


@pytest.fixture(scope="module")
def original():
    return AutoTokenizer.from_pretrained(builtin.MODEL)


@pytest.fixture
def made(original):
    def make(source: str = CHATML, begins: str = "", escape: bool = False) -> ChatTemplate:
        tokenizer = copy.copy(original)
        tokenizer.chat_template = source.replace("BEGINS", begins)
        return ChatTemplate(tokenizer, escape=escape)

    return make


def user(text: str, **more) -> dict:
    return {"role": "user", "content": text, **more}


def assistant(text: str, **more) -> dict:
    return {"role": "assistant", "content": text, **more}


def prepare_for(template: ChatTemplate, *arguments, need: str | None = None, **values):
    """A preparation that finds what a row is for from its columns."""
    made = {
        kind: Preparation(template, kind, *arguments, **values) for kind in ("conversations", "preferences", "prompts")
    }

    def prepare(row: dict, location: str = "") -> dict:
        kind = "conversations" if "messages" in row else "preferences" if "chosen" in row else "prompts"
        return made[need or kind](row)

    prepare.warnings = lambda rows: [text for one in made.values() for text in one.warnings(rows)]
    return prepare


SCHEMA = [{"type": "function", "function": {"name": "weather"}}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
CALLED = [user("Oslo?"), assistant("", tool_calls=[CALL]), {"role": "tool", "content": "4"}, assistant("It is 4.")]


@pytest.mark.parametrize(
    ("row", "source", "message"),
    [
        (
            {"messages": [user("a"), user("b"), assistant("c")]},
            ALTERNATES + CHATML,
            r"\(user, user, assistant\): Roles",
        ),
        ({"prompt": [user("a"), user("b")]}, ALTERNATES + CHATML, r"refuses these messages \(user, user\): Roles"),
        ({"prompt": [user("a")], "tools": SCHEMA}, CHATML, "shows no tools"),
        ({"messages": [user("a"), assistant("b")], "tools": SCHEMA}, CHATML, "shows no tools"),
        ({"messages": CALLED}, CHATML, "shows no calls of tools"),
        (
            {"messages": CALLED},
            TOOLS.replace("for m in messages", "for m in messages if m.role != 'tool'"),
            "does not show what a tool answered",
        ),
        (
            {"messages": [user("a"), assistant("I look.", tool_calls=[CALL])]},
            "{% for m in messages %}{{ m.tool_calls|tojson if m.tool_calls else m.content }}{% endfor %}",
            "does not show the text beside a call",
        ),
        (
            {"messages": [user("a"), assistant("", tool_calls=[CALL, CALL])]},
            "{% for m in messages %}{{ m.tool_calls[0]|tojson if m.tool_calls else m.content }}{% endfor %}",
            "does not show every call",
        ),
        (
            {"messages": [user("a"), assistant("b")]},
            "{% if add_generation_prompt %}Go: {% else %}" + CHATML.replace("BEGINS", "") + "{% endif %}",
            "shows these messages otherwise once they are answered",
        ),
        (
            {"messages": [user("a"), assistant("b"), {"role": "system", "content": "S."}, user("c"), assistant("d")]},
            CHATML.replace("in messages", "in messages if m.role != 'system'"),
            "does not show a system message after the first turn",
        ),
        (
            {"prompt": CALLED[:-1]},
            TOOLS.replace("for m in messages", "for m in messages if m.role != 'tool'"),
            "tool answ",
        ),
        ({"messages": [user("a"), assistant("b", weight=0.5)]}, CHATML, "the weight of a turn is 0.* or 1"),
        ({"messages": [user("a"), assistant("b", weight=0)]}, CHATML, "no turn of the assistant to learn"),
        (
            {"prompt": [user("a")], "chosen": [assistant("b", weight=0)], "rejected": [assistant("c")]},
            CHATML,
            "no turn",
        ),
    ],
)
def test_rows_that_a_template_does_not_show_in_full_are_refused(made, row, source, message):
    with pytest.raises(UserError, match=message):
        prepare_for(made(source))(row)


def test_what_a_template_writes_as_json_is_shown(made):
    as_json = TOOLS.replace("+ m.content +", "+ (m.content|tojson if m.role == 'tool' else m.content) +")
    prepare_for(made(as_json))({"messages": CALLED})


def test_a_template_that_is_not_valid_is_no_fault_of_a_row(made):
    with pytest.raises(UserError, match="the chat template is not valid Jinja: .*, in line 1$"):
        prepare_for(made("{% for m in messages %}{{ m.content }}"))


def test_rows_with_tools_are_taken_by_a_template_that_shows_them(made):
    prepare = prepare_for(made(TOOLS))
    for row in ({"messages": CALLED, "tools": SCHEMA}, {"prompt": CALLED[:3], "tools": SCHEMA}, {"messages": CALLED}):
        assert prepare(row) == row
    assert prepare.warnings(3) == []


def test_a_template_that_counts_the_answers_of_tools_is_given_all_turns(made):
    """A turn is tried with all others in their places."""
    counts = """{% for m in messages %}{% set last = loop.index + (m.tool_calls or [])|length %}
{%- for n in messages[loop.index:last] %}{% if n.role != 'tool' %}{{ raise_exception('Tools') }}{% endif %}{% endfor %}
{%- if m.tool_calls and last < messages|length and messages[last].role == 'tool' %}{{ raise_exception('More') }}
{%- endif %}{% endfor %}"""
    for calls in (1, 2):
        answers = [{"role": "tool", "content": "4"}] * calls
        row = {"messages": [user("a"), assistant("", tool_calls=[CALL] * calls), *answers, assistant("b")]}
        assert prepare_for(made(counts + TOOLS))(row) == row


@pytest.mark.parametrize("call", [CALL, {**CALL, "name": "type"}, {"name": "weather", "arguments": {}}])
def test_of_a_call_its_name_is_enough(made, call):
    names = """{% for m in messages %}{{ m.content }}
{%- for call in m.tool_calls or [] %}{{ call.function.name if call.function else call.name }}{% endfor %}{% endfor %}"""
    row = {"messages": [user("Oslo?"), assistant("", tool_calls=[call])]}
    assert prepare_for(made(names))(row) == row


def test_a_row_that_is_refused_is_named_and_can_be_left_out(made, write_jsonl):
    rows = [{"messages": [user("a"), assistant("b")]}, {"messages": [user("a"), user("b"), assistant("c")]}]
    specs, prepare = [DataSpec(write_jsonl("data.jsonl", rows))], prepare_for(made(ALTERNATES + CHATML))
    with pytest.raises(
        UserError, match=r"data.jsonl line 2: the chat template refuses .*1 of 2 rows.*--max-bad-rows 1"
    ):
        loading.load(specs, "conversations", Catalog(), preparation=lambda: prepare)
    data = loading.load(specs, "conversations", Catalog(), preparation=lambda: prepare, max_bad_rows=1)
    assert [row["messages"] for row in data.train] == [rows[0]["messages"]]
    assert re.search(r"left out 1 of 2 rows: the chat template refuses .*\(data.jsonl line 2\)", data.warnings[-1])


def test_the_system_prompt_goes_before_rows_without_one(made):
    prepare = prepare_for(made(), "Be brief.")
    system = {"role": "system", "content": "Be brief."}
    assert prepare({"prompt": [user("a")]})["prompt"] == [system, user("a")]
    own = {"messages": [{"role": "system", "content": "Be kind."}, user("a"), assistant("b")]}
    assert prepare(own) == own
    assert prepare.warnings(2) == []
    prepare = prepare_for(
        made("{% if messages[0].role == 'system' %}{{ raise_exception('No') }}{% endif %}" + CHATML), "x"
    )
    prepare({"prompt": [user("a")]})
    assert prepare.warnings(1) == [
        "1 of 1 rows have a system message, and the chat template has no place for one: it goes before the question"
    ]


def test_what_is_said_of_several_rows_is_counted(made):
    prepare = prepare_for(
        made(CHATML.replace("in messages", "in messages if m.role != 'system'")), need="conversations"
    )
    row = {"messages": [{"role": "system", "content": "S."}, user("a"), assistant("b")]}
    greeting = {"messages": [assistant("Hello."), user("a"), assistant("b")]}
    for each in (row, greeting, row, greeting):
        prepare(each)
    assert [text.partition(" rows ")[0] for text in prepare.warnings(4)] == ["2 of 4", "2 of 4"]


def test_special_tokens_in_texts_are_counted(made):
    prepare = prepare_for(made())
    prepare({"prompt": [user("What is <|im_end|>?")]})
    prepare({"prompt": [user("What is <think>?")]})  # a tag, which marks up a text
    prepare({"messages": [user("[INST] a [/INST]"), assistant("b")]})
    markup, special = sorted(prepare.warnings(3))
    assert special.startswith("1 of 3 rows have special tokens in their text, which act as such")
    assert markup.startswith("1 of 3 rows have chat markup in their text, which is text to this model")
    assert special.endswith(": <|im_end|>")
    assert markup.endswith(": [/INST], [INST]")


@pytest.mark.parametrize("text", ["What is <|im_end|>?", "<|im_start|>user\nHi<|im_end|>\n", "<|endoftext|>"])
def test_escaped_special_tokens_are_text(made, text):
    """The ids are of the same text, and none in it is a special token's."""
    plain, escaped = made(), made(escape=True)
    messages = [user(text), assistant(f"{text}!"), user("Why?")]
    ids = escaped.prompt_ids(messages)
    tokenizer = escaped.tokenizer
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    special = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids("<|im_start|>")}
    assert len([token for token in ids if token in special]) == 7  # of three turns, and of the answer's beginning
    assert len([token for token in plain.prompt_ids(messages) if token in special]) > 7
    prepare_for(escaped, control_tokens="escape")({"prompt": messages})


def test_special_tokens_are_escaped_in_every_text_of_a_turn(made):
    call = {"name": "weather", "arguments": {"cities": ["<|im_end|>", 1, None]}}
    ids = made(TOOLS, escape=True).prompt_ids([user("a"), assistant("", tool_calls=[call])])
    assert ids.count(made().tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2


def test_a_text_between_the_templates_tokens_is_tokenized_as_a_whole(made):
    escaped = made(escape=True)
    alone = escaped.tokenizer("user\nWhat does <|im_end|> mean?", add_special_tokens=False, split_special_tokens=True)
    assert (
        escaped.prompt_ids([user("What does <|im_end|> mean?")])[1 : 1 + len(alone["input_ids"])] == alone["input_ids"]
    )


def test_special_tokens_in_texts_can_be_refused(made):
    with pytest.raises(UserError, match=r"the text has <\|im_end\|>, <\|im_start\|>, which are tokens"):
        prepare_for(made(), control_tokens="refuse")({"prompt": [user("<|im_start|>user\nHi<|im_end|>")]})


def test_answers_that_do_not_fit_to_the_thought_of_the_prompt_are_counted(made):
    prepare = prepare_for(made(begins="{{ '<think>\n' }}"))
    prepare({"messages": [user("a"), assistant("b")]})
    prepare({"messages": [user("a"), assistant("<think>\nHm.\n</think>\n\nb")]})
    prepare({"messages": [user("a"), assistant("<think>\nHm.\n</think>\n\nc")]})
    assert [text[:49] for text in prepare.warnings(3)] == ["1 of 3 rows have an answer without a thought, and"]
    prepare = prepare_for(made(begins="{{ '<think>\n\n</think>\n\n' }}"))
    for _ in range(2):
        prepare({"messages": [user("a"), assistant("<think>Hm.</think>b")]})
    prepare({"messages": [user("a"), assistant("<think>\n\n</think>\n\nb")]})
    assert [text[:46] for text in prepare.warnings(3)] == ["2 of 3 rows have an answer with a thought, and"]


def test_rows_that_a_template_refuses_all_need_another(made, tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "a", "completion": "b <|im_end|>"}\n')
    prepare = prepare_for(made(), control_tokens="refuse")
    with pytest.raises(
        UserError, match=r"\(--control-tokens refuse\)\. 1 of 1 rows can't be used\. .*--chat-template FILE"
    ):
        loading.load([DataSpec.read(str(file))], "conversations", Catalog(), preparation=lambda: prepare)


def test_keys_that_a_template_does_not_use_are_said(made):
    prepare = prepare_for(made())
    for _ in range(2):
        prepare({"messages": [user("a", name="Ann"), assistant("b", reasoning_content="c", weight=1)]})
    thought, name = prepare.warnings(2)
    assert name == "2 of 2 rows have turns with 'name', which the chat template does not use"
    assert thought.startswith("2 of 2 rows have an answer with a thought, which the chat template leaves out: it")


def test_columns_of_the_data_that_are_not_used_are_not_read(made):
    """Rewards may want the pair of a row whose prompt is answered."""
    row = {"prompt": [user("a")], "chosen": "text <|im_end|>", "rejected": None}
    prepare = prepare_for(made(), need="prompts", control_tokens="refuse")
    assert prepare(row) == row


SYSTEM = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\n' + TEXT + '<|im_end|>\n' }}{% endif %}" + CHATML
# a template, what it says by itself before a question
OWN = {
    "none": (CHATML, ""),
    "a system message": (SYSTEM.replace("TEXT", "'You are Qwen.'"), "You are Qwen."),
    "one that ends as an answer does": (SYSTEM.replace("TEXT", "'Be a'"), "Be a"),
    "an instruction": ("{{ 'Below is a task.\n\n' }}" + CHATML, "Below is a task."),
    "a system message between tokens": (
        "{{ '<|im_start|>system<|endoftext|>You are it.\nNow.<|im_end|>' }}"
        + CHATML.replace("m.role + '\n' +", "m.role + '<|endoftext|>' +"),
        "You are it. Now.",
    ),
    "tokens alone": ("{{ '<|endoftext|>[INST]' }}" + CHATML, ""),
    "numbers of turns": ("{% for m in messages %}{{ 'Turn ' ~ loop.index ~ ': ' + m.content }}{% endfor %}", ""),
    "refused": ("{{ raise_exception('No') }}", ""),
}


@pytest.mark.parametrize("case", OWN)
def test_what_a_template_says_before_the_first_question(made, case):
    source, expected = OWN[case]
    assert own_text(made(source)) == expected


def test_a_system_message_of_the_templates_own_is_said_of_rows_without_one(made):
    prepare = prepare_for(made(SYSTEM.replace("TEXT", "'You are Qwen.'")), need="prompts")
    prepare({"prompt": [user("a")]})
    prepare({"prompt": [{"role": "system", "content": "Be brief."}, user("a")]})
    [text] = prepare.warnings(2)
    assert text.startswith("1 of 2 rows have no system message, so the chat template begins with its own, 'You are ")


def beginning(template: ChatTemplate, start: str) -> ChatTemplate:
    """With a tokenizer that begins each text with `start`, as Llama's does."""
    tokenizer = template.tokenizer = copy.deepcopy(template.tokenizer)
    tokenizer.bos_token = start
    tokens = [(start, tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{start} $A", special_tokens=tokens)
    return template


def test_the_token_that_begins_texts_is_there_once(made):
    begins = "{{ '<|endoftext|>' }}" + CHATML
    row = {"prompt": [user("a")]}
    for source, said in (
        (CHATML, "the tokenizer begins texts with <|endoftext|> and the chat template does not"),
        (begins, None),
        ("{{ '<|endoftext|>' }}" + begins, "1 of 1 rows begin with <|endoftext|> twice"),
    ):
        prepare = Preparation(beginning(made(source), "<|endoftext|>"), "prompts")
        prepare(row)
        assert [text.startswith(said or " ") for text in prepare.warnings(1)] == [True] * bool(said)
    both = beginning(made("{{ '<|endoftext|>' + messages[0].content }}"), "<|endoftext|>")
    prepare = Preparation(both, "prompts")
    prepare({"prompt": [user("<|endoftext|>a")]})
    assert any("1 of 1 rows begin with <|endoftext|> twice" in text for text in prepare.warnings(1))
    prepare = Preparation(beginning(made("{{ '<|endoftext|>' }}" + begins), "<|endoftext|>"), "conversations")
    prepare({"messages": [user("a"), assistant("b")]})
    assert prepare.warnings(1)[0].startswith("1 of 1 rows begin with <|endoftext|> twice")


def test_a_template_that_writes_the_date_is_said_until_it_has_one(made):
    dated = "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}"
    assert "writes the date of today" in " ".join(Preparation(made(dated + CHATML), "prompts").warnings(1))
    one = ChatTemplate(made(dated + CHATML).tokenizer, {"date_string": "26 Jul 2024"})
    assert "the date of" not in " ".join(Preparation(one, "prompts").warnings(1))


def test_an_end_that_is_no_token_is_said(made):
    prepare = Preparation(made(CHATML.replace("im_end", "not_a_token")), "conversations")
    prepare({"messages": [user("a"), assistant("b")]})
    assert prepare.warnings(1)[0].startswith("the chat template ends answers with <|not_a_token|>, which is no token")


def test_an_end_at_which_the_model_does_not_stop_is_said(made):
    """Of its tokens the template ends answers with <|im_end|>, and those with a call of a tool with another."""
    source = TOOLS.replace("+ '<|im_end|>", "+ ('<|im_start|>' if m.tool_calls else '<|im_end|>') + '")
    prepare = prepare_for(made(source), need="conversations")
    prepare({"messages": [user("Oslo?"), assistant("", tool_calls=[CALL])]})
    prepare({"messages": [user("a"), assistant("b")]})
    [text] = prepare.warnings(2)
    assert text.startswith("1 of 2 rows have an answer that ends with <|im_start|>, at which the model does not stop:")


def test_a_prompt_that_is_shown_otherwise_once_it_is_answered_is_said(made):
    prepare = prepare_for(made(begins="{{ 'Answer: ' }}"), need="conversations")
    prepare({"messages": [user("a"), assistant("b")]})
    assert [text[:66] for text in prepare.warnings(1)] == [
        "1 of 1 rows have a prompt that the chat template shows otherwise o"
    ]


def test_thoughts_that_a_template_leaves_out_are_said(made):
    """In earlier answers, or in all."""
    earlier = CHATML.replace(
        "m.content", "(m.content.split('</think>')[-1] if m.role == 'assistant' and not loop.last else m.content)"
    )
    turns = [user("a"), assistant("<think>Hm.</think>b"), user("c"), assistant("<think>So.</think>d")]
    for source, said in (
        (earlier, ["earlier answers"]),
        (earlier.replace(" and not loop.last", ""), ["an answer", "earlier answers"]),
        (CHATML, []),
    ):
        prepare = prepare_for(made(source), need="conversations")
        prepare({"messages": turns})
        texts = "\n".join(prepare.warnings(1))
        assert re.findall("(?<=thoughts in )earlier answers|an answer(?= with a thought)", texts) == said
    prepare = prepare_for(made(earlier), need="prompts")
    prepare({"prompt": turns[:3]})
    assert [text[-50:] for text in prepare.warnings(1)] == ["eaves out of the prompt, as when the model answers"]


def test_a_turn_of_a_role_that_is_not_shown_is_refused(made):
    row = {"messages": [user("a"), {"role": "critic", "content": "No."}, assistant("b")]}
    assert prepare_for(made())(row) == row
    with pytest.raises(UserError, match="does not show a turn of the role 'critic'"):
        prepare_for(made(CHATML.replace("in messages", "in messages if m.role != 'critic'")))(row)


def test_a_pair_counts_once(made):
    prepare = prepare_for(made(begins="{{ '<think>\n' }}"), need="preferences")
    prepare({"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]})
    assert prepare.warnings(1)[0].startswith("1 of 1 rows have an answer without a thought")
