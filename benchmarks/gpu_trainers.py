"""The trainers on a GPU: do they compute there what they compute on a CPU, and do killed runs resume?

python -m benchmarks.gpu_parts trainers [--rehearse]
python -m benchmarks.gpu_parts resume [--rehearse]
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import killed
from benchmarks.gpu_kit import REAL, Scale, attempt, say
from benchmarks.gpu_runs import KINDS, METHODS
from rlhf_core import testing

PRECISIONS = {"float32": (["--dtype", "float32"], 1e-3), "bfloat16": ([], 0.05)}  # and how far apart is too far
SAMPLED = ("ppo", "grpo")


def trainers(scale: Scale) -> None:
    """Three steps of each method: losses and norms of gradients beside the CPU's, the largest difference relative to
    the largest value. Of those that sample answers one step in float32, where both devices sample the same; in place of
    its loss, which is 0 but for rounding, the length of the answers.
    """
    with tempfile.TemporaryDirectory() as temporary:

        def steps(name: str, device: str, flags: list[str]) -> list[dict[str, Any]]:
            folder = Path(temporary, "-".join([name, device, *flags]))
            line = [sys.executable, "-m", "rlhf_core", "run", "--method", name, *METHODS[name], *KINDS["full"], *flags]
            line += ["--max-steps", "3", "--logging-steps", "1", "--num-eval-prompts", "0", "--learning-rate", "1e-3"]
            line += ["--report-to", "none"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"} | (
                {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
            )
            line += ["--output-dir", str(folder)]
            done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(done.stderr[-400:])
            rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
            return [row for row in rows if "loss" in row]

        jobs = [(name, kind) for name in METHODS for kind in PRECISIONS if kind == "float32" or name not in SAMPLED]
        with ThreadPoolExecutor(16 if scale is REAL else 2) as pool:
            on_cpu = {name: pool.submit(steps, name, "cpu", []) for name in METHODS}
            on_gpu = {(name, kind): pool.submit(steps, name, "gpu", PRECISIONS[kind][0]) for name, kind in jobs}
        for name, kind in jobs:
            with attempt(f"{name} beside the CPU, {kind}"):
                wanted, found = on_cpu[name].result(), on_gpu[name, kind].result()
                keys, count = (
                    (("completions/mean_length", "grad_norm"), 1) if name in SAMPLED else (("loss", "grad_norm"), 3)
                )
                apart = {}
                for key in keys:
                    pairs = [(one[key], other[key]) for one, other in zip(wanted[:count], found[:count], strict=True)]
                    apart[key] = max(abs(a - b) for a, b in pairs) / max(abs(a) for a, _ in pairs)
                say(f"{name} beside the CPU, {kind}", ok=max(apart.values()) < PRECISIONS[kind][1], **apart)


def resume(scale: Scale) -> None:
    """Every method, in full and in 4 bits, killed at random moments and resumed: the weights of a run that was not, to
    the last bit? `apart_without_kill` tells two runs apart that nobody killed: the device's own.
    """
    names = list(METHODS) if scale is REAL else ["dpo", "grpo"]
    with tempfile.TemporaryDirectory() as temporary:

        def tried(job: tuple[str, str]) -> None:
            name, kind = job
            folder = Path(temporary, "-".join(job))
            testing.tiny_model(folder / "model")
            with attempt(f"killed and resumed, {name}, {kind}"):
                found = killed.measure(name, folder, 2, random.Random("-".join(job)), *KINDS[kind])
                again = folder / "again"
                killed.finish(killed.command(name, folder / "model", again, *KINDS[kind]), again)
                apart = killed.difference(folder / f"{name}-unkilled", again)
                found["kills"] = [one["step"] for one in found["kills"]]
                ok = found["same_steps_logged"] and found["largest_difference_of_weights"] <= apart
                say(f"killed and resumed, {name}, {kind}", ok=ok, **found, apart_without_kill=apart)

        with ThreadPoolExecutor(12 if scale is REAL else 2) as pool:
            list(pool.map(tried, [(name, kind) for kind in KINDS for name in names]))
