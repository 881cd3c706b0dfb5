"""The installed plugins, each of which is loaded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

from rlhf_core.catalog import Catalog, Entry, normalize
from rlhf_core.doctor import Check, one_line
from rlhf_core.doctor.asking import Asking
from rlhf_core.errors import listed

CANT_LOAD = ("disabled", "core version unmet", "module missing")


def examine(asking: Asking) -> Iterator[Check]:
    yield from judge(Catalog().entries(), asking, os.environ.get("RLHF_DISABLE_PLUGINS", ""))


def judge(entries: list[Entry], asking: Asking, disabled: str) -> Iterator[Check]:
    """A line for each plugin that is broken, then one for all of them. `disabled`: RLHF_DISABLE_PLUGINS."""
    good: list[Entry] = []
    for entry in entries:
        if entry.state == "disabled":
            continue
        problem = entry.problem if entry.state in CANT_LOAD else None
        if problem is None:
            said = asking.ask("plugin", entry.kind, f"{entry.distribution}/{entry.name}").error
            problem = said and said.rpartition(" could not be loaded: ")[2]
        if problem is None and entry.state == "duplicate name":
            problem = entry.problem
        if problem is None:
            good.append(entry)
        else:
            advice = f"To see more: rlhf plugins check {entry.name}" if entry.state not in CANT_LOAD else ""
            what = f"{entry.kind[:-1]} {entry.name} of {entry.distribution} {entry.version}"
            yield Check("plugin", "warn", f"{what}: {one_line(problem)}", advice)
    yield _summary(entries, good, [name.strip() for name in disabled.split(",") if name.strip()])


def _summary(entries: list[Entry], good: list[Entry], disabled: list[str]) -> Check:
    counts = Counter(entry.kind for entry in good)
    parts = [f"{count} {kind if count > 1 else kind[:-1]}" for kind, count in counts.items()]
    text = f"{', '.join(parts) or 'none'} can be loaded"
    off = {entry.distribution for entry in entries if entry.state == "disabled"}
    if off:
        text += f"; RLHF_DISABLE_PLUGINS leaves out {listed(off, most=10)}"
    unknown = [name for name in disabled if normalize(name) not in {normalize(e.distribution) for e in entries}]
    if not counts["methods"]:
        return Check(
            "plugins",
            "fail",
            f"{text}: without a method nothing can be trained",
            "Install one: rlhf plugins install NAME",
        )
    if unknown:
        names = one_line(listed(unknown, most=10))
        return Check("plugins", "warn", f"{text}; RLHF_DISABLE_PLUGINS names {names}, which is not installed")
    return Check("plugins", "ok", text)
