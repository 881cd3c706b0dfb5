"""Training in several processes that share parameters, gradients or optimizer state: are the weights those of a run
in one process?

    python -m benchmarks.sharded [--processes 2] [--kinds fsdp zero2 zero3] [--methods sft reward_model dpo orpo]

For a machine with several GPUs (and DeepSpeed for the last two). The commands that a user types, on the built-in model
and data: two steps of plain gradient descent in float32 by one process, and the same rows shared between several.
`apart` is the largest difference of a weight as a share of the largest movement; `--kinds ddp` also runs on CPUs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.record import record
from rlhf_core import builtin

METHODS = ["sft", "reward_model", "dpo", "orpo"]  # GRPO and PPO sample, and each process would sample different answers
ROWS = 8  # of a step
FLAGS = "--no-lora --max-steps 2 --learning-rate 1e-3 --optim sgd --lr-scheduler-type constant --num-eval-prompts 0 "
FLAGS += "--gradient-accumulation-steps 1 --no-gradient-checkpointing --set bf16=false"


def train(method: str, folder: Path, processes: int, kind: str) -> dict[str, Any]:
    """{"weights": …, "seconds": …}, or {"failed": the end of its output}."""
    command = [sys.executable, "-m", "rlhf_core", "run", "--method", method, "--output-dir", str(folder)]
    command += [*FLAGS.split(), "--per-device-train-batch-size", str(ROWS // processes)]
    if processes > 1:
        command += ["--num-processes", str(processes), "--distributed", kind]
    first = {"CUDA_VISIBLE_DEVICES": "0"} if processes == 1 else {}  # or the trainer takes all GPUs
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **first})
    file = folder / "model" / "model.safetensors"
    if done.returncode or not file.exists():
        return {"failed": (done.stdout + done.stderr)[-500:]}
    return {"weights": load_file(file), "seconds": round(time.perf_counter() - began, 1)}


def compared(one: dict[str, Any], several: dict[str, Any]) -> dict[str, Any]:
    if failed := [side["failed"] for side in (one, several) if "failed" in side]:
        return {"failed": failed[0]}
    start, weights, others = load_file(builtin.MODEL / "model.safetensors"), one["weights"], several["weights"]
    moved = max((weights[key] - start[key]).abs().max().item() for key in start if key in weights)
    apart = max((weights[key] - others[key]).abs().max().item() for key in weights)
    return {"apart": apart / moved, "seconds": several["seconds"], "seconds of one": one["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, choices=[2, 4, 8])
    parser.add_argument("--kinds", nargs="+", default=["fsdp", "zero2", "zero3"])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    args = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for method in args.methods:
            one = train(method, Path(folder, f"{method}-one"), 1, "ddp")
            for kind in args.kinds:
                several = train(method, Path(folder, f"{method}-{kind}"), args.processes, kind)
                results.setdefault(kind, {})[method] = compared(one, several)
                print(kind, method, results[kind][method], flush=True)
    record("sharded", {"processes": args.processes, **results})


if __name__ == "__main__":
    main()
