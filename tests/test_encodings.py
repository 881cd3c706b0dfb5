"""Files in other encodings, with other separators and compressions, which are read where it is certain and said."""

from __future__ import annotations

import csv
import gzip
import io
import json

import datasets
import pyarrow
import pytest

from rlhf_core.data import sources
from rlhf_core.data.encodings import encoding_of
from rlhf_core.data.files import read_file
from rlhf_core.errors import UserError
from rlhf_core.grammar import DataSpec

QA = {"question": "发热的病人要做什么检查？", "answer": "先量体温，再看有没有别的症状。"}
LINE = json.dumps(QA, ensure_ascii=False) + "\n"
ENCODINGS = {"utf-16": "UTF-16", "utf-16-le": "UTF-16LE", "utf-16-be": "UTF-16BE", "utf-32": "UTF-32", "gbk": "GBK", "gb18030": "GBK"}  # fmt: skip


def read(path):
    rows, warnings = sources.read(DataSpec(str(path)))
    return [row.values for row in rows], warnings


def packed(content):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def table(separator):
    out = io.StringIO()
    csv.writer(out, delimiter=separator).writerows([QA.keys(), QA.values(), ["a, b; c", 'd\n"e"\tf']])
    return out.getvalue()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz", "a.csv.zst"])
def test_an_encoding_that_is_certain_is_read_and_said(tmp_path, encoding, name):
    text = table(",") if ".csv" in name else f"[{LINE}]" if name == "a.json" else LINE * 3
    content = text.encode(encoding)
    content = gzip.compress(content) if name.endswith(".gz") else packed(content) if name.endswith(".zst") else content
    (tmp_path / name).write_bytes(content)
    rows, warnings = read(tmp_path / name)
    assert rows[0] == QA
    assert warnings == [f"{name}: the text is in {ENCODINGS[encoding]}, and read so"]


def test_a_byte_order_mark_of_utf_8_is_not_worth_a_word(tmp_path):
    (tmp_path / "a.csv").write_text(table(","), "utf-8-sig")
    assert read(tmp_path / "a.csv")[1] == []


NOT_GBK = {
    "UTF-8": LINE.encode() * 50,
    "UTF-8 with a bad byte": LINE.encode() * 50 + b'{"a": "\xff"}\n',
    "ASCII": b'{"a": "b"}\n',
    "Latin-1": "Décidé, créée, réglé, là-bas où çà\n".encode("latin-1") * 9,
    "Korean": "환자는 열이 나고 기침을 합니다. 어떻게 해야 합니까?\n".encode("euc-kr") * 9,
    "Japanese": "熱があるときはどうすればよいですか。水を飲んで休みます。\n".encode("euc-jp") * 9,
    "Japanese of Windows": "熱があるときはどうすればよいですか。水を飲んで休みます。\n".encode("shift-jis") * 9,
    "Chinese of Taiwan": "發熱的病人要做什麼檢查？先量體溫，再看有沒有別的症狀。\n".encode("big5") * 9,
    "Russian": "Что делать при высокой температуре? Пить воду.\n".encode("cp1251") * 9,
    "nothing": b"",
}


@pytest.mark.parametrize("case", NOT_GBK)
def test_what_is_not_certain_is_utf_8(case):
    assert encoding_of(NOT_GBK[case]) == "UTF-8"


def test_a_word_that_is_utf_8_by_chance_does_not_hide_gbk():
    assert encoding_of(LINE.encode("gbk") * 30 + "联通\n".encode("gbk")) == "GBK"


def test_a_start_that_ends_within_a_character_is_no_other_encoding(monkeypatch):
    monkeypatch.setattr("rlhf_core.data.encodings.START", 100)
    assert encoding_of(("啊\n" * 40).encode()[:100]) == "UTF-8"
    assert encoding_of((LINE * 9).encode("gbk")[:100]) == "GBK"


def test_gbk_after_a_long_start_in_ascii_is_an_error_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_core.data.files.START", 20)
    (tmp_path / "a.jsonl").write_bytes(b'{"a": "b"}\n' * 9 + LINE.encode("gbk"))
    with pytest.raises(UserError, match=r"in line 10\); it looks like GBK. Convert it: iconv -f GBK"):
        read_file(tmp_path / "a.jsonl")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_of_a_table_is_found_and_said(tmp_path, separator):
    (tmp_path / "a.csv").write_text(table(separator), "utf-8")
    rows, warnings = read(tmp_path / "a.csv")
    assert rows == [QA, {"question": "a, b; c", "answer": 'd\n"e"\tf'}]
    assert warnings == ([] if separator == "," else [f"a.csv: the columns are separated by {separator!r}, and read so"])


def test_a_comma_goes_first_where_another_sign_would_do(tmp_path):
    (tmp_path / "a.csv").write_text("a;b,c\n1;2,3\n")
    assert read(tmp_path / "a.csv") == ([{"a;b": "1;2", "c": "3"}], [])


def test_one_column_may_have_any_sign_in_its_text(tmp_path):
    (tmp_path / "a.csv").write_text("prompt\na;b\nc;d\n")
    assert read(tmp_path / "a.csv")[0] == [{"prompt": "a;b"}, {"prompt": "c;d"}]


def test_a_cell_over_many_lines_does_not_hide_the_separator(tmp_path):
    text = "line\n" * 60
    (tmp_path / "a.csv").write_text(f'a;b\n1;2\n3;"{text}"\n5;6\n')
    assert [row["a"] for row in read(tmp_path / "a.csv")[0]] == ["1", "3", "5"]


@pytest.mark.parametrize("name", ["a.tsv", "A.TSV", "a.tsv.gz"])
def test_tabs_by_the_name(tmp_path, name):
    content = table("\t").encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read(tmp_path / name) == ([QA, {"question": "a, b; c", "answer": 'd\n"e"\tf'}], [])


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.parquet.zst", "a.JSON.ZST"])
def test_zstd(tmp_path, name):
    content = (LINE * 2).encode()
    if "parquet" in name:
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([QA, QA]), sink)
        content = sink.getvalue().to_pybytes()
    (tmp_path / name).write_bytes(packed(content))
    assert read(tmp_path)[0] == [QA, QA]


@pytest.mark.parametrize("content", [packed(LINE.encode() * 99)[:-9], b"{}"])
def test_zstd_that_is_none(tmp_path, content):
    (tmp_path / "a.jsonl.zst").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.jsonl\.zst"):
        read(tmp_path / "a.jsonl.zst")


def test_zstd_without_its_name_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(packed(LINE.encode()))
    with pytest.raises(UserError, match=r"is compressed by zstd: add \.zst to its name"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["data", "rows", "examples", "train"])
@pytest.mark.parametrize("indent", [None, 1])
def test_the_list_of_rows_within_an_object(tmp_path, name, indent):
    whole = {"version": "1", "about": {"by": "us"}, name: [QA] * 3}
    (tmp_path / "a.json").write_text(json.dumps(whole, indent=indent), "utf-8")
    rows = read_file(tmp_path / "a.json")
    assert [(row.location, row.values) for row in rows] == [(f"a.json row {i} of {name}", QA) for i in (1, 2, 3)]


def test_a_long_object_over_many_lines(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"data": [{"question": str(i)} for i in range(6000)]}, indent=1))
    assert len(read_file(tmp_path / "a.json")) == 6000


def test_a_row_may_have_a_column_that_is_called_as_lists_of_rows_are(tmp_path):
    rows = [{"data": ["问：a", "答：b"]}, {"id": 1, "turns": [QA]}]
    for row in rows:
        (tmp_path / "a.jsonl").write_text(json.dumps(row), "utf-8")
        assert read(tmp_path / "a.jsonl")[0] == [row]


def test_what_datasets_saves(tmp_path):
    rows = datasets.Dataset.from_list([QA] * 3)
    datasets.DatasetDict(train=rows, test=rows.select([0])).save_to_disk(
        tmp_path / "saved", num_shards={"train": 2, "test": 1}
    )
    rows, [warning] = read(tmp_path / "saved")
    assert rows == [QA] * 3
    assert "left out, as not for training: dataset_dict.json, test/data-00000-of-00001.arrow" in warning
