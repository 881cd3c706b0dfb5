"""`--formatter ./file.py:name`: a function or a `Formatter` of a file, as `--reward` takes functions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from rlhf_core.catalog import Catalog
from rlhf_core.cli import rlhf
from rlhf_core.data.loading import load
from rlhf_core.errors import UserError
from rlhf_core.grammar import read_data

CODE = """
from helper import question
from rlhf_core import Example, Formatter

def shouted(row):
    return Example(prompt=[question(row["q"].upper())], completion=[{"role": "assistant", "content": row["a"]}])

whispered = Formatter("quiet", {"q"}, lambda row: Example(prompt=[question(row["q"].lower())]))

class Reader: ...

LIMIT = 3
"""
HELPER = 'def question(text):\n    return {"role": "user", "content": text}\n'
ROWS = [{"q": "Is It?", "a": "Yes."}, {"q": "Was It?", "a": "No."}]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The current folder, with a file of formatters and rows that no installed one reads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # which a module by its name adds the current folder to
    Path("mine.py").write_text(CODE)
    Path("helper.py").write_text(HELPER)
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def read(entry, need="prompts", formatter=None):
    return load(read_data([entry], None, formatter), need, Catalog())


@pytest.mark.parametrize("formatter", ["mine.py:shouted", "./mine.py:shouted"])
def test_a_function_reads_the_rows(files, formatter):
    data = read("a.jsonl", "conversations", formatter)
    assert list(data.parts[0].formats) == ["shouted"]
    assert sorted(row["messages"][0]["content"] for row in data.train) == ["IS IT?", "WAS IT?"]
    assert data.parts[0].columns() == "also from q; completion from a"


def test_a_formatter_reads_the_rows_of_its_source_alone(files):
    data = read(f"a.jsonl:formatter={files / 'mine.py'}:whispered")
    assert list(data.parts[0].formats) == ["quiet"]
    assert sorted(row["prompt"][0]["content"] for row in data.train) == ["is it?", "was it?"]


# what --formatter is given, what the error says
REFUSED = {
    "mine.py": "say which function, mine.py:NAME. It has shouted, Reader",
    "mine.py:shuoted": "it has no 'shuoted'. Did you mean 'shouted'",
    "mine.py:LIMIT": "LIMIT is int, neither a function nor a Formatter",
    "mine.py:Reader": "Reader is type, neither a function nor a Formatter",
    "nowhere.py:read": "--formatter: there is no file nowhere.py",
    "no_such_module:read": "--formatter no_such_module: importing it failed",
}


@pytest.mark.parametrize("formatter", REFUSED)
def test_refused(files, formatter):
    with pytest.raises(UserError, match=REFUSED[formatter]):
        read("a.jsonl", formatter=formatter)


def test_a_row_that_its_function_refuses_is_named(files):
    Path("a.jsonl").write_text('{"a": "b"}\n')
    with pytest.raises(UserError, match="line 1: formatter shouted: has no 'q'"):
        read("a.jsonl", formatter="mine.py:shouted")


def test_a_run_notes_the_formatter_and_its_files(files):
    arguments = ["--method", "sft", "--data", "a.jsonl", "--formatter", "mine.py:shouted", "--max-steps", "1"]
    result = CliRunner().invoke(rlhf, ["run", *arguments, "--output-dir", "out"])
    assert result.exit_code == 0, result.output
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert "formatter mine.py:shouted: by path" in manifest["plugins"]
    assert {Path(name).name for name in manifest["files"]} >= {"a.jsonl", "mine.py", "helper.py"}
    assert yaml.safe_load(Path("out/config.yaml").read_text())["formatter"] == "mine.py:shouted"


def test_a_pipeline_looks_for_the_file_before_its_first_stage(files):
    stages = {"stages": {"sft": {"data": ["a.jsonl:formatter=nowhere.py:read"]}}}
    Path("p.yaml").write_text(yaml.safe_dump(stages))
    result = CliRunner().invoke(rlhf, ["pipeline", "--config", "p.yaml", "--dry-run"])
    assert "there is no file nowhere.py" in f"{result.output} {result.exception}"
