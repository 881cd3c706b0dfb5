"""Large data stays on disk: the same rows, counts and warnings as in memory, from several processes and from the cache."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import gzip
import json
import math
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_core.catalog import Catalog
from rlhf_core.data import cache, large, loading, parallel, stored
from rlhf_core.data.chat_template import ChatTemplate
from rlhf_core.data.checks import Checks
from rlhf_core.data.encoding import EncodedPairs, encode_conversations, encode_pairs
from rlhf_core.data.lengths import Limits
from rlhf_core.data.loading import load
from rlhf_core.data.preparing import Preparation
from rlhf_core.errors import UserError
from rlhf_core.grammar import DataSpec, read_data
from rlhf_core.method import TrainingOptions

ROWS = [
    {"question": f"Is {n} even?", "response_chosen": f"It is {n}.", "response_rejected": "No.", "level": n % 3}
    for n in range(60)
]
VALUES = {"method": "dpo"}


@pytest.fixture
def on_disk(tmp_path, monkeypatch):
    """on_disk(processes) makes every source a large one, read in small chunks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(processes: int = 1) -> None:
        monkeypatch.setattr(cache, "LARGE", 1)
        monkeypatch.setattr(large, "FIRST", 5)
        monkeypatch.setattr(large, "CHUNK", 7)
        monkeypatch.setattr(parallel, "cores", lambda: processes)

    return make


@pytest.fixture(scope="module")
def template(tiny_model):
    from transformers import AutoTokenizer

    return ChatTemplate(AutoTokenizer.from_pretrained(tiny_model))


def checks(template: ChatTemplate, need: str) -> Checks:
    class Options(TrainingOptions):
        max_length: int = 60

    options = Options(max_prompt_length=40, max_completion_length=30, overlong_completions="truncate")
    return Checks(Preparation(template, need, "Be brief."), Limits(need, options, template))


def odd_rows() -> list:
    """Of everything that is counted: rows of several formats, bad lines, long ones, special tokens, equal answers."""
    rng = random.Random(0)
    rows: list = list(ROWS)
    rows += [{**ROWS[0], "question": "why " * 60}, {**ROWS[0], "response_chosen": "so " * 60}]
    rows += [{**ROWS[1], "response_rejected": ""}, {"question": "a"}, '{"question": "b', "[1]"]
    rows += [{**ROWS[2], "response_chosen": "<|im_end|> [INST]"}, {**ROWS[2], "response_chosen": "No."}]
    rows += [{"prompt": "p", "chosen": "c", "rejected": "r", "new": {"a": [1, None, 1e999]}}] * 3
    rng.shuffle(rows)
    return rows


def as_in_memory(data: loading.Data) -> loading.Data:
    """`data` with what only tells where its rows are put aside."""
    parts = [replace(part, rows=list(part.rows), numbers=list(part.numbers)) for part in data.parts]
    return replace(data, train=list(data.train), rows=list(data.rows), parts=parts)


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("need", ["preferences", "conversations", "prompts"])
def test_rows_on_disk_are_those_in_memory(write_jsonl, on_disk, template, need, processes):
    """Read for the first time, and from the cache."""
    specs = [DataSpec(write_jsonl("a.jsonl", odd_rows())), DataSpec(write_jsonl("b.jsonl", ROWS[:20]))]

    def loaded() -> tuple[loading.Data, list[str]]:
        made = checks(template, need)
        options = {"held_out": 5, "seed": 3, "max_bad_rows": 0.3, "eval_specs": specs[1:]}
        return load(specs, need, Catalog(), preparation=lambda: made, **options), made.warnings()

    expected = loaded()
    on_disk(processes)
    for _ in range(2):
        data, warnings = loaded()
        assert isinstance(data.train, stored.View)
        assert as_in_memory(data) == expected[0]
        assert warnings == expected[1]


def test_the_second_time_no_row_is_read_and_checked(write_jsonl, on_disk, monkeypatch):
    specs = [DataSpec(write_jsonl("a.jsonl", ROWS))]
    on_disk()
    first = load(specs, "preferences", Catalog())
    monkeypatch.setattr(large.Large, "_made", None)
    assert load(specs, "preferences", Catalog()).rows.digest() == first.rows.digest()
    for changed in ([*ROWS, ROWS[0]], [ROWS[1], ROWS[0], *ROWS[2:]]):
        write_jsonl("a.jsonl", changed)
        with pytest.raises(TypeError):  # `_made` would have been called
            load(specs, "preferences", Catalog())


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_the_share_that_is_read_is_told(write_jsonl, on_disk, tmp_path, ending):
    """By bytes, over all files of a source; a small compressed file is read ahead."""
    for name in ("a", "b"):
        content = Path(write_jsonl(f"{name}.jsonl", ROWS)).read_bytes()
        if ending:
            Path(tmp_path / f"{name}.jsonl").unlink()
            (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(content))
    on_disk()
    told: list[float] = []

    def progress(what: str, share: float | None = None) -> None:
        if share is not None:
            assert f": {7 * (len(told) + 1)} rows" in what or share == 1
            told.append(share)

    load([DataSpec(str(tmp_path / f"*.jsonl{ending}"))], "preferences", Catalog(), progress=progress)
    assert told == sorted(told)
    assert told[0] == pytest.approx(0.5 if ending else 7 / 120, abs=0.05)
    assert told[-1] == 1


@pytest.mark.parametrize("what", ["need", "columns", "limits", "template", "formatter"])
def test_what_decides_how_rows_are_read_decides_which_entry_is_used(write_jsonl, on_disk, template, monkeypatch, what):
    path = write_jsonl("a.jsonl", ROWS)
    on_disk()

    def entries(need: str = "preferences", made: Checks | None = None, **settings) -> int:
        load([DataSpec(path, **settings)], need, Catalog(), preparation=lambda: made or checks(template, need))
        return len(list(cache.folder().glob(f"*/{cache.ABOUT}")))

    assert (entries(), entries()) == (1, 1)
    if what == "need":
        assert entries(need="prompts") == 2
    elif what == "columns":
        assert entries(columns={"prompt": "question"}) == 2
    elif what == "limits":
        other = checks(template, "preferences")
        other.limits.options = other.limits.options.model_copy(update={"max_prompt_length": 41})
        assert entries(made=other) == 2
    elif what == "template":
        other = checks(ChatTemplate(template.tokenizer, escape=True), "preferences")
        assert entries(made=other) == 2
    else:
        monkeypatch.setattr(cache, "code_of", lambda catalog: ["another version"])
        assert entries() == 2


def test_a_rule_that_is_not_met_is_an_error_from_the_cache_too(write_jsonl, on_disk):
    specs = [DataSpec(write_jsonl("a.jsonl", [*ROWS, *[{**ROWS[0], "response_chosen": ""}] * 9]))]
    on_disk()
    for _ in range(2):
        with pytest.raises(UserError, match="a.jsonl line 61: .* is empty. 9 of 69 rows can't be used"):
            load(specs, "preferences", Catalog())
    assert len(load(specs, "preferences", Catalog(), max_bad_rows=9).train) == 60


# rows of which the first few can't tell how they are read
LATER = {
    "an exam counts from 0": [
        *[{"question": "q", "answer": "a"}] * 9,
        {"question": "q", "options": ["x", "y"], "cop": 0},
    ],
    "an exam from the start": [{"question": "q", "options": ["x", "y"], "cop": n % 2} for n in range(9)],
    "a format later": [*[{"strange": 1}] * 9, *[{"question": "q", "answer": "a"}] * 9],
    "a column later": [*[{"question": "q", "answer": "a"}] * 9, {"q": "q", "answer": "a"}],
}


@pytest.mark.parametrize("case", LATER)
def test_where_the_first_rows_do_not_tell_all_are_looked_at(write_jsonl, on_disk, case):
    path = write_jsonl("a.jsonl", LATER[case])
    spec = DataSpec(path, columns={"prompt": "q"} if case == "a column later" else {})
    expected = load([spec], "prompts", Catalog(), max_bad_rows=9)
    on_disk(2)
    assert as_in_memory(load([spec], "prompts", Catalog(), max_bad_rows=9)) == expected


def test_a_file_that_no_format_fits_is_refused_with_the_same_words(write_jsonl, on_disk):
    spec = DataSpec(write_jsonl("a.jsonl", [{"strange": n} for n in range(30)]))
    with pytest.raises(UserError) as expected:
        load([spec], "prompts", Catalog())
    on_disk()
    with pytest.raises(UserError) as found:
        load([spec], "prompts", Catalog())
    assert str(found.value) == str(expected.value)


def test_weights_draw_the_same_rows(write_jsonl, on_disk):
    entries = [write_jsonl("a.jsonl", ROWS) + ":weight=1", write_jsonl("b.jsonl", ROWS[:9]) + ":weight=2"]
    specs = read_data(entries, None, None)
    expected = load(specs, "preferences", Catalog(), held_out=2, seed=1)
    on_disk()
    assert as_in_memory(load(specs, "preferences", Catalog(), held_out=2, seed=1)) == expected


VALUES_OF_FILES = {
    "text": "高烧 \ud83d \u2028",
    "numbers": [1, 2**70, -0.5, True, None],
    "infinite": math.inf,
    "time": [datetime.datetime(2020, 1, 2, 3, 4, 5, 6, datetime.UTC), datetime.date(2020, 1, 2), datetime.time(1, 2)],
    "duration": datetime.timedelta(days=-3, microseconds=7),
    "decimal": decimal.Decimal("1.10"),
    "bytes": {"a": b"\x00\xff"},
    "empty": {},
}


@pytest.mark.parametrize("name", VALUES_OF_FILES)
def test_a_row_comes_back_as_it_was(name):
    row = {name: VALUES_OF_FILES[name]}
    assert stored.decode(stored.encode(row)) == row


def test_nan_and_what_no_file_holds():
    assert math.isnan(stored.decode(stored.encode({"a": math.nan}))["a"])
    assert stored.decode(stored.encode({"a": 1j})) == {"a": "1j"}


def table(tmp_path: Path, rows: list[dict]) -> stored.Stored:
    with (tmp_path / "rows.arrow").open("wb") as stream:
        writer = stored.Writer(stream)
        for start in range(0, len(rows), 4):
            numbers = range(start, min(start + 4, len(rows)))
            writer.write(numbers, [stored.encode(rows[number]) for number in numbers])
        digest = writer.close()
    return stored.Stored(tmp_path / "rows.arrow", digest)


def test_rows_of_several_tables_are_one_sequence(tmp_path):
    (tmp_path / "b").mkdir()
    one, other = [{"a": n} for n in range(9)], [{"b": n} for n in range(5)]
    view = stored.View(
        [table(tmp_path, one), table(tmp_path / "b", other)], stored.array("q", [10, 0, 13, 8]), ["a", "b"]
    )
    expected = [{"a": None, "b": 1}, {"a": 0, "b": None}, {"a": None, "b": 4}, {"a": 8, "b": None}]
    assert [*view] == [view[i] for i in range(4)] == expected
    assert [*view[1:3]] == expected[1:3]
    assert view[-1] == expected[-1]
    with pytest.raises(IndexError):
        view[4]
    assert one[2:5] == table(tmp_path, one)[2:5]


def test_a_digest_is_of_rows_columns_and_order(tmp_path):
    def digest(rows: list[dict], order: list[int], names: str = "ab") -> str:
        return stored.View([table(tmp_path, rows)], stored.array("q", order), list(names)).digest()

    same = [{"a": 1}, {"a": 2}]
    others = {digest(same, [1, 0]), digest(same, [0]), digest(same, [0, 1], "ac"), digest([{"a": 1}, {"a": 3}], [0, 1])}
    assert len({digest(same, [0, 1]), *others}) == 5
    assert digest(same, [0, 1]) == digest(list(same), [0, 1])


def test_pairs_on_disk_are_encoded_when_they_are_asked_for(write_jsonl, on_disk, template):
    spec = DataSpec(write_jsonl("a.jsonl", ROWS))
    rows = load([spec], "preferences", Catalog()).train
    expected = list(encode_pairs(rows, template, 20))
    on_disk()
    pairs = encode_pairs(load([spec], "preferences", Catalog()).train, template, 20)
    assert isinstance(pairs, EncodedPairs)
    assert [pairs[i] for i in range(len(pairs))] == expected
    assert pairs[3:5][1] == expected[4]


def test_conversations_on_disk_are_encoded_once(write_jsonl, on_disk, template, monkeypatch):
    spec = DataSpec(write_jsonl("a.jsonl", ROWS))
    rows = load([spec], "conversations", Catalog()).train
    expected = list(encode_conversations(rows, template, 20))
    on_disk(2)
    rows = load([spec], "conversations", Catalog()).train
    assert list(encode_conversations(rows, template, 20)) == expected
    monkeypatch.setattr(parallel, "in_order", None)
    assert list(encode_conversations(rows, template, 20)) == expected


def test_small_data_is_not_kept(write_jsonl, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert isinstance(load([DataSpec(write_jsonl("a.jsonl", ROWS))], "preferences", Catalog()).train, list)
    assert not (tmp_path / "cache").exists()


def test_entries_that_were_not_used_for_long_make_room(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cache, "MOST", 250)

    def write(key: str, at: int) -> None:
        with cache.writing(key) as (stream, about, _):
            stream.write(b"x" * 100)
            about["key"] = key
        os.utime(cache.folder() / key / cache.ABOUT, (at, at))

    for number, key in enumerate("abc"):
        write(key, number)
    assert [key for key in "abc" if cache.find(key)] == ["b", "c"]
    write("d", 0)
    assert [key for key in "abcd" if cache.find(key)] == ["c", "d"]


def test_an_entry_that_is_not_finished_is_not_found(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with contextlib.suppress(KeyboardInterrupt), cache.writing("a") as (stream, _, _):
        stream.write(b"x")
        raise KeyboardInterrupt
    assert cache.find("a") is None
    assert list(cache.folder().iterdir()) == []


def test_a_damaged_entry_is_not_used_and_what_was_left_goes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, age in (("old", 2 * cache.DAY), ("new", 0)):
        (cache.folder() / f".writing-{name}").mkdir(parents=True)
        os.utime(cache.folder() / f".writing-{name}", (time.time() - age,) * 2)
    with cache.writing("a") as (stream, _, path):
        stream.write(b"x" * 10)
    assert cache.find("a")[0] == path
    os.truncate(path, 9)
    assert cache.find("a") is None
    assert [left.name for left in cache.folder().glob(".writing-*")] == [".writing-new"]


def test_a_cache_that_can_not_be_written_is_a_message(tmp_path, monkeypatch, write_jsonl, on_disk):
    spec = DataSpec(write_jsonl("a.jsonl", ROWS))
    on_disk()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="Not a directory. Rows of large data are kept there: set XDG_CACHE_HOME"):
        load([spec], "preferences", Catalog())


def work(number: int) -> int:
    if number == 7:
        raise UserError("seven")
    if number == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * 2


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_results_come_in_order_and_errors_where_they_are_wanted(processes):
    assert list(parallel.in_order(work, range(6), processes)) == [0, 2, 4, 6, 8, 10]
    assert list(parallel.in_order(work, [], processes)) == []
    results = parallel.in_order(work, range(8), processes)
    assert [next(results) for _ in range(7)] == list(range(0, 14, 2))
    with pytest.raises(UserError, match="seven"):
        next(results)


def test_a_process_that_was_killed_is_told():
    with pytest.raises(UserError, match="was killed: is there enough memory"):
        list(parallel.in_order(work, [8, 1, 2, 3], 2))


def test_a_run_on_large_data_resumes_with_its_rows_in_their_order(go, on_disk):
    """From the cache, and as it would from memory."""

    def losses(**values) -> list[float]:
        code, folder = go(max_steps=2, save_steps=1, **values)
        assert code == 0
        logged = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [line["loss"] for line in logged if "loss" in line]

    in_memory = losses()
    on_disk()
    assert losses(output_dir="disk") == in_memory
    assert go(resume=True, output_dir="disk", max_steps=4)[0] == 0


def test_grpo_trains_on_rows_that_are_on_disk(go, on_disk):
    on_disk()
    Path("ones.py").write_text("def ones(completions, level, **_): return [float(n) for n in level]")
    assert go(method="grpo", reward="./ones.py:ones", max_steps=2, max_completion_length=4)[0] == 0


FILES = ("a-1.jsonl", "a-2.jsonl", "b.jsonl", "test.jsonl", "deep/a-3.jsonl", "a.md")
PATTERNS = {
    "*.jsonl": ["a-1", "a-2", "b"],
    "a-*.jsonl": ["a-1", "a-2"],
    "a-?.jsonl": ["a-1", "a-2"],
    "a-[2-9].jsonl": ["a-2"],
    "**/*.jsonl": ["a-1", "a-2", "b", "a-3"],
    "*": ["a-1", "a-2", "b"],
    "t*.jsonl": None,
    "c*.jsonl": None,
    "*.md": None,
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_files_are_read_by_patterns_as_those_of_a_folder(tmp_path, pattern):
    (tmp_path / "deep").mkdir()
    for name in FILES:
        (tmp_path / name).write_text(json.dumps({"question": Path(name).stem, "answer": "a"}))
    spec = DataSpec(str(tmp_path / pattern))
    if (expected := PATTERNS[pattern]) is None:
        with pytest.raises(UserError, match="no file of data matches this pattern|all files are for testing"):
            load([spec], "prompts", Catalog())
        return
    data = load([spec], "prompts", Catalog())
    assert [row["question"] for row in sorted(data.rows, key=lambda row: expected.index(row["question"]))] == expected
    assert ("test.jsonl" in " ".join(data.warnings)) == (pattern.startswith("*"))
    assert ("a.md" in " ".join(data.warnings)) == (pattern == "*")


def test_a_file_with_the_signs_of_a_pattern_in_its_name_is_that_file(tmp_path):
    for name in ("a[1].jsonl", "a1.jsonl"):
        (tmp_path / name).write_text(json.dumps({"question": name, "answer": "a"}))
    [row] = load([DataSpec(str(tmp_path / "a[1].jsonl"))], "prompts", Catalog()).rows
    assert row["question"] == "a[1].jsonl"


def test_many_shards_are_one_source(tmp_path, on_disk):
    for number in range(40):
        (tmp_path / f"shard-{number:03}.jsonl").write_text(json.dumps({"question": f"{number}", "answer": "a"}) + "\n")
    expected = load([DataSpec(str(tmp_path / "shard-*"))], "prompts", Catalog())
    assert (len(expected.parts), len(expected.rows)) == (1, 40)
    on_disk(2)
    assert as_in_memory(load([DataSpec(str(tmp_path / "shard-*"))], "prompts", Catalog())) == expected


def test_work_beside_gets_all_chunks_and_what_it_raises_is_raised_here(monkeypatch):
    def total(chunks):
        return os.getpid(), sum(sum(chunk) for chunk in chunks)

    def refuse(chunks):
        raise UserError(f"not {next(chunks)}")

    monkeypatch.setattr(parallel, "cores", lambda: 2)
    process, found = parallel.beside(total, ([i] * 1000 for i in range(100)))
    assert (found, process != os.getpid()) == (4950 * 1000, True)
    with pytest.raises(UserError, match=r"not \[0"):
        parallel.beside(refuse, ([i] * 100_000 for i in range(100)))
    monkeypatch.setattr(parallel, "cores", lambda: 1)
    assert parallel.beside(total, [[1], [2]]) == (os.getpid(), 3)
