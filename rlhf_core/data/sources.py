"""Rows from files, folders and the Hub, each with its location for messages.

.json (a list, or an object per line), .jsonl, .csv and .parquet, each also as .gz. Of a folder, or a Hub repository
whose loading script can't be run, files with `train` in their name are read, or all if there are none.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rlhf_core.errors import UserError, did_you_mean, first_line
from rlhf_core.grammar import DataSpec

KINDS = (".json", ".jsonl", ".csv", ".parquet")
# The medical guide's names for the configurations of shibing624/medical, whose folders have other names.
GUIDE_CONFIGS = {"dpo": "reward", "orpo": "reward", "grpo": "finetune", "ppo": "finetune", "sft": "finetune"}


@dataclass(frozen=True)
class Row:
    """One row and its location, such as `data.jsonl line 3`."""

    location: str
    values: dict[str, Any]


def read(spec: DataSpec) -> tuple[list[Row], list[str]]:
    """(the rows of a source, warnings about the choice of files). Raises `UserError`."""
    path = Path(spec.source).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if _kind(p.name) and not p.name.startswith("."))
        if not files:
            raise UserError(f"{spec.source}: the folder has no {', '.join(KINDS[:-1])} or {KINDS[-1]} file")
        chosen, warnings = _training_files([str(file.relative_to(path)) for file in files], spec.source)
        return [row for name in chosen for row in read_file(path / name)], warnings
    if path.exists():
        return read_file(path), []
    local = path.suffix in (*KINDS, ".gz", ".txt") or spec.source.startswith((".", "/", "~"))
    if local or spec.source.count("/") > 1:
        near = [str(p) for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise UserError(f"{spec.source}: there is no such file or folder.{did_you_mean(spec.source, near)}")
    return _read_hub(spec)


def read_file(path: Path, name: str | None = None) -> list[Row]:
    """The rows of one file, which messages call `name`."""
    kind = _kind(path.name)
    if kind is None:
        raise UserError(f"{path}: can't read {path.suffix or 'this kind of'} files. Known: {', '.join(KINDS)}.")
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: {error}") from error
    rows = []
    for where, values in _parquet(path, content) if kind == ".parquet" else _text(path, content, kind):
        location = f"{name or path.name} {where}"
        if not isinstance(values, dict):
            raise UserError(f"{location}: expected an object with named columns, not {type(values).__name__}")
        rows.append(Row(location, values))
    return rows


def _kind(name: str) -> str | None:
    """The suffix without .gz, if such files can be read."""
    suffix = PurePosixPath(name.removesuffix(".gz")).suffix
    return suffix if suffix in KINDS else None


def _training_files(names: list[str], source: str) -> tuple[list[str], list[str]]:
    """(the names with `train`, or all if there are none, a warning about the others)."""
    chosen = [name for name in names if "train" in PurePosixPath(name).name.lower()]
    if not chosen or len(chosen) == len(names):
        return names, []
    left = [name for name in names if name not in chosen]
    return chosen, [f"{source}: read {', '.join(chosen)}; left out, as not for training: {', '.join(left)}"]


def _text(path: Path, content: bytes, kind: str) -> Iterator[tuple[str, Any]]:
    """("line 3" or "row 3", its value) of each row."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    if kind == ".csv":
        yield from _csv(path, text)
    elif text.lstrip().startswith("["):
        for number, values in enumerate(_json(path, text), start=1):
            yield f"row {number}", values
    else:
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield f"line {number}", _json(path, line, number)


def _json(path: Path, text: str, line: int = 1) -> Any:
    """The value of `text`, which begins in this line of the file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        excerpt = text[max(0, error.pos - 10) : error.pos + 30]
        raise UserError(f"{path} line {line + error.lineno - 1} is not JSON: {error.msg}, at: {excerpt!r}") from error


def _csv(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """The first line names the columns; an empty cell is None."""
    csv.field_size_limit(1 << 30)
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        names = next(lines)
        if len(set(names)) != len(names):
            raise UserError(f"{path}: two columns of the first line have the same name: {', '.join(names)}")
        for cells in filter(None, lines):
            if len(cells) != len(names):
                raise UserError(f"{path} line {lines.line_num}: {len(cells)} cells under {len(names)} columns")
            yield f"line {lines.line_num}", {name: cell or None for name, cell in zip(names, cells, strict=True)}
    except csv.Error as error:
        raise UserError(f"{path} line {lines.line_num}: {error}") from error


def _parquet(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is not a Parquet file: {first_line(error)}") from error
    for number, values in enumerate(rows, start=1):
        yield f"row {number}", values


def _read_hub(spec: DataSpec) -> tuple[list[Row], list[str]]:
    """The `train` split of a Hub data set; of a repository with a loading script, the files of the configuration."""
    import datasets

    try:
        try:
            loaded = datasets.load_dataset(spec.source, spec.config, split="train")
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            return _read_script_repository(spec)
    except UserError:
        raise
    except Exception as error:  # the Hub's client raises a dozen types; all of them mean that it can't be read
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{spec.source}: there is no such file, and it can't be read from the Hub: {reason}") from error
    return [Row(f"{spec.source} row {i}", dict(values)) for i, values in enumerate(loaded, start=1)], []


def _read_script_repository(spec: DataSpec) -> tuple[list[Row], list[str]]:
    """The files of one configuration of a repository whose loading script datasets no longer runs."""
    import huggingface_hub

    files = huggingface_hub.HfApi().list_repo_files(spec.source, repo_type="dataset")
    folders = sorted({name.partition("/")[0] for name in files if "/" in name and _kind(name)})
    config = spec.config if spec.config in folders else GUIDE_CONFIGS.get(spec.config or "", spec.config)
    if config not in folders:
        problem = f"has no configuration {spec.config!r}" if spec.config else "has several configurations"
        raise UserError(f"{spec.source} {problem}: write --data-config with one of {', '.join(folders)}")
    inside = [name for name in files if name.startswith(f"{config}/") and _kind(name)]
    chosen, _ = _training_files(inside, spec.source)
    called = "" if config == spec.config else f" (--data-config {spec.config})"
    local = [Path(huggingface_hub.hf_hub_download(spec.source, name, repo_type="dataset")) for name in chosen]
    rows = [row for path, name in zip(local, chosen, strict=True) for row in read_file(path, name)]
    return rows, [f"{spec.source}: its loading script is not run; read {', '.join(chosen)}{called}"]
