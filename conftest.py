"""Fixtures: a two-layer model that trains in milliseconds, and distributions made up on the spot."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from pathlib import Path

import pytest

from rlhf_core import testing

os.environ["OMP_NUM_THREADS"] = "1"  # a model this small is faster so, also in the processes that tests start


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return testing.tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def write_jsonl(tmp_path):
    """Write rows to a file: write_jsonl("data.jsonl", rows) -> path as text."""

    def write(name: str, rows: list) -> str:
        lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Make a distribution importable: distribution("dist", {"module": code}, {"rlhf.rewards": {"name": "module"}})."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(name: str, modules: dict[str, str], points: dict[str, dict[str, str]], requires: str = "") -> None:
        for module, code in modules.items():
            (site / f"{module}.py").write_text(textwrap.dedent(code), encoding="utf-8")
            monkeypatch.delitem(sys.modules, module, raising=False)
        info = site / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nSummary: made up\n"
        (info / "METADATA").write_text(metadata + (f"Requires-Dist: {requires}\n" if requires else ""))
        lines = [f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in names.items()) for group, names in points.items()]
        (info / "entry_points.txt").write_text("\n".join(lines))

    return make
