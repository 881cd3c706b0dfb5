"""Kill a run of every method at random moments with SIGKILL, resume it each time, and compare it with one that was
never killed.

    python -m benchmarks.killed [KILLS] [SEED]

The runs are short, on the built-in data and a two-layer model. A run is killed KILLS times, each time at a random
moment between the writing of its configuration and its end, and resumed by `rlhf run --resume`. Compared are the
weights, bit for bit, and the steps in metrics.jsonl.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.record import record
from rlhf_core import testing
from rlhf_core.catalog import Catalog
from rlhf_core.training.checkpoint import list_checkpoints

KILLS = 3
FLAGS = "--max-steps 40 --save-steps 3 --logging-steps 1 --num-eval-prompts 4 --per-device-train-batch-size 4 "
FLAGS += "--gradient-accumulation-steps 1 --learning-rate 1e-3 --lr-scheduler-type constant --report-to none"
FLAGS += " --no-gradient-checkpointing"
SAMPLED = "--reward length --max-completion-length 8"


def command(name: str, model: Path, folder: Path, *more: str) -> list[str]:
    method = Catalog().load("methods", name)[0]
    flags = [*FLAGS.split(), *(SAMPLED.split() if method.rewards == "required" else []), *more]
    if "num_generations" in method.Options.model_fields:
        flags += ["--num-generations", "4"]
    return ["--method", name, "--model", str(model), "--output-dir", str(folder), *flags]


def start(arguments: list[str]) -> subprocess.Popen:
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    line = [sys.executable, "-P", "-m", "rlhf_core", "run", *arguments]
    return subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL)


def wait_for_training(process: subprocess.Popen, folder: Path) -> float:
    """Wait until the process has written its configuration; returns when that was."""
    file, before = folder / "config.yaml", time.time()
    while process.poll() is None and not (file.exists() and file.stat().st_mtime >= before):
        time.sleep(0.01)
    return time.monotonic()


def finish(arguments: list[str], folder: Path) -> float:
    """Run to the end; returns the seconds from the writing of its configuration."""
    process = start(arguments)
    began = wait_for_training(process, folder)
    if process.wait() != 0:
        raise RuntimeError(f"rlhf run {' '.join(arguments)} ended with exit code {process.returncode}")
    return time.monotonic() - began


def kill(arguments: list[str], folder: Path, seconds: float) -> dict[str, Any] | None:
    """Kill the run that many seconds into its training. Returns where it was, or None if it had ended."""
    process = start(arguments)
    wait_for_training(process, folder)
    try:
        process.wait(seconds)
        return None
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    checkpoints = list_checkpoints(folder / "checkpoints")
    return {
        "seconds": round(seconds, 2),
        "step": max(steps(folder), default=0),
        "checkpoint": checkpoints[-1].name if checkpoints else None,
        "left_half_written": sorted(path.name for path in (folder / "checkpoints").glob(".writing/*")),
    }


def steps(folder: Path) -> list[int]:
    file = folder / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}") and '"loss"' in line]


def difference(one: Path, other: Path) -> float:
    """The largest difference between two models' weights: 0 where they are the same to the last bit."""
    weights, others = (load_file(next((folder / "model").glob("*.safetensors"))) for folder in (one, other))
    if all(torch.equal(weights[key], others[key]) for key in weights):
        return 0.0
    return max((weights[key] - others[key]).abs().max().item() for key in weights)


def measure(name: str, folder: Path, kills: int, chance: random.Random, *flags: str) -> dict[str, Any]:
    """Of runs of the method on the model in `folder`, which they leave there as NAME-unkilled and NAME-killed."""
    model, unkilled, killed = folder / "model", folder / f"{name}-unkilled", folder / f"{name}-killed"
    length = finish(command(name, model, unkilled, *flags), unkilled)
    arguments, moments = command(name, model, killed, *flags), []
    for _ in range(kills):
        moment = kill(arguments, killed, chance.uniform(0, length / 2))  # half: a resumed run has less before it
        arguments = ["--resume", str(killed)]
        if moment is None:
            break
        moments.append(moment)
    finish(arguments, killed)
    return {
        "kills": moments,
        "largest_difference_of_weights": difference(unkilled, killed),
        "same_steps_logged": steps(unkilled) == steps(killed),
    }


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else KILLS
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    chance, methods = random.Random(seed), {}
    with tempfile.TemporaryDirectory() as temporary:
        testing.tiny_model(Path(temporary, "model"))
        for entry in Catalog().entries("methods"):
            methods[entry.name] = measure(entry.name, Path(temporary), kills, chance)
            print(entry.name, json.dumps(methods[entry.name]), flush=True)
    record("killed", {"seed": seed, "methods": methods})


if __name__ == "__main__":
    main()
