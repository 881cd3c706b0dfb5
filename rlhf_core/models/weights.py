"""Names and shapes of the weights in a model's files. Only the headers of safetensors files are read: milliseconds for
any size. What is wrong with the files themselves is one message.
"""

from __future__ import annotations

import json
from pathlib import Path

from rlhf_core.errors import UserError, first_line

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
OTHERS = ("pytorch_model.bin", "pytorch_model.bin.index.json")  # no headers: loading them tells what is wrong
ADAPTER = "adapter_model.safetensors"
POINTER = 1024  # bytes that a pointer of Git LFS has at most
Shapes = dict[str, list[int]]


def read_shapes(path: str, called: str) -> Shapes | None:
    """The shape of each weight of the full model at `path`, a folder or a Hub id; None where no header tells it: other
    formats, and a Hub model that is not downloaded yet. Raises `UserError`.
    """
    folder = Path(path)
    if not folder.is_dir():
        return _downloaded(path, called)
    if (folder / SINGLE).is_file():
        return _header(folder / SINGLE, called)
    if (folder / INDEX).is_file():
        files = [folder / name for name in _shards(folder / INDEX, called)]
        if missing := [file for file in files if not file.is_file()]:
            more = f" ({len(missing)} of {len(files)} files are)" if len(missing) > 1 else ""
            raise UserError(f"{called} is not complete: {missing[0]} is missing{more}. Copy or download it again")
        return {name: shape for file in files for name, shape in _header(file, called).items()}
    names = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if (
        any((folder / name).is_file() for name in OTHERS)
        or "transformers_weights" in names
        or [*folder.glob("*.distcp")]
    ):
        return None
    found = ", ".join(sorted(file.name for file in folder.glob("*.safetensors"))) or "none"
    raise UserError(f"{called} has no weights: {SINGLE} or {INDEX} is missing. Other files of weights there: {found}")


def read_adapter_shapes(folder: Path, called: str) -> Shapes | None:
    """The same of an adapter's folder."""
    if (folder / ADAPTER).is_file():
        return _header(folder / ADAPTER, called)
    if (folder / "adapter_model.bin").is_file():
        return None
    raise UserError(f"{called} has no weights: {folder / ADAPTER} is missing")


def refuse_pointers(folder: Path, called: str) -> None:
    """Raise `UserError` for a file that Git LFS has not fetched."""
    for file in sorted(folder.glob("*")):
        if (
            file.is_file()
            and file.stat().st_size < POINTER
            and file.read_bytes().startswith(b"version https://git-lfs")
        ):
            raise UserError(
                f"{called}: {file} is a Git LFS pointer, not the file itself. Fetch it: git lfs pull, in that folder"
            )


def _downloaded(repository: str, called: str) -> Shapes | None:
    from huggingface_hub import try_to_load_from_cache

    def cached(name: str) -> list[Path]:
        found = try_to_load_from_cache(repository, name)
        return [Path(found)] if isinstance(found, str) else []

    files = cached(SINGLE)
    if not files and (index := cached(INDEX)):
        names = _shards(index[0], called)
        files = [file for name in names for file in cached(name)]
        files = files if len(files) == len(names) else []
    return {name: shape for file in files for name, shape in _header(file, called).items()} or None


def _shards(index: Path, called: str) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{called}: {index} is no index of weights: {first_line(error)}") from error


def _header(file: Path, called: str) -> Shapes:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        size = f"{file.stat().st_size:,} bytes"
        raise UserError(
            f"{called}: {file} ({size}) is damaged or not complete: {first_line(error)}. Copy or download it again"
        ) from error
