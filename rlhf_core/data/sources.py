"""The rows of a source: a file, a folder, or a Hub repository.

Of a folder, or a Hub repository whose loading script can't be run, the training files are read: a file belongs to the
split that its name, or the name of a folder around it, has as a word (`train`, `test`, `dev`, …).
"""

from __future__ import annotations

import errno
import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from rlhf_core.data.files import KINDS, PACKED, Row, kind, notes, rows_of
from rlhf_core.data.left_out import Refuse
from rlhf_core.data.progress import Position
from rlhf_core.errors import UserError, did_you_mean
from rlhf_core.grammar import DataSpec
from rlhf_core.inputs import library_errors, path_of

Use = Literal["train", "evaluate"]
WORDS = {
    "train": ("train", "training", "训练"),
    "evaluate": (
        *("test", "testing", "dev", "val", "valid", "validate", "validation", "eval", "evaluation"),
        *("heldout", "holdout", "测试", "验证"),
    ),
}
UNPACKS = 4  # times that a compressed file unpacks to, about
MOST_FILES = 100_000  # of any kind below a folder: more means that it is none of data, such as /
# Files that describe a data set: those of datasets, of the Hub, and LLaMA-Factory's list of its data sets.
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json")
# The medical guide's names for the configurations of shibing624/medical, whose folders have other names.
GUIDE_CONFIGS = {"dpo": "reward", "orpo": "reward", "grpo": "finetune", "ppo": "finetune", "sft": "finetune"}


@dataclass(frozen=True)
class Source:
    """The files of a source, with the names that messages call them, or a data set of the Hub. `warnings` are about the
    choice of files.
    """

    name: str
    files: Sequence[tuple[Path, str]]
    warnings: Sequence[str] = ()
    hub: Any = None

    def rows(self, refuse: Refuse | None = None, position: Position | None = None) -> Iterator[Row]:
        """The rows, read anew each time. `refuse` is told of those that can't be read, which are an error otherwise,
        and `position` where reading is.
        """
        for path, name in self.files if self.hub is None else ():
            yield from rows_of(path, name, refuse, position)
        if self.hub is not None:
            with library_errors(f"{self.name}: its rows can't be read"):
                for number, values in enumerate(self.hub, start=1):
                    yield Row(f"{self.name} row {number}", dict(values))

    def __iter__(self) -> Iterator[Row]:
        """The rows that can be read, anew each time."""
        return self.rows(lambda location, error: None)

    @property
    def size(self) -> int:
        """The bytes of its files; compressed ones count for more, as they are unpacked."""
        sizes = {path: path.stat().st_size if path.is_file() else 0 for path, _ in self.files}
        return sum(
            size * (UNPACKS if path.suffix.lower() in (*PACKED, ".parquet") else 1) for path, size in sizes.items()
        )


def read(spec: DataSpec, use: Use = "train", refuse: Refuse | None = None) -> tuple[list[Row], list[str]]:
    """(the rows of a source, warnings about the choice of files). Raises `UserError`.

    `refuse` is told of rows that can't be read, which are an error otherwise.
    """
    source = find(spec, use)
    return list(source.rows(refuse)), list(source.warnings)


def find(spec: DataSpec, use: Use = "train") -> Source:
    """The files of a source. Raises `UserError` if there are none."""
    path = path_of(spec.source, "--data")
    if spec.config and path.exists():
        raise UserError(
            f"{spec.source} is a {'folder' if path.is_dir() else 'file'}, and {spec.config} a configuration of a Hub "
            f"dataset (--data-config): leave it out, or write it where it belongs: OWNER/NAME:config={spec.config}"
        )
    if path.is_dir():
        names = sorted(_files_below(path))
        if not names:
            raise UserError(f"{spec.source}: the folder has no {', '.join(KINDS[:-1])} or {KINDS[-1]} file")
        return _chosen(path, names, spec.source, use)
    if path.exists():
        return Source(spec.source, [(path, path.name)], notes([(path, path.name)]))
    if any(sign in spec.source for sign in "*?["):
        return _matching(path, spec.source, use)
    local = path.suffix.lower() in (*KINDS, *PACKED, ".txt") or spec.source.startswith((".", "/", "~"))
    if local or spec.source.count("/") > 1:
        near = [str(p) for p in path.parent.glob("*")]
        raise UserError(f"{spec.source}: there is no such file or folder.{did_you_mean(spec.source, near)}")
    return _of_hub(spec)


def _chosen(folder: Path, names: list[str], source: str, use: Use) -> Source:
    """Those of the files `names` in a folder that are for this use."""
    chosen, warnings = choose_files(names, source, use)
    files = [(folder / name, name) for name in chosen]
    return Source(source, files, [*warnings, *notes(files)])


def _matching(pattern: Path, source: str, use: Use) -> Source:
    """The files that a pattern matches, `data/*.jsonl` or `data/**/*.jsonl`: as those of a folder, by their names."""
    folder = next(parent for parent in pattern.parents if not any(sign in str(parent) for sign in "*?["))
    found = sorted(glob.iglob(str(pattern.relative_to(folder)), root_dir=folder, recursive=True))
    names = [name for name in found if (folder / name).is_file()]
    readable = [name for name in names if kind(name)]
    if not readable:
        others = f": it matches {_listed(names)}, and data is {', '.join(KINDS)}" if names else ""
        raise UserError(f"{source}: no file of data matches this pattern{others}")
    made = _chosen(folder, readable, source, use)
    left = [name for name in names if name not in readable]
    more = [f"{source}: left out, as no files of data: {_listed(left)}"] if left else []
    return replace(made, warnings=[*made.warnings, *more])


def _files_below(folder: Path) -> Iterator[str]:
    """The paths of the files to read, without hidden ones. Links are followed, but not in circles.

    Links to nothing and pipes are among them: reading one says what is wrong with it.
    """
    seen, count = set(), 0

    def refuse(error: OSError) -> None:
        if error.errno == errno.ENOENT and error.filename != str(folder):
            return  # a folder that went meanwhile, as those of processes do
        raise UserError(f"{error.filename}: {error.strerror}") from error

    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        count += len(files)
        if count > MOST_FILES:
            raise UserError(f"{folder}: has more than {MOST_FILES:,} files. Name the files, or a folder of data alone")
        below = Path(place).relative_to(folder)
        yield from ((below / name).as_posix() for name in files if kind(name) and not name.startswith("."))


def choose_files(names: list[str], source: str, use: Use) -> tuple[list[str], list[str]]:
    """(the files to read, a warning about the others).

    To train: those of a training split, else those of no split. To evaluate: those of another split, else all.
    """
    data = [name for name in names if PurePosixPath(name).name not in DESCRIPTIONS]
    data = [name for name in data if kind(name) != ".txt"] or data  # beside other data, texts are notes
    if not data:
        raise UserError(f"{source} has only {', '.join(names)}, which describe data and hold no rows")
    splits = {name: split_of(name) for name in data}
    wanted: tuple[Use | None, ...] = ("train", None) if use == "train" else ("evaluate", None, "train")
    chosen = next((found for split in wanted if (found := [name for name in data if splits[name] == split])), [])
    if not chosen:
        raise UserError(
            f"{source}: all files are for testing, by their names ({_listed(data)}), and so not for training. "
            "To train on one of them all the same, write it as --data."
        )
    left = [name for name in names if name not in chosen]
    purpose = "training" if use == "train" else "evaluating"
    return chosen, [
        f"{source}: read {_listed(chosen)}; left out, as not for {purpose}: {_listed(left)}"
    ] if left else []


def split_of(name: str) -> Use | None:
    """What the words of a file's path say it is for. `train` within a longer word says nothing."""
    found: Use | None = None
    for part in name.split("/"):
        words = set(re.findall(r"[A-Z]?[a-z]+|[A-Z]+|训练|测试|验证", part))
        words = {word.lower().removesuffix("set").removesuffix("data") for word in words}
        if words & set(WORDS["train"]):
            found = found or "train"
        elif words & set(WORDS["evaluate"]):
            found = "evaluate"
    return found


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def _of_hub(spec: DataSpec) -> Source:
    """The `train` split of a Hub data set; of a repository with a loading script, the files of the configuration."""
    import datasets

    with library_errors(f"{spec.source}: there is no such file, and it can't be read from the Hub"):
        try:
            loaded = datasets.load_dataset(spec.source, spec.config, split="train")
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            return _of_script_repository(spec)
    return Source(spec.source, [(Path(file["filename"]), "") for file in loaded.cache_files], hub=loaded)


def _of_script_repository(spec: DataSpec) -> Source:
    """The files of one configuration of a repository whose loading script datasets no longer runs."""
    import huggingface_hub

    files = huggingface_hub.HfApi().list_repo_files(spec.source, repo_type="dataset")
    folders = sorted({name.partition("/")[0] for name in files if "/" in name and kind(name)})
    config = spec.config if spec.config in folders else GUIDE_CONFIGS.get(spec.config or "", spec.config)
    if config not in folders:
        problem = f"has no configuration {spec.config!r}" if spec.config else "has several configurations"
        raise UserError(f"{spec.source} {problem}. Write {spec.source}:config=NAME, with one of {', '.join(folders)}")
    inside = [name for name in files if name.startswith(f"{config}/") and kind(name)]
    chosen, _ = choose_files(inside, spec.source, "train")
    called = "" if config == spec.config else f" (--data-config {spec.config})"
    local = [Path(huggingface_hub.hf_hub_download(spec.source, name, repo_type="dataset")) for name in chosen]
    told = f"{spec.source}: its loading script is not run; read {', '.join(chosen)}{called}"
    return Source(spec.source, list(zip(local, chosen, strict=True)), [told])
