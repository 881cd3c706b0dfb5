"""The examples of `rlhf data inspect`: the tokens of training, with what is learned told apart, safe to show."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer

from rlhf_core import builtin
from rlhf_core.cli import rlhf
from rlhf_core.data import encoding
from rlhf_core.data.chat_template import ChatTemplate
from rlhf_core.data_report import view_show
from rlhf_core.data_report.view import Examples, pieces_of, plain
from rlhf_core.ui.screen import Screen, Terminal

LIMITS = {"max_prompt_length": 400, "max_completion_length": 400, "max_length": 400}
QUESTION = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def template():
    return ChatTemplate(AutoTokenizer.from_pretrained(builtin.MODEL))


def answer(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def examples(template, need: str, *rows: dict, count: int = 1, **limits: int) -> list[dict]:
    options = SimpleNamespace(**{**LIMITS, **limits}, overlong_prompts="truncate", overlong_completions="truncate")
    made = Examples(count, need, options, template)
    for number, row in enumerate(rows, start=1):
        made.add(f"line {number}", row)
    return made.to_list()


def marked(part: dict) -> str:
    return view_show.marked(part["tokens"]).plain


def test_a_conversation_is_shown_as_it_is_learned(template):
    turns = [*QUESTION, *answer("Yes."), *QUESTION, *answer("多喝水😀")]
    [example] = examples(template, "conversations", {"messages": turns})
    [part] = example["parts"]
    asked = "<|im_start|>user↵\nHi<|im_end|>↵\n<|im_start|>assistant↵\n"
    assert marked(part) == f"{asked}«Yes.<|im_end|>■»↵\n{asked}«多喝水😀<|im_end|>■»"
    [(ids, labels)] = encoding.encode_conversation(template, turns)
    assert [token for piece in part["tokens"] for token in piece["ids"]] == ids
    assert (part["count"], part["learned"]) == (len(ids), sum(label >= 0 for label in labels))
    assert example["notes"] == []


def test_of_a_pair_the_prompt_is_shown_once(template):
    [example] = examples(template, "preferences", {"prompt": QUESTION, "chosen": answer("a"), "rejected": answer("b")})
    assert [(part["part"], marked(part)) for part in example["parts"]] == [
        ("prompt", "<|im_start|>user↵\nHi<|im_end|>↵\n<|im_start|>assistant↵\n"),
        ("chosen", "«a<|im_end|>■»"),
        ("rejected", "«b<|im_end|>■»"),
    ]


def test_a_prompt_is_shown_with_what_begins_its_answer(template):
    [example] = examples(template, "prompts", {"prompt": QUESTION})
    assert example["answer_begins_after"] == "<|im_start|>assistant\n"
    assert "«" not in marked(example["parts"][0])


def test_a_prompt_is_shown_as_the_limits_leave_it(template):
    turns = [{"role": "user", "content": "a " * 99}, *answer("b"), *QUESTION]
    [example] = examples(template, "prompts", {"prompt": turns}, max_prompt_length=30)
    assert marked(example["parts"][0]) == "<|im_start|>user↵\nHi<|im_end|>↵\n<|im_start|>assistant↵\n"


def test_plain_text_is_learned_in_pieces_and_its_end_once(template):
    rows = {"messages": [{"role": "text", "content": "one two three four five six"}]}
    [example] = examples(template, "conversations", rows, max_length=3)
    assert example["parts"][0]["part"].startswith("text 1 of ")
    assert example["notes"] == [note for note in example["notes"] if "not shown" in note]


@pytest.mark.parametrize(
    ("need", "row", "flag"),
    [
        ("conversations", {"messages": [*QUESTION, *answer("word " * 40)]}, "--max-length 20"),
        ("preferences", {"prompt": QUESTION, "chosen": answer("x"), "rejected": answer("y " * 40)},
         "--max-completion-length 20"),
    ],
)  # fmt: skip
def test_an_answer_that_is_cut_does_not_end(template, need, row, flag):
    [example] = examples(template, need, row, max_length=20, max_completion_length=20)
    [note] = example["notes"]
    assert note.startswith("no learned token ends the turn: the model will not learn to stop (")
    assert f", cut after {flag})" in note


def test_of_several_examples_the_last_is_the_longest(template):
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in ("a", "b", "c" * 9, "d")]
    found = [(one["location"], one["longest"]) for one in examples(template, "prompts", *rows, count=2)]
    assert found == [("line 1", False), ("line 3", True)]
    assert [one["location"] for one in examples(template, "prompts", *rows)] == ["line 1"]
    assert [one["longest"] for one in examples(template, "prompts", *rows[:3], count=3)] == [False, False, True]
    assert examples(template, "prompts", *rows, count=0) == []


def test_pieces_are_whole_characters_and_together_the_text(template):
    text = "发热😀怎么办? Ünï  two\n\n"
    ids = template.ids(text)
    pieces = [piece.text for piece in pieces_of(template, ids, [True] * len(ids))]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    [half] = pieces_of(template, template.ids("😀")[:1], [True])  # as where a limit cuts
    assert "\ufffd" in half.text


def test_text_that_reads_like_a_special_token_is_shown_in_its_pieces(template):
    escaped = ChatTemplate(template.tokenizer, escape=True)
    ids = escaped.prompt_ids([{"role": "user", "content": "<|im_end|>"}])
    pieces = list(pieces_of(escaped, ids, [False] * len(ids)))
    text = view_show.marked(list(map(plain, pieces))).plain
    assert text.count("<|im_end|>") == 1  # the template's
    assert text.replace("·", "").count("<|im_end|>") == 2
    assert "reads like" in view_show.split([{"parts": [{"tokens": list(map(plain, pieces))}]}])
    assert view_show.split([{"parts": [{"tokens": list(map(plain, pieces[:1]))}]}]) == ""


def tokens(*spans: tuple[int, bool]) -> list[dict]:
    return [{"ids": [0], "text": "x", "learned": learned} for length, learned in spans for _ in range(length)]


def test_long_spans_are_cut_in_their_middle():
    def shown(*spans: tuple[int, bool]) -> list[object]:
        return [one if isinstance(one, str) else one["learned"] for one in view_show.shortened(tokens(*spans))]

    head, tail = view_show.HEAD, view_show.TAIL
    assert shown((head + tail + 1, False)) == [False] * (head + tail + 1)
    cut = "[… 1,000 tokens left out …]"
    assert shown((head + tail + 1000, True), (3, False)) == [*[True] * head, cut, *[True] * tail, *[False] * 3]
    many = [(2, bool(number % 2)) for number in range(view_show.SPANS + 4)]
    found = shown(*many)
    assert found[view_show.SPANS] == "[… 8 tokens left out, 4 of them learned …]"
    assert len(found) == 2 * view_show.SPANS + 1


def test_colours_tell_what_is_learned_and_pipes_get_marks(template):
    found = examples(template, "conversations", {"messages": [*QUESTION, *answer("Yes.")]})
    [part] = found[0]["parts"]
    styles = [span.style for span in view_show.coloured(part["tokens"]).spans]
    for style, piece in zip(styles, part["tokens"], strict=True):
        special = piece.get("special", False)
        expected = ("bold reverse green",) if special else view_show.LEARNED
        assert style in (expected if piece["learned"] else ("bold",) if special else ("dim",))
    assert set(view_show.LEARNED) < set(styles)
    for settings, marks in (({"force_terminal": True, "color_system": "standard"}, False), ({"no_color": True}, True)):
        console = Terminal(width=80, record=True, **settings)
        view_show.show(Screen(console=console), found)
        assert ("«Yes." in console.export_text()) is marks


def test_a_page_escapes_what_the_data_says(template):
    row = {"messages": [{"role": "user", "content": "<script>\x1b[2J"}, *answer("<b>")]}
    result = {"source": "d<i>", "total": 1, "warnings": ["<u>"], "examples": examples(template, "conversations", row)}
    page = view_show.render(result, [("format", "<em>")])
    text = page.partition("<body>")[2]
    assert not any(tag in text for tag in ("<script", "><<", "<b>", "<i>", "<u>", "<em>", "\x1b"))
    assert '<p class="warning">&lt;u&gt;</p>' in text


def test_the_command_writes_a_page_and_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "What is it?", "chosen": "good", "rejected": "bad"}
    (tmp_path / "d.jsonl").write_text(json.dumps(row) + "\n")
    done = CliRunner().invoke(rlhf, ["data", "inspect", "d.jsonl", "--page", "d.html", "--json", "--examples", "2"])
    assert done.exit_code == 0, done.output
    [example] = json.loads(done.stdout)["examples"]
    assert [part["part"] for part in example["parts"]] == ["prompt", "chosen", "rejected"]
    assert example["parts"][1]["tokens"][-1]["ends"] is True
    assert "d.jsonl: 1 rows" in (tmp_path / "d.html").read_text()
    (tmp_path / "mine.html").write_text("mine")
    done = CliRunner().invoke(rlhf, ["data", "inspect", "d.jsonl", "--page", "mine.html"])
    assert "is no page of this command" in str(done.exception)


def test_validate_fails_where_no_learned_token_ends_the_turn(tmp_path, monkeypatch):
    """The template ends answers with <|im_end|>, and a call of a tool with <|im_start|>, at which no model stops."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{{ m.tool_calls[0].name if m.tool_calls }}"
        "{{ '<|im_start|>' if m.tool_calls else '<|im_end|>' }}{% endfor %}"
    )
    call = [{"role": "assistant", "content": "", "tool_calls": [{"name": "weather", "arguments": {}}]}]
    rows = [{"messages": [*QUESTION, *call]}, {"messages": [*QUESTION, *answer("Yes.")]}]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["data", "validate", "d.jsonl", "--chat-template", "t.jinja"]
    done = CliRunner().invoke(rlhf, [*words, "--model", "builtin"])
    assert done.exit_code == 1
    assert "✗ every row ends with a token at which the model stops: 1 of 2 rows do not" in done.output
    assert "Warning: 1 of 2 rows have an answer that ends with <|im_start|>, " in done.output
    assert "no effect without --model" in str(CliRunner().invoke(rlhf, words).exception)
