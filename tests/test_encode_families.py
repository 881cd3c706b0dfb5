"""The tokens that are learned with templates in the style of model families, against texts written by hand.

In them « and » enclose what is learned; the rest is what the model is given.
"""

from __future__ import annotations

import copy

import pytest
import tokenizers
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlhf_core import builtin
from rlhf_core.data import encoding
from rlhf_core.data.chat_template import ChatTemplate

CHATML = """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# Earlier thoughts are left out; the last answer has one, though it be empty.
QWEN = """{%- if tools %}{{ '<|im_start|>system\nTools: ' + tools|tojson + '<|im_end|>\n' }}{% endif %}
{%- set last = namespace(user=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- set text, thought = m.content, m.reasoning_content or '' %}
{%- if m.role == 'assistant' and '</think>' in text %}
{%- set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}
{{- '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' and loop.index0 > last.user and (loop.last or thought) %}
{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{% endif %}
{{- text }}
{%- for call in m.tool_calls or [] %}{% if text or not loop.first %}{{ '\n' }}{% endif %}
{{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments|tojson + '}\n' }}
{{- '</tool_call>' }}{% endfor %}
{{- '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"""
QWEN_THINKS = QWEN.replace(
    "assistant\n' }}\n{%- if enable_thinking", "assistant\n<think>\n' }}\n{%- if enable_thinking"
)

LLAMA = """{{ '<s>' }}{%- for m in messages %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content|trim + '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

GEMMA = """{{ '<s>' }}{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate') }}{% endif %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content|trim + '<end_of_turn>\n' }}
{%- endfor %}{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

MISTRAL = """{{ '<s>' }}{%- for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}
{%- else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"""

# The thought is left out of every answer, and each prompt opens one.
R1 = """{{ '<s>' }}{%- for m in messages %}{% if m.role == 'assistant' %}
{{- '<｜Assistant｜>' + m.content.split('</think>')[-1] + '</s>' }}
{%- else %}{{ ('<｜User｜>' if m.role == 'user' else '') + m.content }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"""

PHI = """{%- for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""

ZEPHYR = """{%- for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""

GLM = """{{ '[gMASK]' }}{%- for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""

# The answer's beginning is the model's to write; its last end token is another than that of earlier turns.
HARMONY = """{%- for m in messages %}{{ '<|start|>' + m.role }}{% if m.role == 'assistant' %}
{%- if m.reasoning_content and loop.last %}
{{- '<|channel|>analysis<|message|>' + m.reasoning_content + '<|end|><|start|>assistant' }}{% endif %}
{{- '<|channel|>final' }}{% endif %}
{{- '<|message|>' + m.content + ('<|return|>' if loop.last and m.role == 'assistant' else '<|end|>') }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

# name: (template, end token of the tokenizer, other special tokens)
FAMILIES = {
    "chatml": (CHATML, "<|im_end|>", []),
    "chatml of a base model": (CHATML, "<|endoftext|>", []),
    "qwen": (QWEN, "<|im_end|>", []),
    "qwen thinks": (QWEN_THINKS, "<|im_end|>", []),
    "llama": (LLAMA, "<|eot_id|>", ["<s>", "<|start_header_id|>", "<|end_header_id|>"]),
    "gemma": (GEMMA, "<eos>", ["<s>", "<start_of_turn>", "<end_of_turn>"]),
    "mistral": (MISTRAL, "</s>", ["<s>"]),
    "r1": (R1, "</s>", ["<s>", "<｜User｜>", "<｜Assistant｜>"]),
    "phi": (PHI, "<|endoftext|>", ["<|user|>", "<|assistant|>", "<|end|>"]),
    "zephyr": (ZEPHYR, "</s>", []),
    "glm": (GLM, "<|endoftext|>", ["[gMASK]", "<|user|>", "<|assistant|>"]),
    "harmony": (HARMONY, "<|return|>", ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>"]),
}


@pytest.fixture(scope="module")
def original():
    return AutoTokenizer.from_pretrained(builtin.MODEL)


@pytest.fixture(scope="module")
def template_of(original):
    def make(name: str, **kwargs) -> ChatTemplate:
        source, end, others = FAMILIES[name]
        tokenizer = copy.deepcopy(original)
        tokenizer.add_special_tokens({"eos_token": end, "additional_special_tokens": ["<|im_end|>", *others]})
        tokenizer.chat_template = source
        return ChatTemplate(tokenizer, kwargs)

    return make


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str | None, **more) -> dict:
    return {"role": "assistant", "content": text, **more}


def shown(template: ChatTemplate, ids: list[int], learned: list[bool]) -> str:
    """The text of `ids` with what is learned in « and »."""
    pieces: list[tuple[bool, list[int]]] = []
    for token, is_learned in zip(ids, learned, strict=True):
        if not pieces or pieces[-1][0] != is_learned:
            pieces.append((is_learned, []))
        pieces[-1][1].append(token)
    texts = [(is_learned, template.tokenizer.decode(part)) for is_learned, part in pieces]
    return "".join(f"«{text}»" if is_learned else text for is_learned, text in texts)


def rows(template: ChatTemplate, messages: list[dict], tools: list | None = None) -> list[str]:
    encoded = encoding.encode_conversation(template, messages, tools)
    return [shown(template, ids, [label != encoding.IGNORED for label in labels]) for ids, labels in encoded]


def pair(template: ChatTemplate, prompt: list[dict], answer: list[dict]) -> str:
    before, ids, mask = encoding.encode_answer(template, prompt, answer)
    return shown(template, [*before, *ids], [*[False] * len(before), *map(bool, mask)])


ONE = {
    "chatml": "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n«A.<|im_end|>»",
    "chatml of a base model": "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n«A.<|im_end|>»",
    "qwen": "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n«<think>\n\n</think>\n\nA.<|im_end|>»",
    "qwen thinks": "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n<think>\n«\n</think>\n\nA.<|im_end|>»",
    "llama": "<s><|start_header_id|>user<|end_header_id|>\n\nQ?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n«A.<|eot_id|>»",
    "gemma": "<s><start_of_turn>user\nQ?<end_of_turn>\n<start_of_turn>model\n«A.<end_of_turn>»",
    "mistral": "<s>[INST] Q? [/INST]« A.</s>»",
    "r1": "<s><｜User｜>Q?<｜Assistant｜><think>\n«\n</think>\n\nA.</s>»",
    "phi": "<|user|>\nQ?<|end|>\n<|assistant|>\n«A.<|end|>»",
    "zephyr": "<|user|>\nQ?</s>\n<|assistant|>\n«A.</s>»",
    "glm": "[gMASK]<|user|>\nQ?<|assistant|>\n«A.<|endoftext|>»",
    "harmony": "<|start|>user<|message|>Q?<|end|><|start|>assistant«<|channel|>final<|message|>A.<|return|>»",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_ends_with_one_end_token(template_of, name):
    template = template_of(name)
    assert rows(template, [user("Q?"), assistant("A.")]) == [ONE[name]]
    assert pair(template, [user("Q?")], [assistant("A.")]) == ONE[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_prompt_is_what_the_model_is_given(template_of, name):
    """As transformers renders and tokenizes it."""
    template = template_of(name)
    for prompt in ([user("Q?")], [user("Q?"), assistant("A."), user("Why?")]):
        ids, labels = encoding.encode_conversation(template, [*prompt, assistant("So.")])[-1]
        wanted = template.tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        assert ids[: len(wanted)] == wanted
        assert encoding.learns(labels[len(wanted) :])


TWO = {
    "chatml": [
        "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n«A.<|im_end|>»\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n«So.<|im_end|>»"
    ],
    "llama": [
        "<s><|start_header_id|>user<|end_header_id|>\n\nQ?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«A.<|eot_id|>»"
        "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«So.<|eot_id|>»"
    ],
    "gemma": [
        "<s><start_of_turn>user\nQ?<end_of_turn>\n<start_of_turn>model\n«A.<end_of_turn>»\n"
        "<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n«So.<end_of_turn>»"
    ],
    "mistral": ["<s>[INST] Q? [/INST]« A.</s>»[INST] Why? [/INST]« So.</s>»"],
    "phi": ["<|user|>\nQ?<|end|>\n<|assistant|>\n«A.<|end|>»\n<|user|>\nWhy?<|end|>\n<|assistant|>\n«So.<|end|>»"],
    "zephyr": ["<|user|>\nQ?</s>\n<|assistant|>\n«A.</s>»\n<|user|>\nWhy?</s>\n<|assistant|>\n«So.</s>»"],
    # Earlier answers are not shown as they were generated.
    "qwen": [ONE["qwen"], "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\nA.<|im_end|>\n"
             "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n«<think>\n\n</think>\n\nSo.<|im_end|>»"],
    "r1": [ONE["r1"], "<s><｜User｜>Q?<｜Assistant｜>A.</s><｜User｜>Why?<｜Assistant｜><think>\n«\n</think>\n\nSo.</s>»"],
    "glm": [ONE["glm"], "[gMASK]<|user|>\nQ?<|assistant|>\nA.<|user|>\nWhy?<|assistant|>\n«So.<|endoftext|>»"],
    "harmony": [ONE["harmony"], "<|start|>user<|message|>Q?<|end|><|start|>assistant<|channel|>final<|message|>A.<|end|>"
                "<|start|>user<|message|>Why?<|end|><|start|>assistant«<|channel|>final<|message|>So.<|return|>»"],
}  # fmt: skip


@pytest.mark.parametrize("name", TWO)
def test_every_answer_is_learned_once_as_it_is_generated(template_of, name):
    assert rows(template_of(name), [user("Q?"), assistant("A."), user("Why?"), assistant("So.")]) == TWO[name]


@pytest.mark.parametrize("name", ["chatml", "llama", "gemma", "mistral", "phi", "zephyr"])
def test_the_users_turns_of_a_reply_are_not_learned(template_of, name):
    assert pair(template_of(name), [user("Q?")], [assistant("A."), user("Why?"), assistant("So.")]) == TWO[name][0]


def test_both_replies_follow_what_they_share(template_of):
    """Of a template that shows an earlier answer otherwise, the prompt is shorter for both."""
    template = template_of("r1")
    row = {
        "prompt": [user("Q?")],
        "chosen": [assistant("A.")],
        "rejected": [assistant("B."), user("So?"), assistant("C.")],
    }
    encoded = encoding.encode_pair(row, template)
    assert template.tokenizer.decode(encoded["prompt_ids"]) == "<s><｜User｜>Q?<｜Assistant｜>"
    sides = [
        shown(template, encoded[f"{side}_ids"], list(map(bool, encoded[f"{side}_mask"])))
        for side in ("chosen", "rejected")
    ]
    assert sides == [
        "<think>\n«\n</think>\n\nA.</s>»",
        "B.</s><｜User｜>So?<｜Assistant｜><think>\n«\n</think>\n\nC.</s>»",
    ]


# The system's text goes before the last question, where that is the last turn; a tool's answer has a line more if it is
# not the last turn.
MISTRAL_SYSTEM = """{{ '<s>' }}{%- for m in messages %}{% if m.role == 'user' %}
{{- '[INST] ' + (messages[0].content + '\n\n' if loop.last and messages[0].role == 'system' else '') + m.content }}
{{- '[/INST]' }}{% elif m.role == 'assistant' %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"""
HERMES = """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}
{%- for call in m.tool_calls or [] %}{{ '<tool_call>' + call.function.name + '</tool_call>' }}{% endfor %}
{{- ('\n' if m.role == 'tool' and not loop.last else '') + '<|im_end|>' + ('' if m.role == 'tool' else '\n') }}
{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
SPACED = """{%- for m in messages %}{% if m.role == 'user' %}{{ m.content + (' ]' if loop.last else ']]') }}
{%- else %}{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}"""
CALL = {"type": "function", "function": {"name": "weather", "arguments": {}}}


@pytest.mark.parametrize(
    ("name", "source", "turns", "wanted"),
    [
        (
            "mistral",
            MISTRAL_SYSTEM,
            [{"role": "system", "content": "S."}, user("Q?"), assistant("A.")],
            "<s>[INST] S.\n\nQ?[/INST]« A.</s>»",
        ),
        (
            "chatml",
            HERMES,
            [user("Q?"), assistant("", tool_calls=[CALL]), {"role": "tool", "content": "4"}, assistant("A.")],
            "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n«<tool_call>weather</tool_call><|im_end|>»\n"
            "<|im_start|>tool\n4<|im_end|><|im_start|>assistant\n«A.<|im_end|>»",
        ),
        (
            "qwen",
            QWEN,
            [user("Q?"), assistant("A."), assistant("B.")],
            "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n«<think>\n\n</think>\n\nA.<|im_end|>»\n"
            "<|im_start|>assistant\n«<think>\n\n</think>\n\nB.<|im_end|>»",
        ),
        (
            "chatml",
            CHATML.replace("m.content +", "m.content + ('?' if loop.last and m.role == 'user' else '.') +"),
            [user("Q"), assistant("A")],
            "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n«A.<|im_end|>»",
        ),
        (
            "chatml",
            SPACED,
            [user("Q?"), assistant("A.")],
            "Q? ]«A.<|im_end|>»",
        ),
        (
            "chatml",
            "{% if not add_generation_prompt %}{{ 'All:' }}{% endif %}" + CHATML,
            [user("Q?"), assistant("A.")],
            "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n«A.<|im_end|>»",
        ),
    ],
    ids=["system before the last question", "tool", "two answers", "all but the last", "one character", "a heading"],
)
def test_an_answer_alone_is_learned_where_its_prompt_is_shown_otherwise(template_of, name, source, turns, wanted):
    template = template_of(name)
    template.tokenizer.chat_template = source
    assert rows(ChatTemplate(template.tokenizer), turns) == [wanted]


def test_a_thought_like_the_answer_is_learned(template_of):
    wanted = ONE["r1"].replace("«\n</think>", "«4\n</think>").replace("A.", "4")
    for answer in (assistant("<think>\n4\n</think>\n\n4"), assistant("4", reasoning_content="4")):
        assert rows(template_of("r1"), [user("Q?"), answer]) == [wanted]


def test_a_thought_of_the_text_that_the_template_leaves_out_is_learned_as_it_is_written(template_of):
    answer = "<think>\n Hm.\n\n</think>\nA."
    assert rows(template_of("r1"), [user("Q?"), assistant(answer)])[0].endswith("<think>\n« Hm.\n\n</think>\nA.</s>»")


@pytest.mark.parametrize("name", ["qwen", "qwen thinks", "r1"])
def test_an_empty_thought_is_one(template_of, name):
    assert rows(template_of(name), [user("Q?"), assistant("<think>\n\n</think>\n\nA.")]) == [ONE[name]]


def test_a_thought_follows_the_space_before_an_answer(template_of):
    wanted = "<s>[INST] Q? [/INST]« <think>\nHm.\n</think>\n\nA.</s>»"
    assert rows(template_of("mistral"), [user("Q?"), assistant("A.", reasoning_content="Hm.")]) == [wanted]


THOUGHT = {
    "chatml": "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n«<think>\nHm.\n</think>\n\nA.<|im_end|>»",
    "qwen": "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n«<think>\nHm.\n</think>\n\nA.<|im_end|>»",
    "qwen thinks": "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n<think>\n«Hm.\n</think>\n\nA.<|im_end|>»",
    "r1": "<s><｜User｜>Q?<｜Assistant｜><think>\n«Hm.\n</think>\n\nA.</s>»",
    "gemma": "<s><start_of_turn>user\nQ?<end_of_turn>\n<start_of_turn>model\n«<think>\nHm.\n</think>\n\nA.<end_of_turn>»",
    "phi": "<|user|>\nQ?<|end|>\n<|assistant|>\n«<think>\nHm.\n</think>\n\nA.<|end|>»",
}


@pytest.mark.parametrize("name", THOUGHT)
@pytest.mark.parametrize(
    "answer",
    [
        assistant("<think>\nHm.\n</think>\n\nA."),
        assistant("A.", reasoning_content="Hm."),
        assistant("A.", reasoning="Hm."),
        assistant("A.", thinking="Hm.", reasoning_content=None),
    ],
    ids=["in the text", "reasoning_content", "reasoning", "thinking"],
)
def test_a_thought_is_learned_once(template_of, name, answer):
    """Whether the template shows it, leaves it out, or has opened one."""
    assert rows(template_of(name), [user("Q?"), answer]) == [THOUGHT[name]]


@pytest.mark.parametrize("written", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("read", ["reasoning_content", "thinking"])
def test_a_thought_where_the_family_writes_it_otherwise(template_of, read, written):
    template = template_of("harmony")
    template.tokenizer.chat_template = HARMONY.replace("reasoning_content", read)
    given = "<|start|>user<|message|>Q?<|end|><|start|>assistant"
    thought = "«<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>A.<|return|>»"
    assert rows(ChatTemplate(template.tokenizer), [user("Q?"), assistant("A.", **{written: "Hm."})]) == [
        given + thought
    ]


@pytest.mark.parametrize(
    ("opened", "content", "learned"),
    [
        ("<think>\n", "<think>Hm.</think>A.", "Hm.</think>A."),
        ("<think>\n", "\n<think> Hm.\n\n</think>A.", " Hm.\n\n</think>A."),
        ("<think>\n", "<think>\nHm.", "Hm."),  # a thought that does not end
        ("<think>\n", "A <think> is a tag.", "\n</think>\n\nA <think> is a tag."),
        ("<think>\n", "\n<think>\nHm.</think>A.", "Hm.</think>A."),
        ("<think>", "\n<think>\nHm.</think>A.", "\nHm.</think>A."),
        ("<think>", "A.", "</think>A."),
    ],
)
def test_what_follows_an_opened_thought(template_of, original, opened, content, learned):
    """With a template that shows answers as they are and opens a thought in the prompt."""
    tokenizer = copy.deepcopy(original)
    tokenizer.chat_template = CHATML.replace("assistant\n' }}{% endif", f"assistant\n{opened}' }}}}{{% endif")
    before = f"<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n{opened}"
    assert rows(ChatTemplate(tokenizer), [user("Q?"), assistant(content)]) == [f"{before}«{learned}<|im_end|>»"]


def test_a_thought_takes_the_place_of_an_empty_one(template_of):
    """With a template that shows an empty thought before every answer, and opens one in the prompt."""
    template = template_of("chatml")
    template.tokenizer.chat_template = """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{{- '<think></think>' if m.role == 'assistant' }}{{ m.content.split('</think>')[-1] + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>' }}{% endif %}"""
    template = ChatTemplate(template.tokenizer)
    before = "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n<think>"
    for answer in (assistant("A.", reasoning_content="Hm."), assistant("<think>Hm.</think>A.")):
        assert rows(template, [user("Q?"), answer]) == [before + "«Hm.</think>A.<|im_end|>»"]
    assert rows(template, [user("Q?"), assistant("A.")]) == [before + "«</think>A.<|im_end|>»"]


def with_spaces(original, kind: str):
    """A tokenizer that puts a space before every text: GPT-2's kind, or SentencePiece's."""
    if kind == "GPT-2":
        tokenizer = copy.deepcopy(original)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        return tokenizer
    letters = {letter: i for i, letter in enumerate(["▁A", "▁", *map(chr, range(9, 127))])}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(letters, [("▁", "A")]))
    model.pre_tokenizer, model.decoder = pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    return tokenizer


@pytest.mark.parametrize("kind", ["GPT-2", "SentencePiece"])
def test_a_space_that_a_tokenizer_puts_before_every_text_is_not_in_an_answer(original, kind):
    tokenizer = with_spaces(original, kind)
    assert tokenizer.convert_ids_to_tokens(tokenizer("A.")["input_ids"]) in (["ĠA", "."], ["▁A", "."])
    for before in ("assistant\n", "assistant\n ", "assistant: "):
        tokenizer.chat_template = CHATML.replace("m.role + '\n'", f"m.role + '{before[9:]}'")
        tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n", before)
        for content in ("A.", "b.", "<think>"):
            prompt, ids, _ = encoding.encode_answer(ChatTemplate(tokenizer), [user("Q?")], [assistant(content)])
            assert tokenizer.decode(ids).lstrip() == f"{content}<|im_end|>"
            assert tokenizer.convert_ids_to_tokens(ids)[0][0] not in "▁Ġ" or before[-1] == " "
            assert tokenizer.decode(prompt).endswith(before)


@pytest.mark.parametrize("name", ["chatml", "gemma", "phi"])
def test_a_turn_of_weight_0_is_not_learned(template_of, name):
    turns = [user("Q?"), assistant("A.", weight=0), user("Why?"), assistant("So.", weight=1)]
    first, last = TWO[name][0].replace("«", "", 1).replace("»", "", 1), "«So."
    assert rows(template_of(name), turns) == [first]
    assert last in first
    assert pair(template_of(name), turns[:1], turns[1:]) == first
    turns[3]["weight"] = 0
    assert rows(template_of(name), turns) == []
    learned, _, rest = TWO[name][0].partition("»")
    wanted = f"{learned}»{rest.replace('«', '').replace('»', '')}"
    assert pair(template_of(name), turns[:1], [assistant("A."), *turns[2:]]) == wanted


def test_a_turn_of_weight_0_is_no_row(template_of):
    turns = [user("Q?"), assistant("A.", weight=0), user("Why?"), assistant("So.")]
    assert rows(template_of("qwen"), turns) == TWO["qwen"][1:]
    turns = [user("Q?"), assistant("A."), user("Why?"), assistant("So.", weight=0.0)]
    assert rows(template_of("qwen"), turns) == TWO["qwen"][:1]


@pytest.mark.parametrize("content", ["A.<eos>", "A.<end_of_turn>\n", "A.<end_of_turn><eos>"])
def test_end_tokens_at_the_end_of_an_answer_are_one(template_of, content):
    assert rows(template_of("gemma"), [user("Q?"), assistant(content)]) == [ONE["gemma"]]


@pytest.mark.parametrize("end", ["<eos>", "<end_of_turn>"])
def test_end_tokens_inside_an_answer_are_text(template_of, end):
    template = template_of("gemma")
    ((ids, labels),) = encoding.encode_conversation(template, [user("Q?"), assistant(f"Say {end} to stop.")])
    assert template.tokenizer.decode(ids).endswith(f"model\nSay {end} to stop.<end_of_turn>")
    ends = template.tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])
    assert [label for label in labels if label in ends] == [ends[1]]


def test_a_special_token_that_ends_no_answer_stays_in_one(template_of):
    [row] = rows(template_of("harmony"), [user("Q?"), assistant("A.<|channel|>")])
    assert row.endswith("<|message|>A.<|channel|><|return|>»")


def test_an_answer_ends_as_the_template_ends_it(template_of):
    """A call of a tool may end otherwise than what is said to the user."""
    template = template_of("harmony")
    template.tokenizer.chat_template = HARMONY.replace(
        "'<|return|>' if", "'<|call|>' if m.tool_calls else '<|return|>' if"
    )
    turns = [user("Q?"), assistant("weather()", tool_calls=[CALL])]
    assert rows(ChatTemplate(template.tokenizer), turns) == [
        "<|start|>user<|message|>Q?<|end|><|start|>assistant«<|channel|>final<|message|>weather()<|call|>»"
    ]


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("arguments", ['{"city": "Oslo"}', {"city": "Oslo"}])
@pytest.mark.parametrize("text", ["I look.", None])
def test_calls_of_tools_are_learned_and_their_results_are_not(template_of, text, arguments):
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    turns = [
        user("Oslo?"),
        assistant(text, tool_calls=[call]),
        {"role": "tool", "content": "4", "tool_call_id": "1"},
        assistant("It is 4."),
    ]
    asked = f"<|im_start|>system\nTools: {template_of('qwen').tokenizer.decode([])}"
    schema = '[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]'
    asked = f"<|im_start|>system\nTools: {schema}<|im_end|>\n<|im_start|>user\nOslo?<|im_end|>\n<|im_start|>assistant\n"
    called = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'
    called = f"{text}\n{called}" if text else called
    answered = "<|im_start|>tool\n4<|im_end|>\n<|im_start|>assistant\n«<think>\n\n</think>\n\nIt is 4.<|im_end|>»"
    wanted = [f"{asked}«<think>\n\n</think>\n\n{called}»", f"{asked}{called}\n{answered}"]
    assert rows(template_of("qwen"), turns, TOOLS) == wanted


@pytest.mark.parametrize(
    ("value", "tools"),
    [
        (TOOLS, TOOLS),
        ('[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]', TOOLS),
        ([{"name": "weather"}], [{"name": "weather"}]),
        ('\n [{"name": "weather"}]', [{"name": "weather"}]),
        ([], None),
        ("[]", None),
        (None, None),
        ("hammer and nails", None),
        ("[broken", None),
        (["hammer"], None),
        ([{"hammer": 1}], None),
    ],
)
def test_which_columns_named_tools_are_tools(value, tools):
    assert encoding.tools_of({"tools": value}) == tools
