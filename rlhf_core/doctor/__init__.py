"""`rlhf doctor`: whether this machine can train, one check after the other.

    rlhf doctor

What needs torch or another native library is tried in a process of its own (`probes.py`, asked by `asking.py`), since a
broken driver ends or stops the process that touches it; what it found is judged here. Nothing needs a network. Without
a library or a plugin its line says so, and the other checks go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlhf_core.credentials import masked
from rlhf_core.errors import excerpt

Status = Literal["ok", "missing", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One line: `missing` is something optional that is not there, `fail` what no training can do without."""

    name: str
    status: Status
    text: str
    advice: str = ""  # what to do
    values: dict[str, Any] | None = None  # for --json


def one_line(text: str) -> str:
    """What a library or plugin said, for the text of a check: without secrets, on one line, the beginning of it."""
    return excerpt(" ".join(masked(text).split()), 300)


def examine(output_dir: Path) -> Iterator[Check | str]:
    """Every check, in order, each after the name of what is looked at next. `output_dir`: where a run would write."""
    from rlhf_core.doctor import devices, packages, plugins, system
    from rlhf_core.doctor.asking import Asking

    with Asking() as asking:
        yield "Python"
        yield system.python()
        yield packages.core()
        yield system.environment(asking)
        broken = ""
        for name in packages.NEEDED:
            yield name
            check = packages.needed(name, asking, broken)
            broken = broken or name * (check.status == "fail")
            yield check
        yield "the devices"
        yield from devices.examine(asking, broken)
        yield "optional packages"
        yield from packages.optional(asking)
        yield "the machine"
        yield system.memory()
        yield from system.disks(output_dir)
        yield from system.limits()
        yield system.hub()
        yield "the plugins"
        yield from plugins.examine(asking)
