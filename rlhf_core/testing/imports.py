"""The rule on importing a plugin: how many seconds it adds to importing the core, and that it does not import torch."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from rlhf_core.errors import UserError
from rlhf_core.testing.report import Report

LIMIT = 0.3  # seconds
TRIES = 5  # another program on the same cores makes one try slow

_CODE = """
import importlib, importlib.machinery, json, os, sys, time
import pluggy, rlhf_core.formatter, rlhf_core.hookspecs, rlhf_core.method, rlhf_core.catalog, rlhf_core.reward
class NoTorch:  # importing torch takes seconds; that it is imported is all we want to know
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torch":
            print("\\n[0, true]", flush=True)
            os._exit(0)
sys.meta_path.insert(0, NoTorch)
started = time.perf_counter()
if sys.argv[1].endswith(".py"):
    importlib.machinery.SourceFileLoader("plugin_under_check", sys.argv[1]).load_module()
else:
    importlib.import_module(sys.argv[1])
print("\\n" + json.dumps([time.perf_counter() - started, False]))
"""


def file_of(module: str) -> Path:
    """The file of an importable module. Raises `UserError` if there is none."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise UserError(f"there is no module {module}")
    return Path(found.origin)


def examine(report: Report, module: str) -> None:
    """Add the rule for `module`, a module's name or a file, to `report`."""
    rule = report.rule(f"imports within {LIMIT:g} s, without torch")
    best = float("inf")
    for _ in range(TRIES):
        measured = _measure(module, Path(_compiled().name))
        if isinstance(measured, str):
            rule.fault(f"importing {module} failed in a fresh process: {measured}")
            return
        seconds, torch = measured
        best = min(best, seconds)
        if torch:
            rule.fault(f"importing {module} imports torch: import it inside the function that needs it")
            return
        if best <= LIMIT:
            rule.note(f"{best:.2f} s")
            return
    rule.fault(f"importing {module} takes {best:.2f} s: import what is slow inside the function that needs it")


@cache
def _compiled() -> tempfile.TemporaryDirectory[str]:
    """For what a first try compiles, mostly of the core: once for all plugins that a process checks."""
    return tempfile.TemporaryDirectory()


def _measure(module: str, compiled: Path) -> tuple[float, bool] | str:
    """(seconds, whether torch was imported), or what went wrong. The first try also compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONPYCACHEPREFIX": str(compiled)}
    command = [sys.executable, "-c", _CODE, module]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    except subprocess.TimeoutExpired:
        return "it did not finish within 60 s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    seconds, torch = json.loads(done.stdout.strip().splitlines()[-1])
    return seconds, torch
