"""The mutants that survived in a fork, each written to its file: tests that start processes notice it then.

    python -m benchmarks.mutation_written GROUP [MODULE…]

Of those in benchmarks/results/mutation.json without a reason. The tests are the group's `processes` in pyproject.toml,
[tool.mutation], by module, which have to pass without a mutant; with one they stop at the first that fails. The file is
put back after each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.mutants import mutants
from benchmarks.mutation import RESULTS, ROOT


def passes(tests: list[str], seconds: float | None = None) -> bool:
    """Whether all tests pass, within `seconds`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        own = ["-p", "no:cacheprovider", "--basetemp", f"{folder}/tests"]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", *own, *tests]
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, timeout=seconds, capture_output=True, check=False)
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0


def survives(file: Path, source: bytes, tests: list[str], seconds: float) -> bool:
    """Whether all tests pass with this source in the file's place."""
    kept = file.read_bytes()
    try:
        file.write_bytes(source)
        return passes(tests, seconds)
    finally:
        file.write_bytes(kept)


def main() -> None:
    group, *modules = sys.argv[1:]
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutation"][group]["processes"]
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    for module in modules or asked:
        tests, figures = asked[module], results["figures"]["modules"][module]
        before = Counter(_key(one) for one in figures["survivors"] if not one["reason"])
        if not before:
            continue
        began = time.monotonic()
        if not passes(tests):
            sys.exit(f"{module}: its tests fail without a mutant: {' '.join(tests)}")
        seconds = 15 + 5 * (time.monotonic() - began)
        sources: dict[tuple[str, int, str], list[bytes]] = {}
        for mutant in mutants(ROOT / module):
            sources.setdefault((mutant.place[0], mutant.line, mutant.change), []).append(mutant.source)
        for key, count in before.items():
            left = min(count, sum(survives(ROOT / module, source, tests, seconds) for source in sources[key]))
            print("survives:" if left else "noticed:", module, *key, flush=True)
            for _ in range(count - left):
                figures["survivors"].remove(next(one for one in figures["survivors"] if _key(one) == key))
            for what, by in (("survived", left - count), ("killed", count - left)):
                figures[what] += by
                results["figures"][what] += by
            RESULTS.write_text(json.dumps(results, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _key(survivor: dict[str, Any]) -> tuple[str, int, str]:
    return survivor["function"], survivor["line"], survivor["change"]


if __name__ == "__main__":
    main()
