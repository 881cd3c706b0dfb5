"""What the commands write: files appear whole, and nothing that was there before is written over."""

from __future__ import annotations

import json
import os
import stat

import pytest

from rlhf_core import outputs
from rlhf_core.outputs import keep_lines, read_lines, write_whole


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    file.write_text("before")

    def full(descriptor):
        assert file.read_text() == "before"
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_whole(file, "after")
    assert file.read_text() == "before"
    write_whole(file, "after\r\n")
    assert file.read_bytes() == b"after\r\n"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_private_file_is_for_its_owner_and_others_follow_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        for private, mode in ((True, 0o600), (False, 0o644)):
            write_whole(tmp_path / "a", "text", private=private)
            assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode
    finally:
        os.umask(before)


def test_half_a_character_is_written_as_its_escape_in_json(tmp_path):
    write_whole(tmp_path / "a.json", json.dumps(["\ud800 é"], ensure_ascii=False))
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '["\\ud800 é"]'
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == ["\ud800 é"]


def test_a_file_with_the_longest_name_can_be_written(tmp_path):
    write_whole(tmp_path / ("x" * 255), "text")
    assert (tmp_path / ("x" * 255)).read_text() == "text"


LINES = {  # a line -> whether it is an object
    '{"step": 1, "x": "a\u2028b\u0085cd"}'.encode(): True,
    b'{"step": 1}\r': True,
    b'{"step": 1, "x": "\\ud800"}': True,
    b"[1]": False,
    b"null": False,
    b'{"step": 1': False,
    b'{"step": "\xff"}': False,
    b'{"step": ' + b"9" * 5000 + b"}": False,
    b"[" * 100_000: False,
    b"\x00" * 2_000: False,
    b'{"step": 1, "x": "' + b"y" * 300_000 + b'"}': False,  # longer than a line may be
}


def test_json_lines_end_at_line_feeds_and_damage_is_set_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "LONGEST_LINE", 200_000)
    file, whole = tmp_path / "log.jsonl", [line for line, good in LINES.items() if good]
    file.write_bytes(b"".join(line + b"\n" for line in LINES) + b'\n  \n{"step": 9}\n{"step": 1}\n{"half": "\xe4')
    assert [value["step"] for value in read_lines(file)] == [1, 1, 1, 9, 1]
    damaged = [line for line, good in LINES.items() if not good]
    assert keep_lines(file, lambda value: value["step"] < 5) == len(damaged) + 1  # the longest in two parts
    assert file.read_bytes() == b"".join(line + b"\n" for line in [*whole, b'{"step": 1}'])
    aside = (tmp_path / "log.jsonl.damaged").read_bytes()
    assert aside == b"".join(line + b"\n" for line in damaged)
    assert keep_lines(file, lambda value: None) == 4  # what does not say when it was written
    assert file.read_bytes() == b""
    assert keep_lines(tmp_path / "new.jsonl", lambda value: True) == 0
    assert (tmp_path / "new.jsonl").read_bytes() == b""
