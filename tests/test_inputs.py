"""The boundary for what people hand us: each mistake is one `UserError` that says where."""

import datetime
import functools
import os
import signal
import sys
import threading
import time

import pytest
import torch

from rlhf_core import inputs
from rlhf_core.errors import UserError
from rlhf_core.inputs import (
    DEPTH,
    VALUES,
    is_text,
    library_errors,
    parse_json,
    parse_yaml,
    path_of,
    plain,
    read_text,
    time_limit,
)


@pytest.mark.parametrize(
    ("text", "said"),
    {
        "{": r"d.json is not JSON: .* at: '\{'",
        '[\n1,\n2 3]': "d.json line 3 is not JSON",
        "[" * (DEPTH + 1) + "]" * (DEPTH + 1): "d.json: nested too deeply",
        "[" * 100_000: "d.json: nested too deeply",
        '{"a":' * 200 + "1" + "}" * 200: "d.json: nested too deeply",
        "9" * 5000: "d.json: Exceeds the limit",
    }.items(),
    ids=lambda value: str(value)[:12],
)  # fmt: skip
def test_json_that_is_none_or_is_too_deep_says_where(text, said):
    with pytest.raises(UserError, match=said):
        parse_json(text, "d.json")


def test_json_as_deep_as_allowed_and_with_many_brackets_is_read():
    deep = "[" * DEPTH + "]" * DEPTH
    assert str(parse_json(deep, "d.json")) == deep
    assert parse_json("[" + ",".join(["[]"] * 1000) + "]", "d.json") == [[]] * 1000
    most = "[" * DEPTH + "]" * (DEPTH - 1) + ",[]]"
    assert parse_json(most, "d.json")[1] == []
    with pytest.raises(UserError, match="nested too deeply"):
        parse_json(f"[[], {most}]", "d.json")
    assert parse_json('{"text": "' + "[" * 1000 + '"}', "d.json") == {"text": "[" * 1000}


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    {
        "a: [": "c.yaml line 1 is not YAML",
        "a: 1\nb: 2\na: 3": "c.yaml line 1: 'a' is there twice",
        "a: !!python/object/apply:os.system [ls]": "could not determine a constructor",
        "a: *b": "undefined alias",
        "a: 1\nb: &x {c: *x}": r"c.yaml line 2: \*x stands for what it is in",
        "".join(f"a{i}:\n" for i in range(400)) + "a1: 2": "'a1' is there twice",
        "? [a, b]\n: 1": "unhashable",
        "a: 2020-99-99": "c.yaml: month must be in 1..12",
        "a: \x00": "c.yaml.* not YAML",
        BOMB: f"more than {VALUES:,} values",
        "[" * 200: "c.yaml line 1: nested too deeply",
        "a: " + "{b: " * 50_000: "nested too deeply",
        "- " * 5000: "nested too deeply",
        "a: " + "9" * 5000: "c.yaml: Exceeds the limit",
    }.items(),
    ids=lambda value: str(value)[:12],
)  # fmt: skip
def test_yaml_that_is_none_or_explodes_says_where(text, said):
    started = time.monotonic()
    with pytest.raises(UserError, match=said):
        parse_yaml(text, "c.yaml")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "nan is not a finite number"),
        ({"a": [1, {"b": -float("inf")}]}, "-inf is not a finite number"),
        (2**63, "at most 64 bits"),
        ("\ud800", "not valid Unicode"),
        ({"a": [float("inf")], "b": [1]}, "inf is not a finite number"),
        ({"a": {"b": float("inf")}, "c": {"d": 1}}, "inf is not a finite number"),
        ({"\udcff": 1}, "not valid Unicode"),
        ("a\0b", "null character"),
        (datetime.date(2020, 1, 1), "not date \\(text goes in quotes\\)"),
        ([b"x"], "not bytes"),
        ({1, 2}, "not set"),
        (functools.reduce(lambda inner, _: [inner], range(DEPTH + 1), 1), "nested too deeply"),
    ],
)  # fmt: skip
def test_what_no_setting_can_be_is_refused(value, said):
    with pytest.raises(UserError, match=f"^--x: .*{said}"):
        plain(value, "--x")


@pytest.mark.parametrize(
    "value", ["", "诊断\n\t\x1b", 2**63 - 1, -1e300, 5e-324, True, None, {"a": {5: [None]}}, [[]], ()]
)
def test_what_a_setting_can_be_is_as_it_was(value):
    assert plain(value, "--x") is value


def test_yaml_with_merged_and_repeated_values_is_read():
    text = "base: &b {a: 1, b: 2}\nmine:\n  <<: *b\n  a: 3\nlist: [*b, *b]"
    assert parse_yaml(text, "c.yaml") == {
        "base": {"a": 1, "b": 2}, "mine": {"a": 3, "b": 2}, "list": [{"a": 1, "b": 2}] * 2
    }  # fmt: skip


def test_how_many_values_a_yaml_file_may_stand_for(monkeypatch):
    texts = {
        "1": 1,
        "[]": 1,
        "[1, 2]": 3,
        "{a: 1}": 3,
        "[&x 1, *x, *x]": 4,
        "[&x [1, 2], *x]": 7,
        "[[1, [2]], &x b, {a: *x}]": 9,
    }
    for text, number in texts.items():
        monkeypatch.setattr(inputs, "VALUES", number)
        parse_yaml(text, "c.yaml")
        monkeypatch.setattr(inputs, "VALUES", number - 1)
        with pytest.raises(UserError, match="c.yaml: has more than"):
            parse_yaml(text, "c.yaml")


def test_half_of_a_character_is_no_text_wherever_it_is():
    whole = ["", "a", "诊", 1, None, {"诊": ["é", ("x",)]}]
    assert all(is_text(value) for value in [*whole, whole])
    assert not any(is_text(value) for value in ["\ud800", ["a", "\udcff"], {"\ud800": 1}, {"a": [("诊\ud800",)]}])


def test_a_file_that_is_not_regular_too_big_or_not_text_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "big").write_bytes(b"x" * 20)
    (tmp_path / "latin").write_bytes(b"\ncaf\xe9")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name, said in {
        "fifo": "is no regular file", "big": "20 bytes, more than the 10", "latin": "in line 2", "dangling": "No such file",
        ".": "is a folder", "none": "No such file",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=f"--config .*{said}"):
            read_text(tmp_path / name, "--config", limit=10)
    with pytest.raises(UserError, match="no regular file"):
        read_text(path_of("/dev/zero", "--config"))


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "x" * 5000, "a\0b"])
def test_a_name_that_no_file_can_have_is_refused(name):
    with pytest.raises(UserError, match="--data '"):
        path_of(name, "--data")


def test_errors_of_libraries_become_one_message_and_interruptions_do_not():
    for error in (KeyError("x"), RecursionError(), OverflowError("too large\nmore"), UnicodeError("bad")):
        with pytest.raises(UserError, match="^--optim x: [^\n]+$"), library_errors("--optim x"):
            raise error
    with pytest.raises(KeyboardInterrupt), library_errors("--optim x"):
        raise KeyboardInterrupt


def test_what_takes_too_long_is_stopped_and_what_is_quick_is_not():
    with time_limit(5, "x"):
        pass
    with pytest.raises(UserError, match="the template took over 0.1 seconds"), time_limit(0.1, "the template"):
        _go_on_for_ever()


def test_a_time_limit_leaves_no_alarm_and_is_none_on_other_threads():
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(5, "x"):
        assert 4 < signal.getitimer(signal.ITIMER_REAL)[0] <= 5
    assert (signal.getitimer(signal.ITIMER_REAL)[0], signal.getsignal(signal.SIGALRM)) == (0, before)
    found = []

    def elsewhere():
        with time_limit(5, "x"):
            found.append(signal.getitimer(signal.ITIMER_REAL)[0])

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [0]


def test_errors_of_libraries_before_torch_is_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(UserError, match="^x: no"), library_errors("x"):
        raise ValueError("no")


def test_a_run_out_of_memory_is_no_error_of_what_is_read():
    with pytest.raises(torch.OutOfMemoryError), library_errors("--optim x"):
        raise torch.OutOfMemoryError("tried to allocate")


def test_settings_as_deep_as_allowed_are_taken_and_no_deeper():
    value = "x"
    for _ in range(DEPTH - 1):  # what is in the innermost list counts, too
        value = [value]
    assert plain(value, "x") == value
    with pytest.raises(UserError, match="nested too deeply"):
        plain([value], "x")
    assert parse_yaml("[" * (DEPTH - 1) + "1" + "]" * (DEPTH - 1), "x")
    assert parse_json("[" * DEPTH + "1" + "]" * DEPTH, "x")
    with pytest.raises(UserError, match="nested too deeply"):
        parse_json("[" * (DEPTH + 1) + "1" + "]" * (DEPTH + 1), "x")


def _go_on_for_ever():
    while True:
        try:
            time.sleep(0.01)
        except Exception:  # as libraries do; the alarm is none
            continue
