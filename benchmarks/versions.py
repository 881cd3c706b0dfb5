"""The suite with the lowest and the highest versions that the projects' pyproject.toml admit.

    python -m benchmarks.versions [lowest|highest] [PYTEST ARGUMENTS]

Each end has an environment of its own, .versions/lowest and .versions/highest, which uv resolves and installs
(`pip install uv`; its own settings, as UV_INDEX, say from where). LOWEST and HIGHEST name their Python: 3.11 and 3.13.
The output is in .versions/END.log; the result, with what failed, in results/versions.json, where an end run again
replaces its earlier result.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.record import record

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "versions.json"
ENDS = {"lowest": ("lowest-direct", "3.11"), "highest": ("highest", "3.13")}
SUITE = [
    "pip>=26",
    "pytest>=9",
    "pytest-xdist>=3.8",
    "pytest-cov>=7",
    "hypothesis>=6.150",
    "ruff>=0.14",
]  # what the tests need
SHOWN = ["torch", "transformers", "trl", "peft", "datasets", "accelerate", "tensorboard", "bitsandbytes", "math-verify"]
SHOWN += ["click", "packaging", "pluggy", "pydantic", "pyyaml", "rich"]


def install(end: str) -> Path:
    """The environment of `end`. Of what our projects name themselves it has the lowest or the highest versions."""
    resolution, python = ENDS[end]
    environment = ROOT / ".versions" / end
    uv = ["uv", "-q"]
    python = os.environ.get(end.upper(), python)
    subprocess.run([*uv, "venv", "--clear", "--python", python, str(environment)], check=True)
    projects = [
        path.parent for folder in ("plugins", "reward_functions") for path in ROOT.glob(f"{folder}/*/pyproject.toml")
    ]
    ours = [f"{ROOT}[train,quantization]", *map(str, sorted(projects))]
    line = [*uv, "pip", "install", "--python", str(environment), "--resolution", resolution, *SUITE]
    subprocess.run([*line, *(word for one in ours for word in ("-e", one))], check=True)
    return environment / "bin"


def versions(binaries: Path) -> dict[str, str]:
    code = "import importlib.metadata as m, json, platform, sys; "
    code += "print(json.dumps({'python': platform.python_version(), **{n: m.version(n) for n in sys.argv[1:]}}))"
    return json.loads(subprocess.check_output([str(binaries / "python"), "-c", code, *SHOWN]))


def suite(end: str, arguments: list[str]) -> dict[str, Any]:
    binaries, log, began = install(end), ROOT / ".versions" / f"{end}.log", time.monotonic()
    line = [str(binaries / "pytest"), "-p", "no:warnings", "-rfE", *arguments]
    with log.open("w", encoding="utf-8") as output:
        code = subprocess.run(line, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT).returncode
    lines = log.read_text(encoding="utf-8").splitlines()
    return {
        "versions": versions(binaries),
        "arguments": arguments,
        "exit_code": code,
        "tests": re.sub(r" in [\d.]+s.*", "", lines[-1].strip("= ")) if lines else "",
        "seconds": round(time.monotonic() - began),
        "failed": [line.split(" - ")[0] for line in lines if line.startswith(("FAILED ", "ERROR "))],
    }


def main() -> None:
    arguments = sys.argv[1:]
    ends = [arguments.pop(0)] if arguments and arguments[0] in ENDS else list(ENDS)
    figures = json.loads(RESULTS.read_text(encoding="utf-8"))["figures"] if RESULTS.exists() else {}
    for end in ends:
        figures[end] = suite(end, arguments or ["-n", "2", "--dist", "worksteal"])
        print(end, json.dumps(figures[end], indent=1))
        record("versions", figures)
    sys.exit(any(figures[end]["exit_code"] for end in ends))


if __name__ == "__main__":
    main()
