"""The built-in data and model: consistent and reproducible, and the model knows the medicine."""

import itertools
import json
import random
import re
from collections import Counter

import pytest

from rlhf_core.builtin import DATA, MODEL, data_file
from scripts.make_builtin import data, items
from scripts.make_builtin.answer_format import final_answer, formatted, has_format
from scripts.make_builtin.conditions import CONDITIONS, DEPARTMENTS
from scripts.make_builtin.flaws import FLAWS
from scripts.make_builtin.phrases import SYSTEM

KINDS = ("prompts", "preferences", "conversations")


def read(kind: str, split: str) -> list[dict]:
    return [json.loads(line) for line in data_file(kind, split).read_text("utf-8").splitlines()]


def last_question(row: dict) -> str:
    if "question" in row:
        return row["question"]
    return [message for message in row["messages"] if message["role"] == "user"][-1]["content"]


def all_questions(row: dict) -> set[str]:
    earlier = [question for question, _ in row.get("history", [])]
    asked = [m["content"] for m in row.get("messages", []) if m["role"] == "user"]
    return {*earlier, *asked, last_question(row)}


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(MODEL, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True)
    return loaded.eval()


# The table


def test_the_table_is_large_enough():
    assert len(CONDITIONS) >= 66
    used = {condition.department for condition in CONDITIONS}
    assert used == set(DEPARTMENTS)
    assert len(used) >= 12


@pytest.mark.parametrize("language", [0, 1], ids=items.LANGUAGES)
def test_no_two_conditions_share_three_symptoms(language):
    for one, other in itertools.combinations(CONDITIONS, 2):
        shared = set(one.symptoms(language)) & set(other.symptoms(language))
        assert len(shared) <= 2, (one.name, other.name, shared)


@pytest.mark.parametrize("language", [0, 1], ids=items.LANGUAGES)
def test_no_name_is_part_of_another_or_of_symptoms_and_advice(language):
    for names in ([c.name[language] for c in CONDITIONS], [d[language] for d in DEPARTMENTS.values()]):
        for one, other in itertools.permutations(names, 2):
            assert one.lower() not in other.lower()
    texts = [c.signs[language] + c.advice[language] + c.red_flag[language] for c in CONDITIONS]
    for condition, text in itertools.product(CONDITIONS, texts):
        assert condition.name[language].lower() not in text.lower()


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.name[1])
def test_every_condition_is_complete_in_both_languages(condition):
    chinese, english = condition.symptoms(0), condition.symptoms(1)
    assert len(chinese) == len(english)
    assert 4 <= len(set(chinese)) == len(chinese) <= 6
    assert len(set(english)) == len(english)
    assert all(condition.name + condition.advice + condition.red_flag)
    assert len(items.people(condition)) >= 2


# The files


def test_the_data_regenerate_byte_for_byte(tmp_path):
    data.write(tmp_path)
    names = {path.name for path in DATA.iterdir()}
    assert names == {path.name for path in tmp_path.iterdir()}
    for name in names:
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes(), name


def test_no_heldout_question_is_in_any_training_file():
    heldout = {last_question(row) for kind in KINDS for row in read(kind, "heldout")}
    training = set().union(*(all_questions(row) for kind in KINDS for row in read(kind, "train")))
    assert len(heldout) > 500
    assert not heldout & training


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_gold_answers_are_what_their_kind_allows(split):
    allowed = {
        "diagnosis": {name for condition in CONDITIONS for name in condition.name},
        "department": {name for pair in DEPARTMENTS.values() for name in pair},
        "choice": set("ABCD"),
    }
    rows = read("prompts", split)
    for row in rows:
        assert row.keys() == {"question", "answer", "kind", "language", "keywords"}
        if row["kind"] == "number":
            assert 0 < int(row["answer"]) <= 2000
        else:
            assert row["answer"] in allowed[row["kind"]]
        assert 2 <= len(row["keywords"]) <= 4
        assert row["kind"] == "choice" or row["answer"] not in row["question"] or row["kind"] == "number"
    counts = Counter(row["kind"] for row in rows)
    assert counts.most_common(1)[0][0] == "diagnosis"
    assert set(counts) == {"diagnosis", "department", "choice", "number"}
    assert 0.4 < sum(row["language"] == "zh" for row in rows) / len(rows) < 0.6


def test_right_answers_name_the_gold_answer_and_the_keywords():
    rng = random.Random(0)
    for _ in range(500):
        item = items.item(rng)
        text = formatted(item.thought, item.reply)
        assert re.search(rf"\b{re.escape(item.answer)}\b", final_answer(text)), text
        assert all(word.lower() in text.lower() for word in item.keywords), (item.keywords, text)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_preferences_have_every_flaw_and_a_chosen_answer_in_the_format(split):
    rows = read("preferences", split)
    assert {row["flaw"] for row in rows} == set(FLAWS)
    for row in rows:
        assert has_format(row["response_chosen"])
        assert row["response_chosen"] != row["response_rejected"]
        assert has_format(row["response_rejected"]) != (row["flaw"] in ("missing_layout", "truncated"))
        assert isinstance(row["system"], str)
        assert all(len(pair) == 2 for pair in row["history"])


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_conversations_alternate_and_answer_in_the_format(split):
    rows = read("conversations", split)
    for row in rows:
        messages = list(row["messages"])
        if messages[0]["role"] == "system":
            assert messages.pop(0)["content"]
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
        assert all(has_format(m["content"]) for m in messages[1::2])
    systems = [row["messages"][0]["content"] for row in rows if row["messages"][0]["role"] == "system"]
    assert 0.03 < len(systems) / len(rows) < 0.2
    assert SYSTEM in systems
    assert 0.03 < sum(len(row["messages"]) > 3 for row in rows) / len(rows) < 0.2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\na\n</think>\n<answer>\nb\n</answer>", True),
        ("  <think>a</think>  <answer>b</answer>\n", True),
        ("", False),
        ("a", False),
        ("<think>a</think>b", False),
        ("<think> </think><answer>b</answer>", False),
        ("<think>a</think><answer>\n</answer>", False),
        ("<think>a</think>x<answer>b</answer>", False),
        ("x<think>a</think><answer>b</answer>", False),
        ("<think>a</think><answer>b</answer>x", False),
        ("<answer>b</answer><think>a</think>", False),
        ("<think>a</think><answer><answer>b</answer></answer>", False),
        ("<think>a</think><answer>b</answer><answer>b</answer>", False),
        ("<think>a</think><answer>b", False),
    ],
)
def test_format(text, expected):
    assert has_format(text) is expected


# Tokenizer and model


def test_tags_are_single_tokens_that_decoding_keeps(tokenizer):
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        ids = tokenizer.encode(tag)
        assert len(ids) == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == tag
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>"), skip_special_tokens=True) == "a"
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_survives_encoding_and_decoding(tokenizer, kind):
    texts = [last_question(row) for row in read(kind, "heldout")]
    texts += [row["response_chosen"] for row in read("preferences", "heldout")]
    texts += ["Élan\t 100 %\n\n  ¿qué? 🩺 龘"]
    assert tokenizer.batch_decode(tokenizer(texts)["input_ids"]) == texts


def test_template_marks_the_assistant_tokens_with_their_end(tokenizer):
    rows = [r["messages"] for r in read("conversations", "heldout") if len(r["messages"]) > 3]
    encoded = tokenizer.apply_chat_template(rows, return_dict=True, return_assistant_tokens_mask=True)
    for messages, ids, mask in zip(rows, encoded["input_ids"], encoded["assistant_masks"], strict=True):
        marked = tokenizer.decode([i for i, masked in zip(ids, mask, strict=True) if masked])
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        assert marked == "".join(f"{answer}<|im_end|>" for answer in answers)


def test_the_rendered_start_of_a_conversation_is_the_start_of_the_rendered_conversation(tokenizer):
    messages = next(r["messages"] for r in read("conversations", "heldout") if len(r["messages"]) > 3)
    full = tokenizer.apply_chat_template(messages, tokenize=False)
    for end in range(1, len(messages)):
        asks = messages[end]["role"] == "assistant"
        part = tokenizer.apply_chat_template(messages[:end], tokenize=False, add_generation_prompt=asks)
        assert full.startswith(part)
    one = [{"role": "user", "content": "?"}]
    assert tokenizer.apply_chat_template(one, tokenize=False) == "<|im_start|>user\n?<|im_end|>\n"


def test_answers_are_short(tokenizer):
    rows = read("preferences", "train")
    lengths = [len(tokenizer.encode(row["response_chosen"])) for row in rows]
    assert sum(lengths) / len(lengths) < 65
    assert max(lengths) <= 110


def test_shipped_files_are_small():
    files = [path for folder in (MODEL, DATA) for path in folder.iterdir()]
    assert sum(path.stat().st_size for path in files) < 9_000_000
    assert (MODEL / "model.safetensors").stat().st_size < 4_500_000


def test_model_names_the_condition(model, tokenizer):
    rows = [row for row in read("prompts", "heldout") if row["kind"] == "diagnosis"][:8]
    chats = [[{"role": "user", "content": row["question"]}] for row in rows]
    batch = tokenizer.apply_chat_template(
        chats,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
        tokenizer_kwargs={"padding_side": "left"},
    )
    ids = model.generate(**batch, max_new_tokens=100, do_sample=False)
    texts = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    named = sum(row["answer"] in text for row, text in zip(rows, texts, strict=True))
    assert named >= 6, texts
