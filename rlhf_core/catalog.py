"""The catalog of installed plugins, listed from their metadata.

A listing imports no plugin. Loading a plugin imports its module; a failure breaks only the command that needs it.
`RLHF_DISABLE_PLUGINS=a,b` leaves distributions out.
"""

from __future__ import annotations

import email.parser
import functools
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pluggy

from rlhf_core.credentials import masked
from rlhf_core.errors import PluginError, UserError, describe, did_you_mean, excerpt
from rlhf_core.inputs import read_text
from rlhf_core.outputs import write_whole

HOOKS = {kind: f"rlhf_{kind}" for kind in ("methods", "rewards", "formatters", "callbacks", "commands")}
STATES = ("ok", "disabled", "core version unmet", "module missing", "failed", "duplicate name")


@dataclass(frozen=True)
class Entry:
    """What the metadata says of one plugin. `problem` is why it can't be used, `state` the same as one of `STATES`."""

    kind: str
    name: str
    module: str
    distribution: str
    version: str
    summary: str
    problem: str | None = None
    state: str = "ok"

    @property
    def detail(self) -> str:
        """One line for a listing: the problem, unless `state` is enough, else the summary."""
        return self.summary if self.problem in (None, "disabled") else " ".join(self.problem.split())


class Catalog:
    """The plugins installed in this environment. Each method's `kind` is a key of `HOOKS`."""

    def entries(self, kind: str | None = None) -> list[Entry]:
        """The plugins of a kind, or all, sorted by kind and name, importing none."""
        return [entry for entry in self._entries if kind in (None, entry.kind)]

    @functools.cached_property
    def _entries(self) -> list[Entry]:
        disabled = {normalize(name.strip()) for name in os.environ.get("RLHF_DISABLE_PLUGINS", "").split(",")}
        found = list(_installed())
        enabled = [entry for entry, _ in found if normalize(entry.distribution) not in disabled]
        entries = [_with_problem(entry, requires, enabled) for entry, requires in found]
        return sorted(entries, key=lambda entry: (list(HOOKS).index(entry.kind), entry.name, entry.distribution))

    def find(self, kind: str, name: str) -> Entry:
        """The plugin called `name` or `distribution/name`. Raises `UserError` that lists the installed ones."""
        distribution, given, short = name.rpartition("/")
        entries = self.entries(kind)
        same = [e for e in entries if e.name == short]
        if given:
            same = [e for e in same if normalize(e.distribution) == normalize(distribution)]
        if not same:
            known = dict.fromkeys(e.name for e in entries)
            installed = ", ".join(known) or "none"
            hint = did_you_mean(short, known)
            raise UserError(f"there is no {kind[:-1]} {excerpt(name)!r}.{hint} Installed: {installed}.")
        usable = [e for e in same if e.state != "disabled"]
        if not usable:
            raise UserError(f"{kind[:-1]} {name!r} is disabled: {same[0].distribution} is in RLHF_DISABLE_PLUGINS")
        if len(usable) > 1:
            choices = " or ".join(f"{e.distribution}/{e.name}" for e in usable)
            raise UserError(f"{kind[:-1]} {name!r} is offered by several distributions: write {choices}")
        return usable[0]

    def load(self, kind: str, name: str) -> tuple[Any, Entry]:
        """Import one plugin and return its object with its entry. Raises `PluginError` if it can't be loaded."""
        entry = self.find(kind, name)
        named = {_name_of(kind, found): found for found in self._collect(entry)}
        if list(named) == [None]:  # a partial or an instance takes the entry point's name
            named = {entry.name: named[None]}
        if entry.name not in named:
            names = ", ".join(map(repr, named)) or "nothing"
            raise self._failed(entry, f"{HOOKS[kind]} returned {names}, and no object called {entry.name!r}")
        return named[entry.name], entry

    def load_callbacks(self, names: Sequence[str], run: Any) -> list[Any]:
        """The trainer callbacks that plugins of these names make for `run`. Raises `PluginError` for other things."""
        from transformers import TrainerCallback

        found: list[Any] = []
        for entry in [self.find("callbacks", name) for name in names]:
            for each in self._collect(entry, run=run):
                if not issubclass(each if isinstance(each, type) else type(each), TrainerCallback):
                    raise self._failed(entry, f"{HOOKS['callbacks']} returned {each!r}, which is no TrainerCallback")
                found.append(each)
        return found

    def _collect(self, entry: Entry, **arguments: Any) -> list[Any]:
        """Everything that the hook of this entry's module returns, as one list."""
        from rlhf_core import hookspecs

        hook = HOOKS[entry.kind]
        try:
            manager = pluggy.PluginManager("rlhf")  # of this module alone: an error is its own
            manager.add_hookspecs(hookspecs)
            manager.register(importlib.import_module(entry.module), name=entry.module)
            manager.check_pending()
            returned = getattr(manager.hook, hook)(**arguments)
            objects = [found for group in returned for found in group]  # a generator raises here
        except (Exception, SystemExit) as error:  # a plugin may raise anything
            raise self._failed(entry, describe(error)) from error
        if not returned:
            raise self._failed(entry, f"module {entry.module} implements no hook {hook}")
        _record(entry, None)
        return objects

    def _failed(self, entry: Entry, reason: str) -> PluginError:
        reason = masked(reason)
        _record(entry, reason)
        return PluginError(
            f"{entry.kind[:-1]} {entry.name!r} of {entry.distribution} {entry.version} could not be loaded: {reason}"
        )


def _installed() -> Iterator[tuple[Entry, tuple[str, ...]]]:
    """Each of our entry points with what its distribution requires, parsing the metadata of plugins only."""
    seen = set()
    for distribution in importlib.metadata.distributions():
        points = distribution.read_text("entry_points.txt") or ""
        if "[rlhf." not in points:
            continue
        text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
        fields = email.parser.HeaderParser().parsestr(text)  # what follows, the README, is not parsed
        name = fields["Name"]
        if not name or normalize(name) in seen:  # of two with the same name, the first is imported
            continue
        seen.add(normalize(name))
        version, summary = fields["Version"] or "", " ".join((fields["Summary"] or "").split())
        for kind, point, module in _points_of(points):
            if kind in HOOKS:
                yield Entry(kind, point, module, name, version, summary), tuple(fields.get_all("Requires-Dist", []))


def _points_of(text: str) -> Iterator[tuple[str, str, str]]:
    """(kind, name, module) of each of our lines in an entry_points.txt; a malformed line has no module."""
    group = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            group = line.strip("[] ")
        elif group.startswith("rlhf.") and line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            yield group.removeprefix("rlhf."), name.strip(), re.split(r"[:\[]", value)[0].strip()


def _with_problem(entry: Entry, requires: tuple[str, ...], enabled: list[Entry]) -> Entry:
    """The entry with the first of its problems. `enabled` are the entries whose distributions are not disabled."""
    others = [e.distribution for e in enabled if (e.kind, e.name) == (entry.kind, entry.name) and e != entry]
    duplicate = f"also offered by {', '.join(others)}: write {entry.distribution}/{entry.name}"
    problems = {
        "disabled": None if entry in enabled else "disabled",
        "core version unmet": _core_unmet(requires),
        "module missing": _module_missing(entry.module),
        "failed": _last_failure(entry),
        "duplicate name": duplicate if others else None,
    }
    state = next((state for state, problem in problems.items() if problem), "ok")
    return replace(entry, problem=problems.get(state), state=state)


@functools.cache
def _core_unmet(requirements: tuple[str, ...]) -> str | None:
    """The version of rlhf-core that a distribution requires, if this one does not satisfy it."""
    for text in requirements:
        if not normalize(text).startswith("rlhf-core"):
            continue
        from packaging.requirements import InvalidRequirement, Requirement

        from rlhf_core import __version__

        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            return f"needs {text!r}, which is not a valid requirement"
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        satisfied = requirement.specifier.contains(__version__, prereleases=True)
        if normalize(requirement.name) == "rlhf-core" and applies and not satisfied:
            return f"needs rlhf-core{requirement.specifier}, this is {__version__}"
    return None


def _module_missing(module: str) -> str | None:
    """Search for the module's file without importing it or its parent packages."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
        for part in rest:
            folders = spec.submodule_search_locations if spec else None
            spec = importlib.machinery.PathFinder.find_spec(part, folders) if folders else None
    except (ImportError, ValueError):
        spec = None
    return None if spec else f"module {module} is missing"


def _name_of(kind: str, found: Any) -> str | None:
    from rlhf_core.reward import Reward

    if kind != "rewards":
        return found.name
    return found.label if isinstance(found, Reward) else f"{type(found).__name__} (wrap the function: Reward(function))"


def normalize(name: str) -> str:
    """The one spelling of a distribution's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


# Why a plugin failed when it was last loaded is remembered in a file, so that a listing can show it without loading it.


def _failure_file(entry: Entry) -> Path:
    """Raises `RuntimeError` for a user without a home folder, as in some containers."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = quote(f"{entry.distribution}-{entry.version}-{entry.kind}-{entry.name}", safe=" ")
    return cache / "rlhf" / "plugin_failures" / name


def _last_failure(entry: Entry) -> str | None:
    try:
        return read_text(_failure_file(entry))
    except (UserError, RuntimeError):
        return None


def _record(entry: Entry, reason: str | None) -> None:
    with suppress(OSError, RuntimeError):  # this is for a later listing only
        file = _failure_file(entry)
        file.unlink(missing_ok=True)
        if reason is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, f"failed when last loaded ({time.strftime('%Y-%m-%d')}): {reason}")
