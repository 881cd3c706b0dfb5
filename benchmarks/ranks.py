"""Stop, kill and hang one of two processes of a run, in every phase, and see how the run ends on the other.

    python -m benchmarks.ranks [CASE…]

Two machines are two commands on this one. With `fsdp` and `zero3` the processes share parameters, on CPUs by
`sharded_process.py` (`zero3` needs DeepSpeed). Noted of each case: seconds until the command that is not affected
ended, its exit code, whether its message names the process or machine, and how many tracebacks it printed. The limits
are the real ones, but for `--hang-timeout 20`. A run on one machine that has a checkpoint is then resumed for one step.
One that runs out of memory (the error is raised, no memory is filled) starts again by itself: noted are the seconds
until it says so, and the exit code at its end.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.record import record
from rlhf_core import testing

RESULTS = Path(__file__).parent / "results" / "ranks.json"
FLAGS = "--method grpo --reward ./rewards.py:place --model tiny --max-steps 4000 --save-steps 2 --logging-steps 1 "
FLAGS += (
    "--per-device-train-batch-size 4 --gradient-accumulation-steps 1 --num-generations 4 --max-completion-length 8 "
)
FLAGS += "--num-eval-prompts 2 --no-gradient-checkpointing --lr-scheduler-type constant --hang-timeout 20"
# The process of the rank in $HANGS hangs, or runs out of memory, when it calls this for the time in $NTH.
REWARDS = """
import importlib, os, time

def hang():
    open("hangs", "w").close()
    if os.environ["HOW"] == "memory": raise importlib.import_module("torch").OutOfMemoryError("out of memory")
    while os.environ["HOW"] == "busy": pass
    time.sleep(6000)

if os.environ.get("RANK") == os.environ.get("HANGS", "none") and not os.path.exists("hangs"):
    module, _, names = os.environ["WHERE"].partition(":")
    owner = importlib.import_module(module)
    *owners, name = names.split(".")
    for one in owners: owner = getattr(owner, one)
    real, calls = getattr(owner, name), []
    def replaced(*arguments, **named):
        calls.append(1)
        return hang() if len(calls) == int(os.environ["NTH"]) else real(*arguments, **named)
    setattr(owner, name, replaced)

def place(completions, **_): return [float(i % 4) for i in range(len(completions))]
"""
PLACES = {
    "reward": ("rlhf_core.rewards.binding:BoundReward.call", 4),
    "sampling": ("rlhf_core.prefix.sampler:uniforms", 4),
    "data": ("transformers:Trainer.get_batch_samples", 3),
    "evaluation": ("rlhf_core.training.evaluation:HeldOut.evaluate", 1),
    "saving": ("transformers:Trainer.save_model", 1),
    "building": ("transformers:Trainer.__init__", 1),
    "training": ("trl:GRPOTrainer.compute_loss", 4),
}
PROCESS = "benchmarks.sharded_process"
AGAIN = "The device ran out of memory"
ENDS = ("The run ends", "Stopped after", AGAIN)
SIGNALS = ("SIGSTOP", "SIGKILL", "SIGSEGV", "SIGTERM")
CASES = [f"{name} {rank}" for name in SIGNALS for rank in (0, 1)]
CASES += [f"hang {place} {rank}" for place in PLACES if place != "training" for rank in (0, 1)] + ["busy reward 1"]
CASES += [f"machine {what} {machine}" for what in ("stopped", "killed", "rank-killed") for machine in (0, 1)]
KINDS = ("fsdp", "zero3")
OF_KINDS = [f"{what} {rank}" for what in ("SIGKILL", "memory training", "hang training") for rank in (0, 1)]
CASES += ["memory training 0", *(f"{kind} {case}" for kind in KINDS for case in OF_KINDS)]


def start(arguments: list[str], output: Path, kind: str = "ddp", **environment: str) -> subprocess.Popen:
    line = [sys.executable, "-m", "rlhf_core" if kind == "ddp" else PROCESS, "run", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1]), **environment}
    with output.open("w") as file:
        return subprocess.Popen(line, env=environment, stdout=file, stderr=subprocess.STDOUT)


def ranks_of(process: subprocess.Popen) -> dict[int, psutil.Process]:
    found = {child.environ().get("RANK"): child for child in psutil.Process(process.pid).children()}
    return {int(rank): child for rank, child in found.items() if rank}


def wait_for(processes: list[subprocess.Popen], sign: Path, text: str) -> None:
    while not (sign.exists() and text in sign.read_text(encoding="utf-8")):
        if any(process.poll() is not None for process in processes):
            raise RuntimeError("ended before anything happened")
        time.sleep(0.1)


def kind_of(case: str) -> str:
    first = case.partition(" ")[0]
    return first if first in KINDS else "ddp"


def measure(case: str, folder: str) -> dict[str, Any]:
    kind = kind_of(case)
    what, *more, number = case.removeprefix(f"{kind} ").split()
    hangs = what in ("hang", "busy", "memory")
    environment = {}
    if hangs:
        where, nth = PLACES[more[0]]
        environment = {"HANGS": number, "HOW": what, "WHERE": where, "NTH": str(nth)}
    flags, outputs = [*FLAGS.split(), "--output-dir", folder], [Path(f"{folder}.0.txt"), Path(f"{folder}.1.txt")]
    flags += ["--distributed", kind] * (kind != "ddp") + ["--max-steps", "8"] * (what == "memory")
    if what == "machine":
        port = str(29600 + CASES.index(case))
        flags += ["--num-machines", "2", "--master-addr", f"127.0.0.1:{port}"]
        commands = [start([*flags, "--machine-rank", str(m)], outputs[m], **environment) for m in (0, 1)]
    else:
        commands = [start([*flags, "--num-processes", "2"], outputs[0], kind, **environment)]
    Path("hangs").unlink(missing_ok=True)
    wait_for(commands, Path("hangs") if hangs else Path(folder, "metrics.jsonl"), "" if hangs else '"step": 3')
    began, other, victims = time.monotonic(), commands[0], []
    if what == "machine":
        hit, other = commands[int(number)], commands[1 - int(number)]
        ranks, command = list(ranks_of(hit).values()), psutil.Process(hit.pid)
        victims = {"stopped": [*ranks, command], "killed": [command], "rank-killed": ranks}[more[0]]
        for victim in victims:
            victim.suspend() if more[0] == "stopped" else victim.kill()
    elif not hangs:
        os.kill(ranks_of(other)[int(number)].pid, getattr(signal, what))
    if what == "memory":
        wait_for(commands, outputs[0], AGAIN)
        took, code = round(time.monotonic() - began, 1), other.wait(900)
    else:
        code = other.wait(900)
        took = round(time.monotonic() - began, 1)
    for victim in victims:
        if victim.is_running():
            victim.kill()
    for command in commands:
        command.wait(900)
    said = outputs[commands.index(other)].read_text(encoding="utf-8")
    message = next((line for line in said.splitlines() if line.startswith(ENDS)), None)
    if message:  # without what is of this machine
        message = re.sub(r" \(process \d+ on [^)]+\)|/\S*/site-packages/", "", message)
    return {"seconds": took, "exit_code": code, "tracebacks": said.count("Traceback"), "message": message}


def resume(folder: str, kind: str) -> int:
    """The exit code of the run when it goes on to one step after its last checkpoint."""
    step = max(int(path.name.rpartition("-")[2]) for path in Path(folder, "checkpoints").glob("checkpoint-*"))
    return start(["--resume", folder, "--max-steps", str(step + 1)], Path(f"{folder}.resumed.txt"), kind).wait(900)


def main() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))["figures"] if RESULTS.exists() else {}
    cases = sys.argv[1:] or CASES
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        testing.tiny_model(Path("tiny"))
        Path("rewards.py").write_text(REWARDS)
        for case in cases:
            folder = case.replace(" ", "-")
            results[case] = measure(case, folder)
            ended_well = results[case]["exit_code"] == 0
            if list(Path(folder).glob("checkpoints/checkpoint-*")) and not (case.startswith("machine") or ended_well):
                results[case]["exit_code_of_the_resumed_run"] = resume(folder, kind_of(case))
            print(case, json.dumps(results[case]), flush=True)
            record("ranks", results)


if __name__ == "__main__":
    main()
