"""What the commands write: files appear whole, and nothing that was there before is written over."""

from __future__ import annotations

import json
import os
import stat

import pytest

from rlhf_core.outputs import write_whole


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
