"""What is wrong with a file or a row is one `UserError` that says where; what only looks odd is read."""

import datetime
import gzip
import io
import json
import os
import socket
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest

from rlhf_core.catalog import Catalog
from rlhf_core.data import files, sources, tables
from rlhf_core.data.loading import load
from rlhf_core.errors import UserError
from rlhf_core.grammar import DataSpec
from rlhf_core.reward_report.answers import read_answers

QA = {"question": "2+2?", "answer": "4"}
GOOD = json.dumps(QA) + "\n"
ROWS = pyarrow.table({"question": ["2+2?"] * 9, "answer": ["4"] * 9})


def parquet(table, **options):
    pyarrow.parquet.write_table(table, file := io.BytesIO(), **options)
    return file.getvalue()


def arrow(table, compression=None, new=pyarrow.ipc.new_file):
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    with new(file := io.BytesIO(), table.schema, options=options) as writer:
        writer.write_table(table)
    return file.getvalue()


def without_rows():
    pyarrow.parquet.ParquetWriter(file := io.BytesIO(), ROWS.schema).close()
    return file.getvalue()


def with_column(values, type=None):
    return ROWS.append_column("more", pyarrow.array(values, type))


PARQUET = parquet(ROWS, compression="snappy")
NOT_TEXT = pyarrow.Array.from_buffers(
    pyarrow.string(), 9, pyarrow.array([b"ok"] * 8 + [b"\xff"], pyarrow.binary()).buffers()
)
TWICE = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["question", "question"])

# name -> (file, its content, what the error says)
REFUSED = {
    "deep": ("a.jsonl", GOOD + '{"question": ' + "[" * 100_000, "a.jsonl line 2: nested too deeply"),
    "deep in a cell": ("a.csv", "messages\n" + "[" * 100_000, "a.csv line 2: formatter messages: messages: nested too deeply"),
    "many digits": ("a.jsonl", GOOD + '{"question": %s}' % ("9" * 5000), "a.jsonl line 2: Exceeds the limit"),
    "many digits in a list": ("a.json", '[{"question": %s}]' % ("9" * 5000), "a.json: Exceeds the limit"),
    "NaN": ("a.jsonl", GOOD + '{"question": NaN, "answer": "x"}', "a.jsonl line 2: .* question is empty"),
    "Infinity": ("a.jsonl", GOOD + '{"question": "q", "answer": -Infinity}', "a.jsonl line 2: .* answer is -inf, not text"),
    "an infinite reference": ("a.jsonl", '{"prompt": "q", "answer": 1e400}', "a.jsonl line 1: .* answer is inf, not text"),
    "half a name": ("a.jsonl", GOOD + '{"question": "q", "answer": "a", "\\ud800": 1}', "a.jsonl line 2: the name of a column"),
    "a list as row": ("a.jsonl", GOOD + "[1]", "a.jsonl line 2: expected an object with named columns, not list\\. 1 of 2"),
    "a row in text": ("a.jsonl", json.dumps(" " + GOOD), "a.jsonl line 1: expected .* not str: it is JSON inside of text"),
    "rows in text": ("a.jsonl", json.dumps(json.dumps([QA])), "a.jsonl line 1: expected .* not str: it is JSON inside of text"),
    "a text": ("a.jsonl", '"What is {?"', "a.jsonl line 1: expected .* not str\\. 1 of 1"),
    "lists as rows": ("a.jsonl", "[1]\n[2]", "a.jsonl line 2 is not JSON: Extra data"),
    "a mark in the middle": ("a.jsonl", GOOD + "\ufeff" + GOOD, "a.jsonl line 2 is not JSON"),
    "not UTF-8 later": ("a.jsonl", GOOD.encode() * 2 + b'{"question": "\xff"}', r"not UTF-8 text \(byte 86, in line 3\)"),
    "options without lists": ("a.jsonl", '{"question": "q", "options": {"label": 5, "text": 6}, "answer": "A"}', "label is not a list"),
    "more labels than options": ("a.jsonl", '{"question": "q", "options": {"label": ["A", "B", "C"], "text": ["x", "y"]}, "answer": "C"}', "3 labels for 2 texts"),
    "an option of nothing": ("a.jsonl", '{"question": "q", "options": [{"label": "A", "text": null}, {"label": "B", "text": "x"}], "answer": "A"}', "text is NoneType"),
    "a role that is a list": ("a.jsonl", '{"messages": [{"role": ["user"], "content": "a"}]}', r"role \['user'\] is not one of"),
    "calls that are none": ("a.jsonl", '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": 5}]}', "tool_calls must be a list"),
    "a part that is no text": ("a.jsonl", '{"messages": [{"role": "user", "content": [{"type": "text", "text": {"a": 1}}]}]}', "is dict, not text"),
    "a score that is none": ("a.jsonl", '{"prompt": "q", "completions": [{"response": "a", "score": NaN}, {"response": "b", "score": 1}]}', "score must be a number"),
    "UTF-16 that is cut": ("a.jsonl", GOOD.encode("utf-16") + b"\x00", "a.jsonl: 'utf-16-le' codec can't decode"),
    "zeros": ("a.jsonl", b"\0\0{}" * 9, "a.jsonl is not text: more than a quarter of its bytes are zero"),
    "an object with two lists": ("a.json", json.dumps({"data": [QA], "rows": [QA]}), "If 'data' holds the rows, save that list alone"),
    "an object with another list": ("a.json", json.dumps({"data": [QA], "test": [QA]}), "If 'data' holds the rows, save that list alone"),
    "an object that holds the columns": ("a.json", '{"question": ["a", "b"], "answer": ["c", "d"]}', r"per line\. It seems to hold columns"),
    "an object of rows by name": ("a.json", json.dumps({"a": QA, "b": QA}), r"one object per line\.$"),
    "a quote left open": ("a.csv", 'question,answer\na,b\n"c,d\ne,f\n', 'a.csv lines 3 to 4: unexpected end of data: a " is not closed'),
    "no names": ("a.csv", "\n\nquestion,answer\n", "a.csv line 1: is empty, and must name the columns"),
    "a broken page": ("a.parquet", PARQUET[:30] + bytes(b ^ 0x55 for b in PARQUET[30:70]) + PARQUET[70:], "can't be read as Parquet after row 0"),
    "a broken table of contents": ("a.parquet", PARQUET[:-200] + b"\xff" * 192 + PARQUET[-8:], "a.parquet is not a Parquet file"),
    "an encrypted file": ("a.parquet", PARQUET[:-4] + b"PARE", "a.parquet is not a Parquet file"),
    "Parquet as text": ("a.jsonl", PARQUET, "a.jsonl is a Parquet file: add .parquet to its name"),
    "text that is none": ("a.parquet", parquet(ROWS.append_column("more", NOT_TEXT)), "a.parquet row 9: column 'more': .*utf-8"),
    "one name twice": ("a.parquet", parquet(TWICE), "two columns have the same name: question"),
    "one name twice in Arrow": ("a.arrow", arrow(TWICE), "two columns have the same name: question"),
    "no rows": ("a.parquet", without_rows(), "there is no row in it"),
    "half of a file": ("a.arrow", arrow(ROWS)[:-300], "a.arrow is not an Arrow file"),
    "half of a stream": ("a.arrow", arrow(ROWS, new=pyarrow.ipc.new_stream)[:-60], "a.arrow (is not an Arrow file|can't be read)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_said_with_its_place(tmp_path, case):
    name, content, message = REFUSED[case]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        load([DataSpec(str(tmp_path / name))], "prompts", Catalog())


YEAR_9999 = pyarrow.array([2**61] * 9, pyarrow.timestamp("us"))
# name -> (file, its content, the second row)
READ = {
    "the ends of lines of old Macs": ("a.jsonl", (GOOD * 2).replace("\n", "\r"), QA),
    "those of Windows": ("a.csv", "question,answer\r\na,b\r\nc,d\r\n", {"question": "c", "answer": "d"}),
    "rows repeated, lines blank": ("a.jsonl", GOOD + "\n \n" + GOOD, QA),
    "a line separator of Unicode": ("a.jsonl", GOOD + '{"a": "x\u2028y\x85"}', {"a": "x\u2028y\x85"}),
    "a list in one line": ("a.jsonl", "\n" + json.dumps([QA, QA]), QA),
    "a list over lines": ("a.json", "\n" + json.dumps([QA, QA], indent=1), QA),
    "a table of one column": ("a.csv", "TEXT\na\nb\n", {"TEXT": "b"}),
    "a column that mixes types": ("a.jsonl", '{"a": 1}\n{"a": {"b": [null]}}', {"a": {"b": [None]}}),
    "NaN in a column that nobody reads": ("a.jsonl", GOOD + '{"a": 1e999}', {"a": float("inf")}),
    "a date that Python can't have": ("a.parquet", parquet(with_column(YEAR_9999)), {**QA, "more": "<value out of range: 2305843009213693952>"}),
    "a duration": ("a.parquet", parquet(with_column([5] * 9, pyarrow.duration("s"))), {**QA, "more": datetime.timedelta(seconds=5)}),
    "a map": ("a.parquet", parquet(with_column([[("k", 1)]] * 9, pyarrow.map_(pyarrow.string(), pyarrow.int64()))), {**QA, "more": [("k", 1)]}),
    "bytes": ("a.parquet", parquet(with_column([b"\xff"] * 9)), {**QA, "more": b"\xff"}),
    "a dictionary": ("a.parquet", parquet(with_column(pyarrow.array(["x"] * 9).dictionary_encode())), {**QA, "more": "x"}),
    "an Arrow file, packed": ("a.arrow", arrow(ROWS, "zstd"), QA),
    "an Arrow stream, packed": ("a.arrow", arrow(with_column(pyarrow.array(["x"] * 9).dictionary_encode()), "lz4", pyarrow.ipc.new_stream), {**QA, "more": "x"}),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_what_only_looks_odd_is_read(tmp_path, case):
    name, content, second = READ[case]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert files.read_file(tmp_path / name)[1].values == second


TEXT = ["x" * 20_000] * 100
DICTIONARY = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 100, pyarrow.int32()), TEXT[:1])
BOMBS = {
    "a.jsonl.gz": gzip.compress(b" " * 1_500_000),
    "b.jsonl.gz": gzip.compress((b" " * 99 + b"\n") * 15_000),
    "a.json.gz": gzip.compress(b"[" + b" " * 1_500_000),
    "a.parquet.gz": gzip.compress(bytes(1_500_000)),
    "a.csv.gz": gzip.compress(b"question,answer\n" + (b"a" * 400 + b",b\n") * 4_000),
    "a.parquet": parquet(pyarrow.table({"question": DICTIONARY}), compression="zstd"),
    "b.parquet": parquet(pyarrow.table({"question": TEXT}), compression="zstd", use_dictionary=False),
    "c.parquet": parquet(pyarrow.table({"question": TEXT}), compression="zstd", store_schema=False),
    "nulls.parquet": parquet(pyarrow.table({"question": pyarrow.nulls(3_000)})),
    "a.arrow": arrow(pyarrow.table({"question": TEXT}), "zstd"),
    "b.arrow": arrow(pyarrow.table({"question": TEXT}), "lz4", pyarrow.ipc.new_stream),
    "c.arrow": arrow(pyarrow.table({"question": DICTIONARY}), "zstd"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_unpacks_to_a_huge_one_is_refused(tmp_path, monkeypatch, name):
    """With smaller limits, so that the test is quick."""
    monkeypatch.setattr(files, "UNPACKED", 1_000_000)
    monkeypatch.setattr(files, "LONGEST", 100_000)
    (tmp_path / name).write_bytes(BOMBS[name])
    with pytest.raises(UserError, match=f"{name}.*(too much for a file of its size|too much for a row)"):
        files.read_file(tmp_path / name)


def test_a_batch_of_parquet_is_smaller_where_a_value_may_be_repeated():
    """100 rows of 20 kB have one text in the file."""
    content = parquet(pyarrow.table({"question": TEXT}), store_schema=False)
    with pytest.raises(UserError, match="take more than 1,000,000 bytes"):
        list(tables.read_parquet("a.parquet", io.BytesIO(content), 1_000_000))
    assert len(list(tables.read_parquet("a.parquet", io.BytesIO(content), 20_000_000))) == 100


def unpacked(table, compression, new=pyarrow.ipc.new_file):
    file = io.BytesIO(arrow(table, compression, new))
    file.seek(8 if new is pyarrow.ipc.new_file else 0)
    return [tables._unpacked(message) for message in pyarrow.ipc.MessageReader.open_stream(file)]


# what `unpacked` is given, the bytes of the schema's, a dictionary's and the rows' message
UNPACKED = {
    "texts": ((pyarrow.table({"a": TEXT}), "zstd"), [0, 101 * 4 + 100 * 20_000]),
    "texts that are not packed": ((pyarrow.table({"a": TEXT}), None), [0, 0]),
    "a dictionary": ((pyarrow.table({"a": DICTIONARY}), "lz4"), [0, 2 * 4 + 20_000, 100 * 4]),
    "a dictionary in a stream": ((pyarrow.table({"a": DICTIONARY}), "zstd", pyarrow.ipc.new_stream), [0, 20_008, 400]),
    "numbers": ((pyarrow.table({"a": [1] * 1000}), "zstd"), [0, 8000]),
    "nothing": ((pyarrow.table({"a": pyarrow.nulls(9)}), "zstd"), [0, 0]),
    "what packing makes longer": ((pyarrow.table({"a": [b"\x07\x81\xfe"]}), "zstd"), [0, 11]),
}  # fmt: skip


@pytest.mark.parametrize("case", UNPACKED)
def test_what_an_arrow_message_unpacks_to_is_known_before(case):
    """Offsets of 4 bytes, and one more than texts; the texts; the places in a dictionary."""
    given, sizes = UNPACKED[case]
    assert unpacked(*given) == sizes


# rows, and the bytes that they take: 400 for a row, its texts, 8 for another value, 4 for the place of a text
TAKEN = {
    "a dictionary": (pyarrow.table({"a": DICTIONARY, "b": [1] * 100}), 100 * (400 + 20_000 + 8)),
    "texts": (pyarrow.table({"a": TEXT}), 100 * (400 + 20_000 + 4)),
    "nothing": (pyarrow.table({"a": pyarrow.nulls(10)}), 10 * 400),
}


@pytest.mark.parametrize("case", TAKEN)
def test_how_much_the_rows_of_a_table_may_take(case):
    rows, size = TAKEN[case]
    assert len(list(tables.read_arrow("a.arrow", io.BytesIO(arrow(rows)), size))) == len(rows)
    with pytest.raises(UserError, match=f"take more than {size - 1:,} bytes"):
        list(tables.read_arrow("a.arrow", io.BytesIO(arrow(rows)), size - 1))


NULLS = pyarrow.table({"question": pyarrow.nulls(3_000)})
TWO_BATCHES = pyarrow.concat_tables([pyarrow.table({"question": TEXT})] * 2)
EARLY = {
    "rows of a Parquet file": (tables.read_parquet, parquet(NULLS), 1_199_999),
    "texts of a Parquet file": (tables.read_parquet, parquet(TWO_BATCHES, use_dictionary=False), 3_000_000),
    "rows of an Arrow file": (tables.read_arrow, arrow(NULLS), 1_199_999),
    "batches of an Arrow file": (tables.read_arrow, arrow(TWO_BATCHES, "zstd"), 3_000_000),
}


@pytest.mark.parametrize("case", EARLY)
def test_a_table_that_is_too_large_is_refused_before_a_row_is_read(case):
    read, content, most = EARLY[case]
    with pytest.raises(UserError, match=f"take more than {most:,} bytes"):
        next(read("a", io.BytesIO(content), most))


def test_a_batch_is_as_small_as_the_columns_of_texts_ask():
    content = parquet(pyarrow.table({"a": TEXT, "b": [1.5] * 100}), use_dictionary=False)
    group = pyarrow.parquet.ParquetFile(io.BytesIO(content)).metadata.row_group(0)
    assert tables._texts(group) == group.column(0).total_uncompressed_size > 100 * 20_000


def test_rows_that_share_a_value_are_made_one_by_one():
    rows = tables.read_arrow("a", io.BytesIO(arrow(pyarrow.table({"question": DICTIONARY}))), 1 << 30)
    tracemalloc.start()
    assert len(next(rows)[1]["question"]) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000


def make_pipe(folder):
    os.mkfifo(folder / "a.jsonl")


def make_socket(folder):
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket has 108 characters at most
    socket.socket(socket.AF_UNIX).bind("a.jsonl")
    os.chdir(here)


NO_FILES = {
    "a pipe": (make_pipe, "a.jsonl: is no regular file"),
    "a socket": (make_socket, "a.jsonl: is no regular file"),
    "a device": (lambda folder: (folder / "a.jsonl").symlink_to("/dev/zero"), "a.jsonl: is no regular file"),
    "a link to nothing": (lambda folder: (folder / "a.jsonl").symlink_to("nowhere"), "a.jsonl: No such file"),
    "a link to itself": (lambda folder: (folder / "a.jsonl").symlink_to("a.jsonl"), "a.jsonl: Too many levels"),
    "a hole": (
        lambda folder: os.truncate(os.open(folder / "a.jsonl", os.O_CREAT | os.O_WRONLY), 1 << 40),
        "is not text",
    ),
}


@pytest.mark.parametrize("case", NO_FILES)
def test_what_is_no_file_is_neither_waited_for_nor_left_out(tmp_path, case):
    make, message = NO_FILES[case]
    make(tmp_path)
    (tmp_path / "b.jsonl").write_text(GOOD)
    with pytest.raises(UserError, match=message):
        sources.read(DataSpec(str(tmp_path)))


def test_links_to_folders_are_followed_once(tmp_path):
    (tmp_path / "data" / "more").mkdir(parents=True)
    (tmp_path / "else").mkdir()
    for name in ("up", "again", "more/up"):
        (tmp_path / "data" / name).symlink_to("..")
    (tmp_path / "data" / "more" / "a.jsonl").write_text(GOOD)
    (tmp_path / "else" / "b.jsonl").write_text(GOOD)
    assert len(sources.read(DataSpec(str(tmp_path / "data")))[0]) == 2


def test_a_folder_of_everything_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MOST_FILES", 2)
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.md").touch()
    with pytest.raises(UserError, match="has more than 2 files. Name the files"):
        sources.read(DataSpec(str(tmp_path)))
    monkeypatch.setattr(sources, "MOST_FILES", 3)
    with pytest.raises(UserError, match="the folder has no"):
        sources.read(DataSpec(str(tmp_path)))


def test_a_folder_that_goes_while_data_is_looked_for_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    (tmp_path / "a.jsonl").write_text(GOOD)
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("gone"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert len(sources.read(DataSpec(str(tmp_path)))[0]) == 1


def test_a_folder_that_can_not_be_read_is_an_error(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=f"^{tmp_path}: Permission denied$"):
        sources.read(DataSpec(str(tmp_path)))


@pytest.mark.parametrize(
    "source", ["x" * 5000, "a/" * 3000, "~nobody-here/a.jsonl", "a\0b.jsonl", "x" * 300 + ".jsonl"]
)
def test_names_that_no_file_can_have(source):
    with pytest.raises(UserError, match="^--data"):
        sources.read(DataSpec(source))


BAD_ANSWERS = {
    "half a character": ('{"prompt": "q", "completion": "\\ud800"}', "line 1: completion has half of a character"),
    "half a character in the prompt": ('{"prompt": [{"role": "user", "content": "\\ud800"}], "completion": "a"}', "prompt has half"),
    "infinite": ('{"prompt": "q", "completion": Infinity}', "completion must be text or a list"),
    "deep": ('{"prompt": "q", "completion": ' + "[" * 900 + "]" * 900 + "}", "line 1: nested too deeply"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_answers_to_score_are_read_as_carefully(tmp_path, case):
    content, message = BAD_ANSWERS[case]
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        read_answers(str(tmp_path / "a.jsonl"), Catalog())


def test_answers_whose_turns_hold_anything_are_grouped(tmp_path):
    turn = {"role": "user", "content": "q", "at": datetime.datetime(2020, 1, 1)}
    rows = pyarrow.table({"prompt": [[turn]] * 2, "completion": ["a", "b"]})
    (tmp_path / "a.parquet").write_bytes(parquet(rows))
    assert len({row.group for row in read_answers(str(tmp_path / "a.parquet"), Catalog()).rows}) == 1


@pytest.mark.parametrize("before", ["", "\ufeff", "\ufeff "])
def test_how_long_a_line_may_be(tmp_path, monkeypatch, before):
    """A list of rows in one line may be longer than a row; a row may be as long as the limit."""
    file = tmp_path / "a.jsonl"
    file.write_text(before + json.dumps([QA, QA]), encoding="utf-8")
    monkeypatch.setattr(files, "LONGEST", len(json.dumps(QA)))
    assert [row.values for row in files.read_file(file)] == [QA, QA]
    file.write_text(json.dumps(QA))
    assert [row.values for row in files.read_file(file)] == [QA]
    file.write_text(json.dumps(QA) + " ")
    with pytest.raises(UserError, match="line 1: has more than"):
        files.read_file(file)


def test_how_much_a_small_file_may_unpack_to(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "UNPACKED", 10)
    monkeypatch.setattr(files, "RATIO", 10)
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(json.dumps(QA).encode()))
    assert [row.values for row in files.read_file(file)] == [QA]
    file.write_bytes(gzip.compress(GOOD.encode() * 100))
    with pytest.raises(UserError, match="unpacks to more than"):
        files.read_file(file)
