"""Checks a plugin in its own process. If that ends early or never ends, the report says so as the plugin's fault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rlhf_core.testing.report import Report

SECONDS = 600  # limit for one plugin


def examine_in_process(kind: str, target: str) -> Report:
    """The report that `python -m rlhf_core.testing` writes, or one that says how its process ended."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        command = [sys.executable, "-m", "rlhf_core.testing", kind, target, str(file)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            return _ended(kind, target, f"it took over {SECONDS} s")
        if not file.is_file():
            last = done.stdout.decode(errors="replace").strip().splitlines()[-3:]
            return _ended(kind, target, "\n".join([f"its process ended with exit code {done.returncode}", *last]))
        return Report.of(json.loads(file.read_text(encoding="utf-8")))


def _ended(kind: str, target: str, reason: str) -> Report:
    report = Report(kind[:-1], target)
    report.rule("can be checked to the end").fault(reason)
    return report
