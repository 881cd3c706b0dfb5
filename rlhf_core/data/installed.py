"""The formatters that may read a source: the installed ones, or the one that `--formatter` names."""

from __future__ import annotations

from pathlib import Path

from rlhf_core import by_path
from rlhf_core.catalog import Catalog
from rlhf_core.errors import PluginError, UserError
from rlhf_core.formatter import Formatter

BUILT_IN = "rlhf-formatter-common"


def formatters(forced: str | None, catalog: Catalog) -> tuple[list[list[Formatter]], list[str]]:
    """(the formatters: the built-in ones, which take precedence, and the others; what is said of broken ones)."""
    if forced is not None:
        return [[named(forced, catalog)]], []
    groups: list[list[Formatter]] = [[], []]
    broken: dict[str, list[str]] = {}
    for entry in catalog.entries("formatters"):
        if entry.problem == "disabled":
            continue
        try:
            formatter = catalog.load("formatters", f"{entry.distribution}/{entry.name}")[0]
            groups[entry.distribution != BUILT_IN].append(formatter)
        except PluginError as error:
            before, _, reason = str(error).partition(" could not be loaded: ")
            broken.setdefault(reason, []).append(before)
    said = [f"{found[0]}{f' and {len(found) - 1} more' * (len(found) > 1)}: {why}" for why, found in broken.items()]
    return groups, [f"\n  (could not be loaded: {text})" for text in said]


def named(name: str, catalog: Catalog) -> Formatter:
    """An installed formatter, or one of a file: a `Formatter`, or a function that makes an `Example` of a row."""
    at_path = by_path.find(name, "--formatter")
    if at_path is None:
        formatter: Formatter = catalog.load("formatters", name)[0]
        return formatter
    found, attribute = at_path
    if isinstance(found, Formatter):
        return found
    if not callable(found) or isinstance(found, type):
        raise UserError(
            f"--formatter {name}: {attribute} is {type(found).__name__}, neither a function nor a Formatter"
        )
    return Formatter(attribute, frozenset(), found)


def named_files(name: str | None) -> list[Path]:
    """The file of a formatter that is named by its path, and those that it imports from its folder."""
    path = Path((name or "").rpartition(":")[0]).expanduser()
    return by_path.files_of(path) if path.suffix == ".py" and path.is_file() else []
