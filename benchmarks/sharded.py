"""Training in several processes that share parameters, gradients or optimizer state: are the weights those of a run
in one process, is a resumed run the same, and does the saved model load?

    python -m benchmarks.sharded [--processes 2] [--kinds fsdp zero2 zero3] [--methods sft grpo dpo-lora …]

On GPUs, or, with two processes and gloo, on CPUs (`sharded_process.py`; `zero2` and `zero3` need DeepSpeed). The
commands that a user types, on the built-in model and data: two steps in float32 by one process, and the same rows
shared between several. GRPO samples by `generate`. Adam's epsilon is large, so that a rounding error of a small
gradient stays one.

`apart` is the largest difference of a weight as a share of the largest movement; `resumed` that of a run which goes on
from the first step's checkpoint, with the optimizer's state, after the second is lost; `answers` whether those that
GRPO was trained on are those of one process, `held out` whether those to held-out prompts are; `loads` whether
transformers, or PEFT, finds each weight of the saved model, and no other; `twice` which weights of the file are tied to
another there.

Other results stay, each with its date, so that one can be repeated: `--kinds zero3 --methods dpo`.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
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
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel, set_seed

from benchmarks.record import record
from benchmarks.sharded_process import GROUP
from rlhf_core import builtin

# PPO, which samples and has a value head, refuses sharded parameters.
METHODS = {  # and their flags
    **dict.fromkeys(["sft", "dpo", "reward_model", "orpo"], "--num-eval-prompts 0"),
    "grpo": f"--reward length:max=20 --rollouts transformers --num-generations {GROUP} "
    "--max-completion-length 24 --num-eval-prompts 6 --eval-steps 1 --keep-best reward",
}
TRAINED = {  # and its flags; without a name all weights
    "": "--no-lora --set bf16=false",
    "lora": "--lora --set bf16=false",
    "lora-bfloat16": "--lora --dtype bfloat16 --set bf16=true",  # of the frozen weights, and of what is computed
}
CASES = [*METHODS, *(f"{method}-lora" for method in METHODS), *(f"{name}-lora-bfloat16" for name in ("sft", "grpo"))]
ROWS = 8  # of a step
FLAGS = "--max-steps 2 --save-steps 1 --learning-rate 0.1 --optim adamw_torch --set adam_epsilon=1 --seed 42 "
FLAGS += "--lr-scheduler-type constant --gradient-accumulation-steps 1 --no-gradient-checkpointing"
PROCESS = "benchmarks.sharded_process"
LIMIT = 600  # seconds of a run
RESULTS = Path(__file__).parent / "results" / "sharded.json"


def command(case: str, folder: Path, processes: int, kind: str) -> list[str]:
    method, _, trained = case.partition("-")
    flags = ["--method", method, "--output-dir", str(folder), *FLAGS.split(), *METHODS[method].split()]
    flags += [*TRAINED[trained].split(), "--per-device-train-batch-size", str(ROWS // processes)]
    return flags if processes == 1 else [*flags, "--num-processes", str(processes), "--distributed", kind]


def run(flags: list[str], folder: Path, processes: int, case: str) -> dict[str, Any]:
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
    return {"seconds": round(time.perf_counter() - began, 1), **saved(folder, case)}


def base(case: str, path: str | Path, **settings: Any) -> Any:
    """The model in `path` as the method of a case has it; a score head that is not there is that of a run."""
    scores = case.startswith("reward_model")
    set_seed(42)
    if scores:
        return AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32, **settings)
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **settings)


def saved(folder: Path, case: str) -> dict[str, Any]:
    """What a run has written."""
    model, adapter = folder / "model", folder / "model" / "adapter_model.safetensors"
    if adapter.exists():
        weights = load_file(adapter)
        loaded = get_peft_model_state_dict(PeftModel.from_pretrained(base(case, builtin.MODEL), model))
        loads = all(torch.equal(loaded.pop(name), weight) for name, weight in weights.items()) and not loaded
        twice: list[str] = []
    else:
        whole, found = base(case, model, output_loading_info=True)
        weights, loads, twice = whole.state_dict(), not any(found.values()), tied(whole, model)
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    answers = sorted((line["step"], line["completion"]) for line in lines if "completion" in line)
    file = folder / "evaluations.jsonl"
    held_out = [json.loads(line)["answers"] for line in file.read_text().splitlines()] if file.exists() else []
    return {"weights": weights, "answers": answers, "held out": held_out, "loads": loads, "twice": twice}


def tied(model: PreTrainedModel, folder: Path) -> list[str]:
    """The weights in the file that are tied to another."""
    return sorted({*load_file(folder / "model.safetensors")} & {*model.all_tied_weights_keys})


def resumed(folder: Path, processes: int, case: str) -> dict[str, Any]:
    """What the run comes to without all that it wrote in and after its second step."""
    shutil.rmtree(folder / "checkpoints" / "checkpoint-2")
    shutil.rmtree(folder / "model")
    return run(["--resume", str(folder)], folder, processes, case)


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> float:
    moved = max((one[key] - start[key]).abs().max().item() for key in start)
    return max((one[key] - other[key]).abs().max().item() for key in one) / moved


def compared(case: str, one: dict[str, Any], several: dict[str, Any], again: dict[str, Any]) -> dict[str, Any]:
    if failed := [side["failed"] for side in (one, several, again) if "failed" in side]:
        return {"failed": failed[0]}
    if "lora" in case:  # an adapter's second half is zero at first
        start = {name: torch.zeros_like(weight) for name, weight in one["weights"].items() if "lora_B" in name}
    else:
        start = base(case, builtin.MODEL).state_dict()
    result = {"apart": apart(one["weights"], several["weights"], start)}
    result["resumed"] = apart(several["weights"], again["weights"], start)
    for name in ("answers", "held out"):
        if one[name]:
            result[name] = one[name] == several[name]
    result["loads"] = several["loads"] and again["loads"]
    return {**result, "twice": several["twice"], "seconds": several["seconds"], "seconds of one": one["seconds"]}


def measured_before(same: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The results by kind, where processes and devices are the `same`."""
    figures = json.loads(RESULTS.read_text(encoding="utf-8"))["figures"] if RESULTS.exists() else {}
    if any(figures.get(name) != value for name, value in same.items()):
        return {}
    return {kind: cases for kind, cases in figures.items() if kind not in same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, choices=[2, 4, 8])
    parser.add_argument("--kinds", nargs="+", default=["fsdp", "zero2", "zero3"])
    parser.add_argument("--methods", nargs="+", default=CASES, choices=CASES)
    args = parser.parse_args()
    if importlib.util.find_spec("deepspeed") is None and (left := {"zero2", "zero3"} & {*args.kinds}):
        print(f"{' and '.join(sorted(left))} left out: DeepSpeed is not installed (pip install deepspeed)")
        args.kinds = [kind for kind in args.kinds if kind not in left]
    device = "GPUs" if torch.accelerator.is_available() else "CPUs, gloo"
    same = {"processes": args.processes, "device": device}
    with tempfile.TemporaryDirectory() as temporary:
        for case in args.methods:
            folder = Path(temporary, f"{case}-one")
            alone = run(command(case, folder, 1, "ddp"), folder, 1, case)
            for kind in args.kinds:
                folder = Path(temporary, f"{case}-{kind}")
                several = run(command(case, folder, args.processes, kind), folder, args.processes, case)
                again = several if "failed" in several else resumed(folder, args.processes, case)
                found = {"date": datetime.date.today().isoformat(), **compared(case, alone, several, again)}
                results = measured_before(same)  # by another command meanwhile, too
                results.setdefault(kind, {})[case] = found
                print(kind, case, found, flush=True)
                record("sharded", {**same, **results})


if __name__ == "__main__":
    main()
