"""`rlhf run` itself on a GPU: all methods on the built-in model, and the demo.

python -m benchmarks.gpu_parts commands [--rehearse]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.gpu_kit import REAL, Scale, attempt, say

METHODS = {
    "sft": [],
    "reward_model": [],
    "dpo": [],
    "orpo": [],
    "ppo": ["--reward", "medical_format"],
    "grpo": ["--reward", "medical_format"],
}
KINDS = {"full": ["--no-lora"], "4-bit": ["--load-in-4bit"]}
# The words of what is slower, or failed.
FALLBACKS = ("plain arithmetic, slowly", "its own", "can't be captured", "more operations for each token", "Traceback")


def rlhf(folder: Path, *arguments: str, seconds: int = 150, limit: int = 0) -> tuple[int, str, dict[str, Any]]:
    """(exit code, output, peaks of memory by phase) of a command in a process of its own, within `limit` GB."""
    command = [sys.executable, "-m", "benchmarks.gpu_measured", str(folder / "memory.json"), str(limit), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.txt").open("w+") as file:
        try:
            code = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, timeout=seconds, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
        file.seek(0)
        output = file.read()
    memory = folder / "memory.json"
    return code, output, json.loads(memory.read_text()) if memory.exists() else {}


def commands(scale: Scale) -> None:
    """Every method on the built-in model, in full and in 4 bits, and the demo, several at once: do they end well,
    without falling back, and does the demo learn?
    """
    short = ["--max-steps", "2", "--num-eval-prompts", "4", "--logging-steps", "1", "--report-to", "none"]
    with tempfile.TemporaryDirectory() as folder:

        def tried(job: tuple[str, str]) -> None:
            method, kind = job
            place = Path(folder) / f"{method}-{kind}"
            line = ["run", "--method", method, *METHODS[method], *KINDS[kind], *short]
            started = time.perf_counter()
            code, output, memory = rlhf(place, *line, "--output-dir", str(place / "run"))
            fallback = [line.strip() for line in output.splitlines() if any(words in line for words in FALLBACKS)]
            warnings = [
                one.strip() for one in output.splitlines() if "Warning: " in one and one.strip() not in fallback
            ]
            found: dict[str, Any] = {"seconds": time.perf_counter() - started, **memory}
            if code or fallback:
                found |= {"exit_code": code, "fallback": fallback[:4], "end": output[-600:] if code else ""}
            say(f"rlhf run --method {method}, {kind}", ok=not code and not fallback, **found, warnings=warnings[:4])

        def demo() -> None:
            place = Path(folder) / "demo"
            line = ["run", "--method", "grpo", "--reward", "medical_format", "--output-dir", str(place / "run")]
            line += ["--report-to", "none"]
            if scale is not REAL:
                line += ["--max-steps", "2"]
            started = time.perf_counter()
            code, output, memory = rlhf(place, *line)
            took = time.perf_counter() - started
            with attempt("the demo, beside others"):
                if code:
                    raise RuntimeError(output[-600:])
                say("the demo, beside others", ok=True, seconds=took, **memory, **results(place / "run"))

        with ThreadPoolExecutor(13 if scale is REAL else 1) as pool:
            pool.submit(demo)
            list(pool.map(tried, [(method, kind) for kind in KINDS for method in METHODS]))


def results(run: Path) -> dict[str, Any]:
    """What a run wrote about its rewards and its steps."""
    evaluation = json.loads((run / "evaluation.json").read_text()) if (run / "evaluation.json").exists() else {}
    means = {when: (evaluation.get(when) or {}).get("rewards") for when in ("before", "after")}
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = [one["time"] for one in steps if "step_time" in one or "loss" in one]
    between = [round(b - a, 3) for a, b in pairwise(times)]
    return {**{when: mean for when, mean in means.items() if mean}, "seconds_between_steps": between[-5:]}
