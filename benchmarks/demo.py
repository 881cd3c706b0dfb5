"""The README's demo, timed and measured: does the model learn the format without forgetting the medicine?

    python -m benchmarks.demo [--seeds 42 43 44] [options of rlhf run …]

For each seed the demo's command runs as a user runs it. Then the model before and after answers all 256 held-out
prompts four times each, sampled at temperature 1, and is judged by `scripts/make_builtin/measure.py`: `format` is the
share of answers that `medical_format` scores 1, `correct` of those that name the reference answer, `diagnosis` the same
for the items whose answer is a condition. Several minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import record


def measured(model: Path) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlhf_core import builtin
    from scripts.make_builtin import measure
    from scripts.make_builtin.phrases import SYSTEM

    torch.manual_seed(0)
    lines = builtin.data_file("prompts", "heldout").read_text(encoding="utf-8").splitlines()
    rows = sorted(map(json.loads, lines), key=lambda row: len(row["question"])) * measure.SAMPLES
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    scores = measure.measure(loaded, AutoTokenizer.from_pretrained(model), rows, SYSTEM)
    return {name: round(scores[name], 3) for name in ("format", "correct", "diagnosis")}


def demo(seed: int, folder: Path, options: list[str]) -> float:
    """Run the demo; returns its wall-clock seconds from the start of the command to its end."""
    rlhf = str(Path(sys.executable).with_name("rlhf"))
    command = [rlhf, "run", "--method", "grpo", "--reward", "medical_format", "--output-dir", str(folder)]
    started = time.perf_counter()
    subprocess.run([*command, "--seed", str(seed), *options], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    arguments, options = parser.parse_known_args()
    from rlhf_core import builtin

    before = measured(builtin.MODEL)
    print("before", before, flush=True)
    after = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            seconds = demo(seed, Path(folder) / "run", options)
            after.append({"seed": seed, "seconds": round(seconds), **measured(Path(folder) / "run" / "model")})
        print(after[-1], flush=True)
    if not options:
        record("demo", {"before": before, "after": after})


if __name__ == "__main__":
    main()
