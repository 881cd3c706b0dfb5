"""Folders with LLaMA-Factory's list of its data sets, `dataset_info.json`: which file, and what its columns are.

https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_core.errors import UserError, did_you_mean
from rlhf_core.grammar import DataSpec
from rlhf_core.inputs import parse_json, path_of, read_text

LIST = "dataset_info.json"
REMOTE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
# What it calls a column, and what our formats do, for rows of instructions and of conversations.
ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
CONVERSATIONS = {"messages": "conversations"}
UNREAD = ("split", "folder", "subset", "num_samples")
SHARED = ("history", "system", "tools", "chosen", "rejected", "kto_tag")
TAGS = {
    **{"role_tag": ("role", "from"), "content_tag": ("content", "value"), "user_tag": ("user", "human")},
    **{"assistant_tag": ("assistant", "gpt"), "system_tag": ("system", "system")},
    **{"observation_tag": ("tool", "observation"), "function_tag": ("function_call", "function_call")},
}


def resolved(spec: DataSpec) -> tuple[DataSpec, list[str]]:
    """(the file that `spec` means, its columns; what to say) for a folder with such a list. Others stay as they are.

    `spec.config` is the name of the data set, if there are several. Raises `UserError`.
    """
    folder = path_of(spec.source, "--data")
    entries = _entries(folder)
    if entries is None:
        return spec, []
    where = folder / LIST
    local = [name for name, entry in entries.items() if (folder / str(entry.get("file_name"))).exists()]
    if spec.config is None and len(local) != 1:
        several = f"has several data sets. Write {spec.source}:config=NAME, with one of {', '.join(local)}"
        raise UserError(f"{where} {several if local else 'names no file that is there'}")
    name = spec.config or local[0]
    if name not in entries:
        known = ", ".join(entries)
        raise UserError(f"{where} has no data set {name!r}.{did_you_mean(name, entries)} It has {known}")
    entry = entries[name]
    if name not in local:
        keys = [f"{key} {entry[key]}" for key in ("file_name", *REMOTE) if entry.get(key)]
        raise UserError(f"{where}: {name!r} has no file here, but {', '.join(keys)}: give that as --data")
    columns, unread = _columns(entry)
    said = f"{spec.source}: read {entry['file_name']} as {LIST} says of {name!r}"
    said += f"; not read: {', '.join(unread)}" if unread else ""
    columns, turns = {**columns, **spec.columns}, spec.turns or _turns(entry)
    return replace(spec, source=str(folder / entry["file_name"]), config=None, columns=columns, turns=turns), [said]


def _entries(folder: Path) -> dict[str, Mapping[str, Any]] | None:
    """The data sets of a folder's list; None without one: datasets and the Hub call other files so."""
    if not (folder / LIST).is_file():
        return None
    found = parse_json(read_text(folder / LIST, "--data"), str(folder / LIST))
    if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
        return None
    named = {name: entry for name, entry in found.items() if {"file_name", *REMOTE} & entry.keys()}
    return named or None


def _columns(entry: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """({what a column is read as: its name}, for those that have another; what the entry says and nobody reads)."""
    given = {key: str(name) for key, name in (entry.get("columns") or {}).items() if name}
    alpaca = entry.get("formatting", "alpaca") == "alpaca"
    ours = {**(ALPACA if alpaca else CONVERSATIONS), **{name: name for name in SHARED}}
    if given.keys() == {"prompt"}:  # prompts alone, or texts to learn
        ours = {"prompt": "text" if given["prompt"] == "text" else "prompt"}
    columns = {ours[key]: name for key, name in given.items() if key in ours and ours[key] != name}
    unread = [f"{key} {name}" for key, name in given.items() if key not in ours]
    return columns, unread + [f"{key} {entry[key]}" for key in UNREAD if entry.get(key)]


def _turns(entry: Mapping[str, Any]) -> dict[str, str]:
    """What turns call their role, their text and who speaks, if not as ShareGPT does."""
    tags = entry.get("tags") or {}
    named = {ours: str(tags.get(key) or usual) for key, (ours, usual) in TAGS.items()}
    return {} if named == dict(TAGS.values()) else named
