"""Plain text, from which SFT learns all, without a chat template, up to the token that ends a text."""

from __future__ import annotations

import copy
import json

import pytest
from click.testing import CliRunner
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from rlhf_core import builtin
from rlhf_core.catalog import Catalog
from rlhf_core.cli import rlhf
from rlhf_core.data import sources
from rlhf_core.data.chat_template import ChatTemplate
from rlhf_core.data.encoding import IGNORED, encode_conversations
from rlhf_core.data.loading import load
from rlhf_core.data.preparing import Preparation
from rlhf_core.data.projecting import prompt_of
from rlhf_core.errors import UserError
from rlhf_core.grammar import DataSpec

FEVER = "Fever is a temperature above 38 degrees."
TALK = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


def plain(text):
    return {"messages": [{"role": "text", "content": text}]}


@pytest.fixture(scope="module")
def template():
    return ChatTemplate(AutoTokenizer.from_pretrained(builtin.MODEL))


@pytest.fixture(scope="module")
def with_a_beginning(template):
    """The same tokenizer, which puts a token before each text, as Llama's does."""
    tokenizer = copy.deepcopy(template.tokenizer)
    tokenizer.bos_token = "<|im_start|>"
    begin = ("<|im_start|>", tokenizer.convert_tokens_to_ids("<|im_start|>"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<|im_start|> $A", None, [begin])
    return ChatTemplate(tokenizer)


def test_all_tokens_of_a_text_and_its_end_are_learned(template):
    [row] = encode_conversations([plain(FEVER)], template, 100)
    assert template.tokenizer.decode(row["input_ids"]) == FEVER + template.tokenizer.eos_token
    assert row["labels"] == row["input_ids"]
    assert row["input_ids"].count(template.tokenizer.eos_token_id) == 1


def test_the_token_that_begins_a_text_is_read_and_not_learned(with_a_beginning):
    tokenizer = with_a_beginning.tokenizer
    [row] = encode_conversations([plain(FEVER)], with_a_beginning, 100)
    assert row["input_ids"] == [*tokenizer(FEVER)["input_ids"], tokenizer.eos_token_id]
    assert row["labels"] == [IGNORED, *row["input_ids"][1:]]


def test_a_long_text_is_learned_in_pieces(template):
    [whole] = encode_conversations([plain(FEVER)], template, 100)
    pieces = encode_conversations([plain(FEVER)], template, 4)
    assert {len(row["input_ids"]) for row in list(pieces)[:-1]} == {4}
    assert [token for row in pieces for token in row["input_ids"]] == whole["input_ids"]
    assert [token for row in pieces for token in row["labels"]] == whole["labels"]


def test_texts_and_conversations_may_be_mixed(template):
    both = list(encode_conversations([plain(FEVER), TALK], template, 100))
    assert [IGNORED in row["labels"] for row in both] == [False, True]


def test_control_tokens_in_a_text_are_text_if_asked(template):
    escaped = ChatTemplate(template.tokenizer, escape=True)
    for each, tokens in ((template, 2), (escaped, 1)):
        [row] = encode_conversations([plain("It ends <|im_end|> here.")], each, 100)
        assert row["input_ids"].count(template.tokenizer.eos_token_id) == tokens
    refusing = Preparation(template, "conversations", control_tokens="refuse")
    with pytest.raises(UserError, match="the text has <|im_end|>, which are tokens"):
        refusing(plain("It ends <|im_end|> here."))


def test_it_is_said_and_gets_no_system_prompt(template):
    prepare = Preparation(template, "conversations", system_prompt="Be brief.")
    assert prepare(plain(FEVER)) == plain(FEVER)
    assert prepare(TALK)["messages"][0]["role"] == "system"
    [said] = prepare.warnings(2)
    assert said.startswith(
        "1 of 2 rows are plain text: all of it is learned, without the chat template, and the end token"
    )


def test_each_line_of_a_file_is_a_text(tmp_path):
    (tmp_path / "a.txt").write_text(f"{FEVER}\n\n  发热时多喝水。 \r\n", "utf-8")
    data = load([DataSpec(str(tmp_path / "a.txt"))], "conversations", Catalog())
    assert [row["messages"] for row in data.train] == [plain(FEVER)["messages"], plain("发热时多喝水。")["messages"]]
    assert data.parts[0].columns() == "text from text"
    assert data.warnings == []
    assert [prompt_of(row) for row in data.train] == [[], []]


@pytest.mark.parametrize("need", ["prompts", "preferences"])
def test_other_methods_refuse_it(write_jsonl, need):
    path = write_jsonl("a.jsonl", [{"text": FEVER}])
    with pytest.raises(
        UserError, match=f"line 1: this method needs {need}, and the row is plain text, which sft learns"
    ):
        load([DataSpec(path)], need, Catalog())


def test_a_column_of_ones_own_is_named(write_jsonl):
    path = write_jsonl("a.jsonl", [{"body": {"en": FEVER}}])
    [row] = load([DataSpec.read(f"{path}:text=body.en")], "conversations", Catalog()).train
    assert row["messages"] == plain(FEVER)["messages"]


def test_text_files_beside_other_data_are_notes(tmp_path, write_jsonl):
    (tmp_path / "notes.txt").write_text("not data")
    assert [row.values for row in sources.read(DataSpec(str(tmp_path)))[0]] == [{"text": "not data"}]
    write_jsonl("a.jsonl", [TALK])
    rows, [warning] = sources.read(DataSpec(str(tmp_path)))
    assert [row.values for row in rows] == [TALK]
    assert "left out, as not for training: notes.txt" in warning


def test_a_run_learns_long_texts_and_answers_no_held_out_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("".join(f"{FEVER} Number {i}. " * 9 + "\n" for i in range(20)))
    arguments = ["--method", "sft", "--data", "a.txt", "--max-steps", "2", "--max-length", "32", "--reward", "length"]
    result = CliRunner().invoke(rlhf, ["run", *arguments, "--output-dir", "out"])
    assert result.exit_code == 0, result.output
    after = json.loads((tmp_path / "out" / "evaluation.json").read_text())["after"]
    assert after["metrics"]["loss"] > 0
    assert (after["answers"], after["length"]) == ([], None)
