"""From files to rows a method trains on; every error names the location."""

from __future__ import annotations

import csv
import gzip
import json
import re

import datasets
import huggingface_hub
import pyarrow.parquet
import pytest

from rlhf_core.catalog import Catalog
from rlhf_core.data import sources
from rlhf_core.data.formats import choose_formatter
from rlhf_core.data.loading import load
from rlhf_core.data.preparing import with_system
from rlhf_core.errors import UserError
from rlhf_core.grammar import DataSpec, read_data

QA = {"question": "2+2?", "answer": "4"}
PAIR = {"question": "q", "response_chosen": "good", "response_rejected": "bad"}
CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


def load_file(path: str, need: str, formatter: str | None = None, **options):
    return load([DataSpec(path, formatter=formatter)], need, Catalog(), **options)


def read(path: str, config: str | None = None):
    return sources.read(DataSpec(path, config=config))[0]


def test_files_have_no_configurations(tmp_path, write_jsonl):
    for path in (write_jsonl("data.jsonl", [QA]), str(tmp_path)):
        with pytest.raises(UserError, match=r"and finetune a configuration of a Hub dataset"):
            read(path, config="finetune")


def test_jsonl_json_and_folders(tmp_path, write_jsonl):
    write_jsonl("a.jsonl", [QA, "", {**QA, "question": "b"}])
    (tmp_path / "b.json").write_text(json.dumps([QA]))
    (tmp_path / "notes.txt").write_text("not data")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "c.json").write_text(json.dumps([QA]))
    (tmp_path / ".d.json").write_text(json.dumps([QA]))
    assert [row.location for row in read(str(tmp_path))] == ["a.jsonl line 1", "a.jsonl line 3", "b.json row 1"]


def test_a_json_file_with_a_byte_order_mark_and_unicode_separators(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"question": "a\u2028b", "answer": "c"}, ensure_ascii=False), "utf-8-sig"
    )
    assert read(str(tmp_path / "a.jsonl"))[0].values["question"] == "a\u2028b"


# file name, content, what the error says
BAD_FILES = {
    "malformed line": ("a.jsonl", '{"a": 1}\n{"a": 1,,}\n', "a.jsonl line 2 is not JSON"),
    "malformed list": ("a.json", '\n\n[{"a": 1},\n{"a" 1}]', "a.json line 4 is not JSON"),
    "empty": ("a.jsonl", "\n \n", "the file is empty"),
    "empty list": ("a.json", "[]", "there is no row in it"),
    "not objects": ("a.jsonl", '{"a": 1}\n[1, 2]', "a.jsonl line 2: expected an object"),
    "unknown kind": ("a.docx", "x", "can't read .docx files"),
    "no format": ("a.jsonl", '{"frage": "x", "antwort": "y"}', "no formatter fits. a.jsonl line 1 has the columns frage, antwort"),
    "one pretty object": ("a.json", json.dumps(QA, indent=1), r"one JSON object \(question, answer\), not a list of rows"),
    "columns": ("a.json", json.dumps({"question": ["a", "b"], "answer": ["c", "d"]}), "It seems to hold columns"),
    "objects by name": ("a.json", json.dumps({"1": QA, "2": QA}), r"one JSON object \(1, 2\), not a list of rows"),
    "objects over lines": ("a.json", json.dumps(QA, indent=1) * 2, "an object takes several lines"),
    "a huge number": ("a.jsonl", '{"a": ' + "1" * 5000 + "}", "a.jsonl line 1: Exceeds the limit"),
    "semicolons here and there": ("a.csv", "question;answer\na;b;c\n", r"separated by ';' \('question;answer'\)"),
    "tabs here and there": ("a.csv", "question\tanswer\na\n", r"separated by '\\t'"),
    "spaces in names": ("a.csv", "question, answer\na, b\n", "spaces around them"),
    "empty answer": ("a.jsonl", json.dumps(QA) + '\n{"question": "x", "answer": " "}', "a.jsonl line 2: .* answer is empty"),
    "missing in a later row": ("a.jsonl", json.dumps(QA) + '\n{"question": "x"}', "a.jsonl line 2: .* has no answer"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(tmp_path, case):
    name, content, message = BAD_FILES[case]
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_file(str(tmp_path / name), "prompts")


def test_bad_rows_are_counted_and_left_out_with_their_reasons(write_jsonl):
    path = write_jsonl("a.jsonl", [QA, {**QA, "answer": ""}, QA, {"question": "x"}])
    with pytest.raises(
        UserError, match="answer is empty. 2 of 4 rows can't be used, more than .* 0.05 allows. .*--max-bad-rows 2"
    ):
        load_file(path, "prompts")
    data = load_file(path, "prompts", max_bad_rows=2)
    assert (len(data.train), data.parts[0].total) == (2, 2)
    assert data.warnings == [
        f"{path}: left out 1 of 4 rows: formatter question_answer: answer is empty (a.jsonl line 2)",
        f"{path}: left out 1 of 4 rows: formatter question_answer: has no answer; its columns: question (a.jsonl line 4)",
    ]


@pytest.mark.parametrize("allowed", [0.05, 1])
def test_a_file_of_bad_rows_only(write_jsonl, allowed):
    with pytest.raises(
        UserError, match=r"line 1: .* answer is empty. (1|None) of 1 rows can.* be used\. Name the columns"
    ):
        load_file(write_jsonl("a.jsonl", [{**QA, "answer": ""}]), "prompts", max_bad_rows=allowed)


CHINESE = json.dumps({"question": "感冒挂什么科？", "answer": "呼吸科。"}, ensure_ascii=False)
# what the file holds, what the error says
OTHER_CONTENT = {
    "rare characters in GBK": (
        '{"question": "魑魅魍魉"}'.encode("gbk"),
        r"\(byte 14, in line 1\); it looks like GBK. Convert it: iconv -f GBK",
    ),
    "Latin-1": ('{"a": "é à la carte"}'.encode("latin-1"), r"not UTF-8 text \(byte 7, in line 1\): save it in UTF-8"),
    "French in Latin-1": (
        '{"a": "Décidé, créée, réglé"}'.encode("latin-1"),
        r"\(byte 8, in line 1\): save it in UTF-8",
    ),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
    "a web page": (b"\n<!doctype html><html>", "is a web page"),
    "a web page with a mark": (b"\xef\xbb\xbf<!DOCTYPE html>", "is a web page"),
    "a workbook": (b"PK\x03\x04", "Excel"),
}


@pytest.mark.parametrize("case", OTHER_CONTENT)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_content_of_another_kind_is_named(tmp_path, name, case):
    content, message = OTHER_CONTENT[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(str(tmp_path / name))


def test_capital_suffixes_and_arrow_files(tmp_path):
    (tmp_path / "A.JSONL").write_text(json.dumps(QA))
    datasets.Dataset.from_list([QA] * 2).save_to_disk(tmp_path / "saved")
    assert [row.values for row in read(str(tmp_path / "A.JSONL"))] == [QA]
    rows, warnings = sources.read(DataSpec(str(tmp_path / "saved")))
    assert [row.values for row in rows] == [QA] * 2
    assert "dataset_info.json, state.json" in warnings[0]


def test_a_path_that_is_not_there_comes_with_the_nearest(write_jsonl):
    path = write_jsonl("train.jsonl", [QA])
    with pytest.raises(UserError, match="no such file or folder. Did you mean .*train.jsonl"):
        read(path.replace("train", "trian"))


@pytest.mark.parametrize(
    "source",
    [
        *("no/where.CSV", "no/where.gz", "nowhere.txt"),
        "./nowhere",
        "../nowhere",
        "/nowhere",
        "~/nowhere",
        "no/where/else",
        "no/where.csv",
    ],
)
def test_what_looks_like_a_path_is_not_asked_of_the_hub(source):
    with pytest.raises(UserError, match=f"^{source}: there is no such file or folder"):
        read(source)


def test_an_empty_folder(tmp_path):
    with pytest.raises(
        UserError, match=r"the folder has no \.json, \.jsonl, \.csv, \.tsv, \.txt, \.parquet or \.arrow file"
    ):
        read(str(tmp_path))


def test_csv(tmp_path):
    (tmp_path / "a.csv").write_text('question,answer,note\n"2+2,\nor so?",4,\n3+3?,6,x\n,,\n', "utf-8-sig")
    rows = read(str(tmp_path / "a.csv"))
    assert [row.location for row in rows] == ["a.csv line 3", "a.csv line 4"]
    assert rows[0].values == {"question": "2+2,\nor so?", "answer": "4", "note": None}


def test_a_cell_of_a_csv_file_may_be_long(tmp_path):
    csv.field_size_limit(131_072)  # as it is in a new process
    (tmp_path / "a.csv").write_text(f"question,answer\n{'w ' * 100_000},4\n")
    assert len(read(str(tmp_path / "a.csv"))[0].values["question"]) == 200_000


def test_parquet(tmp_path):
    rows = [{**CHAT, "level": 3}, {**CHAT, "level": 4}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    read_back = read(str(tmp_path / "a.parquet"))
    assert [(row.location, row.values) for row in read_back] == [
        ("a.parquet row 1", rows[0]),
        ("a.parquet row 2", rows[1]),
    ]
    assert load_file(str(tmp_path / "a.parquet"), "conversations").train[0]["messages"] == CHAT["messages"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_gzipped(tmp_path, name):
    if name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([QA]), tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
    else:
        content = b"question,answer\n2+2?,4\n" if name == "a.csv" else json.dumps(QA).encode()
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    assert [row.values for row in read(str(tmp_path))] == [QA]


BAD_BYTES = {
    "cut gzip": ("a.jsonl.gz", gzip.compress(json.dumps(QA).encode())[:20], "a.jsonl.gz: .*ended before"),
    "no gzip": ("a.jsonl.gz", b"{}", "a.jsonl.gz: Not a gzipped file"),
    "no parquet": ("a.parquet", b"PAR1 no", "a.parquet is not a Parquet file"),
    "too many cells": ("a.csv", b"question,answer\n1,2\n1,2,3\n", "a.csv line 3: 3 cells under 2 columns"),
    "open quote": ("a.csv", b'question,answer\n1,"2\n', "a.csv line 2: unexpected end of data$"),
    "open quote of a name": ("a.csv", b'"question,answer\n1,2\n', "a.csv lines 1 to 2: unexpected end of data"),
    "one name twice": ("a.csv", b"question,question\n1,2\n", "two columns of the first line have the same name"),
}


@pytest.mark.parametrize("case", BAD_BYTES)
def test_bad_bytes(tmp_path, case):
    name, content, message = BAD_BYTES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_file(str(tmp_path / name), "prompts")


def test_of_a_folder_with_splits_the_training_files_are_read_with_a_warning(tmp_path, write_jsonl):
    write_jsonl("train-1.jsonl", [QA])
    write_jsonl("train-2.jsonl", [QA])
    write_jsonl("test.jsonl", [{**QA, "question": "secret"}])
    data = load_file(str(tmp_path), "prompts")
    assert [row["question"] for row in data.train] == ["2+2?", "2+2?"]
    assert data.warnings == [
        f"{tmp_path}: read train-1.jsonl, train-2.jsonl; left out, as not for training: test.jsonl"
    ]


# files, those that are trained on, those that are evaluated on
SPLITS = {
    "names": (["train-1.jsonl", "test.jsonl"], ["train-1.jsonl"], ["test.jsonl"]),
    "folders": (["data/train/a.jsonl", "data/test/a.jsonl"], ["data/train/a.jsonl"], ["data/test/a.jsonl"]),
    "no training split": (["dev.jsonl", "sft_zh.jsonl"], ["sft_zh.jsonl"], ["dev.jsonl"]),
    "within a longer word": (["constrained.jsonl", "latest.jsonl"], ["constrained.jsonl", "latest.jsonl"], ["constrained.jsonl", "latest.jsonl"]),
    "a word of many": (["medical_train_zh_0.jsonl", "validSet.jsonl"], ["medical_train_zh_0.jsonl"], ["validSet.jsonl"]),
    "written as one": (["trainset.jsonl", "testdata.jsonl", "holdout.jsonl"], ["trainset.jsonl"], ["testdata.jsonl", "holdout.jsonl"]),
    "a training set": (["trainset.jsonl", "notes.jsonl"], ["trainset.jsonl"], ["notes.jsonl"]),
    "a set for tests": (["validset.jsonl", "testdata.jsonl", "a.jsonl"], ["a.jsonl"], ["validset.jsonl", "testdata.jsonl"]),
    "in Chinese": (["训练集.jsonl", "测试集.jsonl"], ["训练集.jsonl"], ["测试集.jsonl"]),
    "written as one in capitals": (["TrainSet.jsonl", "TESTDATA.jsonl"], ["TrainSet.jsonl"], ["TESTDATA.jsonl"]),
    "both": (["train_test.jsonl", "val/train.jsonl"], ["train_test.jsonl"], ["val/train.jsonl"]),
    "training alone": (["train.jsonl"], ["train.jsonl"], ["train.jsonl"]),
    "descriptions": (["dataset_info.json", "data.json"], ["data.json"], ["data.json"]),
}  # fmt: skip


@pytest.mark.parametrize("case", SPLITS)
def test_the_split_of_a_file_is_a_word_of_its_path(case):
    names, train, evaluate = SPLITS[case]
    for use, expected in (("train", train), ("evaluate", evaluate)):
        chosen, warnings = sources.choose_files(names, "folder", use)
        assert chosen == expected
        assert len(warnings) == (len(chosen) < len(names))
        purpose = {"train": "training", "evaluate": "evaluating"}[use]
        assert all(f"left out, as not for {purpose}: " in warning for warning in warnings)


def test_of_many_files_five_are_listed():
    names = [f"test_{i}.json" for i in range(6)]
    for count, listed in ((5, ", ".join(names[:5])), (6, ", ".join(names[:5]) + " and 1 more")):
        _, [warning] = sources.choose_files(["train.json", *names[:count]], "folder", "train")
        assert warning == f"folder: read train.json; left out, as not for training: {listed}"


@pytest.mark.parametrize(
    ("names", "message"), [(["test/a.json"], "all files are for testing"), (["state.json"], "describe")]
)
def test_a_folder_without_a_file_to_train_on(names, message):
    with pytest.raises(UserError, match=message):
        sources.choose_files(names, "folder", "train")


def test_the_training_split_of_a_hub_data_set_is_read(monkeypatch):
    splits = {"train": datasets.Dataset.from_list([QA]), "test": []}
    monkeypatch.setattr(
        datasets, "load_dataset", lambda source, config, split: {("a/b", "c"): splits}[source, config][split]
    )
    [row] = read("a/b", "c")
    assert (row.location, row.values) == ("a/b row 1", QA)


@pytest.fixture
def hub(monkeypatch, tmp_path, write_jsonl):
    """A Hub with one repository, laid out as shibing624/medical is."""
    files = ["README.md", "medical.py", "docs/guide.md", "all.json", "sft/train.json", "pretrain/zh/train.json"]
    files += ["finetune/train_zh_0.json", "finetune/valid_zh_0.json", "reward/train.json"]
    for name in files[3:]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        row = PAIR if "reward" in name else {"instruction": name, "input": "", "output": "o"}
        (tmp_path / name).write_text(json.dumps(row))

    def refuse(*arguments, **options):
        raise RuntimeError("Dataset scripts are no longer supported, but found medical.py")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "list_repo_files", lambda self, repository, repo_type: {"dataset": files}[repo_type]
    )
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda repository, name, repo_type: str({"dataset": tmp_path}[repo_type] / name),
    )


# configuration -> file read
CONFIGS = {"finetune": "finetune/train_zh_0.json", "grpo": "finetune/train_zh_0.json", "dpo": "reward/train.json"}
CONFIGS |= {"sft": "sft/train.json", "pretrain": "pretrain/zh/train.json"}  # folders go before the guide's names


@pytest.mark.parametrize("config", CONFIGS)
def test_a_repository_with_a_loading_script_is_read_without_running_it(hub, config):
    rows, warnings = sources.read(DataSpec("shibing624/medical", config=config))
    assert [row.location for row in rows] == [f"{CONFIGS[config]} line 1"]
    called = f" (--data-config {config})" if config in ("grpo", "dpo") else ""
    assert warnings == [f"shibing624/medical: its loading script is not run; read {CONFIGS[config]}{called}"]


@pytest.mark.parametrize(("config", "message"), [(None, "has several configurations"), ("x", "no configuration 'x'")])
def test_a_configuration_that_such_a_repository_does_not_have(hub, config, message):
    with pytest.raises(
        UserError, match=f"{message}. Write .*:config=NAME, with one of finetune, pretrain, reward, sft$"
    ):
        read("shibing624/medical", config)


def numbered(write_jsonl, name: str, count: int) -> str:
    return write_jsonl(f"{name}.jsonl", [{**QA, "question": f"{name}{i}", name: i} for i in range(count)])


def test_sources_without_weights_are_all_read_and_mixed(write_jsonl):
    specs = [DataSpec(numbered(write_jsonl, name, size)) for name, size in (("a", 30), ("b", 10))]
    one, same, other = (load(specs, "prompts", Catalog(), seed=seed) for seed in (1, 1, 2))
    assert one == same != other
    assert sorted(row["question"] for row in one.train) == sorted(
        [f"a{i}" for i in range(30)] + [f"b{i}" for i in range(10)]
    )
    assert [names[-2] for _, names in one.columns] == ["a", "b"]
    assert {key: one.train[0][key] is None for key in ("a", "b")} in ({"a": False, "b": True}, {"a": True, "b": False})


def test_weights_are_shares_of_the_largest_mixture_without_a_row_twice(write_jsonl):
    specs = read_data(
        [numbered(write_jsonl, "a", 30) + ":weight=1", numbered(write_jsonl, "b", 12) + ":weight=3"], None, None
    )
    data = load(specs, "prompts", Catalog(), seed=1)
    names = [row["question"] for row in data.train]
    assert (sum(n[0] == "a" for n in names), sum(n[0] == "b" for n in names), len(set(names))) == (4, 12, 16)
    assert "4 of 30 rows" in str(data.parts[0])


def test_of_a_source_with_a_small_weight_a_row_is_left(write_jsonl):
    entries = [numbered(write_jsonl, "a", 30) + ":weight=1", numbered(write_jsonl, "b", 12) + ":weight=1000"]
    data = load(read_data(entries, None, None), "prompts", Catalog())
    assert [len(part.chosen or part.rows) for part in data.parts] == [1, 12]


# a row, whether its prompt is the text of one question
TEXT_PROMPTS = {
    "a text": ({"prompt": "q", "completion": "a"}, True),
    "with a system message": ({"system": "S.", "prompt": "q", "completion": "a"}, True),
    "under another name": ({"question": "q", "answer": "a"}, False),
    "messages": ({"prompt": [{"role": "user", "content": "q"}], "completion": "a"}, False),
}


@pytest.mark.parametrize("case", TEXT_PROMPTS)
def test_whether_prompts_are_plain_text(write_jsonl, case):
    row, text = TEXT_PROMPTS[case]
    for need in ("conversations", "prompts"):
        assert load_file(write_jsonl("a.jsonl", [row]), need).text_prompts == text


def test_held_out_data_of_its_own(write_jsonl):
    specs = [DataSpec(numbered(write_jsonl, "a", 30))], [DataSpec(numbered(write_jsonl, "b", 12))]
    data = load(specs[0], "prompts", Catalog(), eval_specs=specs[1], held_out=5)
    assert (len(data.train), [row["question"] for row in data.held_out]) == (30, [f"b{i}" for i in range(5)])


# entries -> sources as they are read, or what the error says
SPECS = {
    "a file": (["a.jsonl"], [DataSpec("a.jsonl")]),
    "with settings": (["a/b:config=c,weight=0.5,formatter=alpaca"], [DataSpec("a/b", 0.5, "c", "alpaca")]),
    "a mapping": ([{"a/b": {"weight": 2}}], [DataSpec("a/b", 2)]),
    "columns": (["a:prompt=b,first_option=1"], [DataSpec("a", first_option=1, columns={"prompt": "b"})]),
    "no option's number": (["a:first_option=2"], "first_option must be 0 or 1"),
    "one weight missing": (["a:weight=1", "b"], "every source has a weight or none; missing for b"),
    "a negative weight": (["a:weight=-1"], "weight must be a number from 0.000001"),
    "no number": (["a:weight=lots"], "weight must be a number from 0.000001"),
    "unknown key": (["a:weigth=1"], "no setting 'weigth'. Did you mean .weight"),
    "two sources in one mapping": ([{"a": {}, "b": {}}], "can't be read"),
    "nothing": ([":weight=1"], "can't be read"),
}


@pytest.mark.parametrize("case", SPECS)
def test_how_sources_are_written(case):
    entries, expected = SPECS[case]
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            read_data(entries, None, None)
    else:
        assert read_data(entries, None, None) == expected
        assert read_data([str(spec) for spec in expected], None, None) == expected


# row, need -> projected row
PROJECTIONS = {
    "qa for prompts": (QA, "prompts", {"prompt": [{"role": "user", "content": "2+2?"}], "answer": "4", "question": "2+2?"}),
    "pair for prompts": (PAIR, "prompts", {"prompt": [{"role": "user", "content": "q"}], "question": "q"}),
    "pair for preferences": (
        PAIR,
        "preferences",
        {"chosen": [{"role": "assistant", "content": "good"}], "rejected": [{"role": "assistant", "content": "bad"}]},
    ),
    "pair for conversations": (
        PAIR,
        "conversations",
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}]},
    ),
    "chat for prompts": (CHAT, "prompts", {"prompt": [CHAT["messages"][0]], "answer": "hello"}),
    "chat for conversations": (CHAT, "conversations", {"messages": CHAT["messages"]}),
}  # fmt: skip


@pytest.mark.parametrize("case", PROJECTIONS)
def test_projection(write_jsonl, case):
    row, need, expected = PROJECTIONS[case]
    projected = load_file(write_jsonl("a.jsonl", [row]), need).train[0]
    assert {key: projected[key] for key in expected} == expected


def test_other_columns_are_passed_through_to_rewards(write_jsonl):
    row = load_file(write_jsonl("a.jsonl", [{**QA, "keywords": ["x"], "level": 3}]), "prompts").train[0]
    assert (row["keywords"], row["level"]) == (["x"], 3)


def test_columns_are_those_of_all_rows_of_each_source(write_jsonl):
    some = write_jsonl("a.jsonl", [QA, {"prompt": "q", "level": 1}, {**QA, "note": "n"}])
    specs = [DataSpec(some), DataSpec(write_jsonl("b.jsonl", [{**QA, "level": 2}]))]
    other = [DataSpec(write_jsonl("c.jsonl", [{"prompt": "p"}]))]
    data = load(specs, "prompts", Catalog(), eval_specs=other, seed=1)
    both = {*QA, "solution", "level", "prompt"}
    assert [set(names) for _, names in data.columns] == [both | {"note"}, both, {"prompt"}]
    assert [source[-7:] for source, _ in data.columns] == ["a.jsonl", "b.jsonl", "c.jsonl"]


def test_data_without_pairs_or_answers_is_refused(write_jsonl):
    with pytest.raises(UserError, match="a.jsonl line 1: this method needs pairs"):
        load_file(write_jsonl("a.jsonl", [QA]), "preferences")
    with pytest.raises(UserError, match="this method needs an answer to learn"):
        load_file(write_jsonl("b.jsonl", [{"messages": CHAT["messages"][:1]}]), "conversations")


def test_held_out_rows_are_a_seeded_share_and_not_trained_on(write_jsonl):
    path = write_jsonl("a.jsonl", [{**QA, "question": f"q{i}"} for i in range(50)])
    one, same, other = (load_file(path, "prompts", held_out=16, seed=seed) for seed in (1, 1, 2))
    assert len(one.held_out) == 5  # a tenth at most
    assert one == same
    assert one.held_out != other.held_out
    assert {r["question"] for r in one.held_out}.isdisjoint(r["question"] for r in one.train)


def test_the_builtin_data_has_its_own_held_out_part():
    data = load_file("builtin", "prompts", held_out=32)
    assert (list(data.parts[0].formats), len(data.held_out)) == (["question_answer"], 32)
    assert len(data.train) == data.parts[0].total  # none of them is held out
    assert {r["question"] for r in data.held_out}.isdisjoint(r["question"] for r in data.train)


FORMATTER = """
from rlhf_core import Example, Formatter, hookimpl
def convert(row): return Example(prompt=[{{"role": "user", "content": "third"}}], answer="third")
@hookimpl
def rlhf_formatters(): return [Formatter("third", columns={columns}, convert=convert)]
"""


def third_party(distribution, columns: str):
    code = FORMATTER.format(columns=columns)
    distribution("third", {"third_module": code}, {"rlhf.formatters": {"third": "third_module"}})


def test_built_in_formatters_go_first_unless_one_is_forced(distribution, write_jsonl):
    third_party(distribution, '{"question", "answer", "level"}')
    path = write_jsonl("a.jsonl", [{**QA, "level": 1}])
    assert load_file(path, "prompts").parts[0].formats == {"question_answer": 1}
    assert load_file(path, "prompts", formatter="third").train[0]["answer"] == "third"


def test_a_third_partys_formatter_is_found_by_its_columns(distribution, write_jsonl):
    third_party(distribution, '{"frage", "antwort"}')
    path = write_jsonl("a.jsonl", [{"frage": "x", "antwort": "y"}])
    assert load_file(path, "prompts").parts[0].formats == {"third": 1}


def test_what_formatters_decide_from_all_rows_is_told(distribution, write_jsonl):
    decides = '"{name}", columns={columns}, decide=lambda rows: ({{}}, f"{{len(rows)}} {name}")'
    code = FORMATTER.replace('"third", columns={columns}', decides)
    modules = {name: code.replace("{name}", name).format(columns={name}) for name in ("frage", "antwort")}
    distribution("third", modules, {"rlhf.formatters": {name: name for name in modules}})
    path = write_jsonl("a.jsonl", [{"frage": "x"}, {"antwort": "y"}, {"frage": "z"}])
    assert sorted(load_file(path, "prompts").warnings) == [f"{path}: 1 antwort", f"{path}: 2 frage"]


def test_a_forced_formatter_that_does_not_fit(distribution, write_jsonl):
    third_party(distribution, '{"frage"}')
    with pytest.raises(UserError, match="formatter third needs frage; the row has question, answer"):
        load_file(write_jsonl("a.jsonl", [QA]), "prompts", formatter="third")


def test_a_broken_formatter_matters_only_when_no_other_fits(distribution, write_jsonl):
    distribution("bad", {"bad_format": "import no_such"}, {"rlhf.formatters": {"bad": "bad_format"}})
    assert load_file(write_jsonl("a.jsonl", [QA]), "prompts").parts[0].formats == {"question_answer": 1}
    with pytest.raises(
        UserError,
        match="could not be loaded: formatter .bad. of bad 1.0: ModuleNotFoundError: No module named .no_such.",
    ):
        load_file(write_jsonl("b.jsonl", [{"frage": "x"}]), "prompts")


def test_the_most_columns_win(write_jsonl):
    rows = read(write_jsonl("a.jsonl", [{**PAIR, "answer": "x"}]))
    assert choose_formatter(rows[0], "a.jsonl", Catalog()).name == "preference"


def test_a_system_prompt_is_added_to_prompts_without_one():
    question, own = {"role": "user", "content": "q"}, {"role": "system", "content": "own"}
    assert with_system([question], "new") == [{"role": "system", "content": "new"}, question]
    assert with_system([own, question], "new") == [own, question]


EXAM = {"question": "Fever?", "options": {"A": "cold", "B": "flu"}, "answer": "B"}
OPEN = {"question": "Describe it.", "options": None, "answer": "Warm."}


def test_each_row_is_read_by_its_own_columns(write_jsonl):
    data = load_file(write_jsonl("a.jsonl", [OPEN, EXAM, {"instruction": "a", "output": "b"}]), "conversations")
    assert data.parts[0].formats == {"question_answer": 1, "multiple_choice": 1, "alpaca": 1}
    assert "formats question_answer (1 rows), multiple_choice (1 rows), alpaca (1 rows)" in str(data.parts[0])
    contents = {row["messages"][0]["content"] for row in data.train}
    assert contents == {"Describe it.", "Fever?\nA. cold\nB. flu", "a"}


def test_a_row_that_fits_no_format_is_named(write_jsonl):
    with pytest.raises(
        UserError, match="line 2: formatter question_answer: has no answer; its columns: question, note. 1 of 2 rows"
    ):
        load_file(write_jsonl("a.jsonl", [QA, {"question": "x", "note": "y"}]), "prompts")


def test_columns_named_by_the_user(write_jsonl):
    path = write_jsonl("a.jsonl", [{"my in": "q", "out,put": "a", "prompt": "not it", "better": "g", "worse": "b"}])
    specs = read_data(
        [{path: {"prompt": "my in", "completion": "out,put"}}, f"{path}:prompt=my in,chosen=better,rejected=worse"],
        None,
        None,
    )
    assert read_data([str(spec) for spec in specs], None, None) == specs
    [row] = load(specs[:1], "conversations", Catalog()).train
    assert [turn["content"] for turn in row["messages"]] == ["q", "a"]
    assert row["my in"] == "q"  # a reward finds it under the data's name
    [row] = load(specs[1:], "preferences", Catalog()).train
    assert [row[key][-1]["content"] for key in ("prompt", "chosen", "rejected")] == ["q", "g", "b"]


def test_a_column_that_no_row_has_is_refused_with_the_nearest(write_jsonl):
    spec = DataSpec.read(write_jsonl("a.jsonl", [{"my_question": "q", "b": "a"}]) + ":prompt=my_qestion,completion=b")
    with pytest.raises(UserError, match="no row has a column 'my_qestion', .* Did you mean 'my_question'"):
        load([spec], "conversations", Catalog())


def test_a_file_whose_name_looks_like_settings(write_jsonl):
    path = write_jsonl("a:lr=3.jsonl", [QA])
    assert DataSpec.read(path) == DataSpec(path)


def test_names_in_capital_letters(write_jsonl):
    row = {"Question": "q", "A": "cold", "B": "flu", "Answer": "B"}
    assert load_file(write_jsonl("a.jsonl", [row]), "prompts").train[0]["answer"] == "B"
    both = {"Prompt": "other", "prompt": "q", "completion": "a"}
    assert load_file(write_jsonl("b.jsonl", [both]), "prompts").train[0]["prompt"][0]["content"] == "q"


def test_what_is_used_and_what_is_not(write_jsonl):
    row = {
        "system": "Be brief.",
        "question": "Fever, what is it?",
        "answer": "Warmth",
        "id": 7,
        "images": ["x.png"],
        "weight": 0,
    }
    part = load_file(write_jsonl("a.jsonl", [row]), "conversations").parts[0]
    assert part.columns() == "prompt from system, question; completion from answer; not used: id, images, weight"
    assert part.warn([]) == [
        f"{part.spec.source}: the columns images, weight may change what should be learned, and nothing uses it"
    ]
    assert part.warn(["images", "weight"]) == []
    pair = {"prompt": "Fever, what is it?", "chosen": "Warmth", "rejected": "Coldness"}
    part = load_file(write_jsonl("b.jsonl", [pair]), "conversations").parts[0]
    assert part.columns() == "prompt from prompt; chosen from chosen; not used: rejected"
    judged = [{"prompt": "Fever, what is it?", "completion": f"Warmth {i}", "label": i > 0} for i in range(2)]
    part = load_file(write_jsonl("c.jsonl", judged), "conversations").parts[0]
    assert part.columns() == "prompt from prompt; completion from completion; also from label"


@pytest.mark.parametrize("label", [False, 0, "False"])
@pytest.mark.parametrize("answer", [{"prompt": "q", "completion": "bad"}, {"messages": CHAT["messages"]}, QA])
def test_answers_that_are_marked_as_bad_are_not_learned(write_jsonl, answer, label):
    rows = [{"prompt": "q", "completion": "good", "label": True}, *[{**answer, "label": label}] * 2]
    data = load_file(write_jsonl("a.jsonl", rows), "conversations")
    assert [row["messages"][-1]["content"] for row in data.train] == ["good"]
    assert "left out 2 of 3 rows: its answer is marked as bad (label, kto_tag, …)" in data.warnings[0]
    assert len(load_file(write_jsonl("b.jsonl", rows), "prompts").train) == 3  # their questions can be answered anew
    with pytest.raises(UserError, match="its answer is marked as bad .* None of 2 rows"):
        load_file(write_jsonl("c.jsonl", rows[1:]), "conversations")


# the values of `label` of three rows, how many of the rows are learned
LABELS = {
    "words": (["good", "bad", "bad"], 1),
    "signs": ([1, -1, None], 2),
    "classes": ([0, 1, 2], 3),
    "names of classes": (["no", "yes", "no"], 3),
}


@pytest.mark.parametrize("case", LABELS)
def test_a_label_with_other_values_than_good_and_bad_is_a_category(write_jsonl, case):
    labels, learned = LABELS[case]
    rows = [{"instruction": "q", "output": f"a{i}", "label": label} for i, label in enumerate(labels)]
    data = load_file(write_jsonl("a.jsonl", rows), "conversations")
    assert len(data.train) == learned
    assert bool(data.parts[0].warn([])) == (learned == 3)


def test_a_column_with_nothing_in_it_is_not_warned_of(write_jsonl):
    rows = [{**CHAT, "images": [], "system": "", "tools": None}] * 2
    assert load_file(write_jsonl("a.jsonl", rows), "conversations").parts[0].warn([]) == []


@pytest.mark.parametrize("learned", [{"weight": 0}, {"loss": False}, {"train": False}, {"training": 0}])
def test_names_for_the_weight_of_a_turn(write_jsonl, learned):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", **learned}]
    [row] = load_file(write_jsonl("a.jsonl", [{"messages": turns}]), "conversations").train
    assert row["messages"][1] == {"role": "assistant", "content": "a", "weight": 0}


def test_a_last_message_that_nobody_answers_is_left_off(write_jsonl):
    turns = [*CHAT["messages"], {"role": "user", "content": "Thanks!"}]
    path = write_jsonl("a.jsonl", [{"messages": turns}, CHAT])
    data = load_file(path, "conversations")
    assert [row["messages"] for row in data.train] == [CHAT["messages"]] * 2
    assert data.warnings == [f"{path}: left off the last message of 1 rows, which nobody answers"]
    assert load_file(path, "prompts").train[0]["prompt"] == turns


# the answers of questions with four options, explanations, the right options, what is said
FIRST_OPTION = {
    "from 0": ([0, 3, 1], [None] * 3, "ADB", ""),
    "from 1": (
        [1, 4, 2],
        [None] * 3,
        "ADB",
        "cop counts the options from 1, as it has the number.*FILE:first_option=0",
    ),
    "explained, from 1": (
        [1, 2],
        ["Ans. (a)", "b is right"],
        "AB",
        "from 1, as explanations name.*FILE:first_option=0",
    ),
    "explained, from 0": ([1, 2], ["Answer: B", "Ans is 'c'"], "BC", "from 0, as explanations name the right letter"),
    "five to two, from 1": ([1] * 7, ["a is right"] * 5 + ["Ans: b"] * 2, "A" * 7, "from 1, as explanations name"),
    "five to two, from 0": ([1] * 7, ["a is right"] * 2 + ["Ans: b"] * 5, "B" * 7, "from 0, as explanations name"),
    "three to two": (
        [1, 2] * 3,
        ["a is right", "Ans: b", "a is right", "Ans: c", "Ans: b", "Ans: c"],
        "BC" * 3,
        "from 0, as usual",
    ),
    "not to be told": ([1, 2], ["A man", None], "BC", "from 0, as usual; the data can't tell. .*FILE:first_option=1"),
}


@pytest.mark.parametrize("case", FIRST_OPTION)
def test_the_number_of_the_first_option_is_decided_by_all_rows(write_jsonl, case):
    numbers, explanations, right, said = FIRST_OPTION[case]
    letters = {"opa": "w", "opb": "x", "opc": "y", "opd": "z"}
    rows = [{"question": "q", **letters, "cop": n, "exp": e} for n, e in zip(numbers, explanations, strict=True)]
    path = write_jsonl("a.jsonl", rows)
    data = load_file(path, "prompts")
    assert sorted(row["answer"] for row in data.train) == sorted(right)
    assert len(data.warnings) == bool(said)
    assert not said or re.search(said, data.warnings[0])
    for name in ("explanation", "rationale"):
        again = [{name if key == "exp" else key: value for key, value in row.items()} for row in rows]
        assert load_file(write_jsonl("a.jsonl", again), "prompts").warnings == data.warnings
    if 0 not in numbers:
        set_by_user = load([DataSpec.read(f"{path}:first_option=1")], "prompts", Catalog())
        assert sorted(row["answer"] for row in set_by_user.train) == sorted("ABCD"[n - 1] for n in numbers)
        assert set_by_user.warnings == []


def test_a_first_option_that_the_data_rules_out_is_refused(write_jsonl):
    path = write_jsonl("a.jsonl", [{"question": "q", "options": ["x", "y"], "cop": number} for number in (0, 1)])
    with pytest.raises(UserError, match="line 1: .*1 of 2 rows"):
        load([DataSpec.read(f"{path}:first_option=1")], "prompts", Catalog())


def test_half_a_character_is_an_error_of_its_row(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(QA) + '\n{"question": "x \\ud83d", "answer": "y"}')
    with pytest.raises(UserError, match="line 2: column 'question' has half of a character.* 1 of 2 rows"):
        load_file(str(tmp_path / "a.jsonl"), "prompts")
    assert len(load_file(str(tmp_path / "a.jsonl"), "prompts", max_bad_rows=1).train) == 1


# the first row, a part of what the error says
NO_FORMAT = {
    "a way on": ({"n": 1}, "Say which column is what: .*a.jsonl:prompt=COLUMN,completion=COLUMN"),
    "a guess": ({"frage": "a"}, "Say which column is what, perhaps: .*a.jsonl:prompt=frage "),
    "a question that nothing answers": (
        {"question": "a", "support": "b"},
        r"columns question, support\. The nearest format, question_answer, also needs answer\. Say which column",
    ),
    "turns as lists": (
        {"messages": [["user", "a"]]},
        r"columns messages\. .* messages must have turns .* not \['user', 'a'\]",
    ),
    "turns as Python prints them": ({"messages": "[{'role': 'user'}]"}, "messages is not JSON"),
    "a name in capital letters": ({"Frage": "a"}, r"has the columns Frage\. "),
    "data instead of names": ({"Is it 3?": "a", "36": "b"}, "here it looks like data"),
    "a number instead of a name": ({"3.5": "a", "b": "c"}, "here it looks like data"),
    "a sentence instead of a name": ({"头痛。": "a", "b": "c"}, "here it looks like data"),
    "a question instead of a name": ({"Is it 3?": "a", "b": "c"}, "here it looks like data"),
    "a question in Chinese": ({"头痛？": "a", "b": "c"}, "here it looks like data"),
    "a sentence in English": ({"It is 3.": "a", "b": "c"}, "here it looks like data"),
    "a long text instead of a name": ({"w" * 41: "a", "b": "c"}, "here it looks like data"),
    "a long name": ({"w" * 40: "a", "b": "c"}, r"columns w+, b\. Say which column"),
    "no data instead of names": ({"frage": "a", "b.c": "c"}, r"columns frage, b\.c\. Say which column"),
}


@pytest.mark.parametrize("case", NO_FORMAT)
def test_why_no_format_fits(write_jsonl, case):
    row, message = NO_FORMAT[case]
    with pytest.raises(UserError, match=message):
        load_file(write_jsonl("a.jsonl", [row]), "prompts")
