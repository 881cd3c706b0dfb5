"""Training in several processes that share parameters, gradients or optimizer state: are the weights those of a run
in one process, is a resumed run the same, and does the saved model load?

    python -m benchmarks.sharded [--processes 2] [--kinds fsdp zero2 zero3] [--methods sft reward_model dpo orpo grpo]

On GPUs, or, with two processes and gloo, on CPUs (`sharded_process.py`; `zero2` and `zero3` need DeepSpeed). The
commands that a user types, on the built-in model and data: two steps in float32 by one process, and the same rows
shared between several. GRPO samples by `generate`. Adam's epsilon is large, so that a rounding error of a small
gradient stays one.

`apart` is the largest difference of a weight as a share of the largest movement; `resumed` that of a run which goes on
from the first step's checkpoint, with the optimizer's state, after the second is lost; `answers` whether those that
GRPO was trained on are those of one process; `loads` whether transformers finds each weight of the saved model, and no
other.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from benchmarks.record import record
from benchmarks.sharded_process import GROUP
from rlhf_core import builtin

# PPO, which samples and has a value head, refuses sharded parameters.
METHODS = {  # and their flags
    **dict.fromkeys(["sft", "dpo", "reward_model", "orpo"], "--num-eval-prompts 0"),
    "grpo": f"--reward length:max=20 --rollouts transformers --num-generations {GROUP} "
    "--max-completion-length 24 --num-eval-prompts 2",
}
ROWS = 8  # of a step
FLAGS = "--no-lora --max-steps 2 --save-steps 1 --learning-rate 0.1 --optim adamw_torch --set adam_epsilon=1 "
FLAGS += "--lr-scheduler-type constant --gradient-accumulation-steps 1 --no-gradient-checkpointing --set bf16=false"
PROCESS = "benchmarks.sharded_process"
LIMIT = 240  # seconds of a run


def command(method: str, folder: Path, processes: int, kind: str) -> list[str]:
    flags = ["--method", method, "--output-dir", str(folder), *FLAGS.split(), *METHODS[method].split()]
    flags += ["--per-device-train-batch-size", str(ROWS // processes)]
    return flags if processes == 1 else [*flags, "--num-processes", str(processes), "--distributed", kind]


def run(flags: list[str], folder: Path, processes: int, method: str) -> dict[str, Any]:
    """{"weights": …, "answers": …, "seconds": …}, or {"failed": the end of its output}."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] * (processes > 1)
    first = {"CUDA_VISIBLE_DEVICES": "0"} if processes == 1 else {}  # or the trainer takes all GPUs
    began = time.perf_counter()
    with Path(f"{folder}.log").open("w+") as log:
        try:
            line = [sys.executable, *launcher, "-m", PROCESS, "run", *flags]
            code = subprocess.run(line, stdout=log, stderr=log, timeout=LIMIT, env={**os.environ, **first}).returncode
        except subprocess.TimeoutExpired:
            code = 124
    if code or not (folder / "model").exists():
        return {"failed": f"exit code {code}: " + Path(log.name).read_text()[-2000:]}
    return {"seconds": round(time.perf_counter() - began, 1), **saved(folder, method)}


def saved(folder: Path, method: str) -> dict[str, Any]:
    kind = AutoModelForSequenceClassification if method == "reward_model" else AutoModelForCausalLM
    model, found = kind.from_pretrained(folder / "model", dtype=torch.float32, output_loading_info=True)
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    answers = sorted((line["step"], line["completion"]) for line in lines if "completion" in line)
    return {"weights": model.state_dict(), "answers": answers, "loads": not any(found.values())}


def resumed(folder: Path, processes: int, method: str) -> dict[str, Any]:
    """What the run comes to without all that it wrote in and after its second step."""
    shutil.rmtree(folder / "checkpoints" / "checkpoint-2")
    shutil.rmtree(folder / "model")
    return run(["--resume", str(folder)], folder, processes, method)


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> float:
    moved = max((one[key] - start[key]).abs().max().item() for key in start if key in one)
    return max((one[key] - other[key]).abs().max().item() for key in one) / moved


def compared(one: dict[str, Any], several: dict[str, Any], again: dict[str, Any]) -> dict[str, Any]:
    if failed := [side["failed"] for side in (one, several, again) if "failed" in side]:
        return {"failed": failed[0]}
    start = AutoModelForCausalLM.from_pretrained(builtin.MODEL, dtype=torch.float32).state_dict()
    result = {"apart": apart(one["weights"], several["weights"], start)}
    result["resumed"] = apart(several["weights"], again["weights"], start)
    if one["answers"]:
        result["answers"] = one["answers"] == several["answers"]
    result["loads"] = several["loads"] and again["loads"]
    return {**result, "seconds": several["seconds"], "seconds of one": one["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, choices=[2, 4, 8])
    parser.add_argument("--kinds", nargs="+", default=["fsdp", "zero2", "zero3"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    args = parser.parse_args()
    if importlib.util.find_spec("deepspeed") is None and (left := {"zero2", "zero3"} & {*args.kinds}):
        print(f"{' and '.join(sorted(left))} left out: DeepSpeed is not installed (pip install deepspeed)")
        args.kinds = [kind for kind in args.kinds if kind not in left]
    device = "GPUs" if torch.accelerator.is_available() else "CPUs, gloo"
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        alone: dict[str, dict[str, Any]] = {}
        for kind, method in itertools.product(args.kinds, args.methods):
            if method not in alone:
                folder = Path(temporary, f"{method}-one")
                alone[method] = run(command(method, folder, 1, "ddp"), folder, 1, method)
            folder = Path(temporary, f"{method}-{kind}")
            several = run(command(method, folder, args.processes, kind), folder, args.processes, method)
            again = several if "failed" in several else resumed(folder, args.processes, method)
            results.setdefault(kind, {})[method] = compared(alone[method], several, again)
            print(kind, method, results[kind][method], flush=True)
            record("sharded", {"processes": args.processes, "device": device, **results})


if __name__ == "__main__":
    main()
