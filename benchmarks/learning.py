"""Every method on the built-in model and data, with its preset: does it learn what it is for, and how long does it
take?

    python -m benchmarks.learning [--methods sft dpo …] [--seeds 42 43 44] [options of rlhf run …]

Each run is the command that a user types; figures are those of its evaluation on held-out rows before and after. At
most three minutes a run on two CPU cores, so about half an hour in all. The results of methods that `--methods` leaves
out stay as they were.
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

# method -> (further flags, the figures that say whether it learned)
METHODS = {
    "sft": ([], ["loss"]),
    "reward_model": ([], ["accuracy"]),
    "dpo": (["--reward", "medical_format"], ["rewards/accuracies", "rewards/margins", "medical_format"]),
    "orpo": (["--reward", "medical_format"], ["rewards/accuracies", "log_odds_chosen", "medical_format"]),
    "ppo": (["--reward", "medical_format"], ["medical_format"]),
    "grpo": (["--reward", "medical_format"], ["medical_format"]),
}


def run(method: str, seed: int, options: list[str]) -> dict[str, object]:
    """{"seconds": …, figure: [before, after], …} of one run."""
    flags, figures = METHODS[method]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        rlhf = str(Path(sys.executable).with_name("rlhf"))
        command = [rlhf, "run", "--method", method, *flags, "--seed", str(seed), "--output-dir", str(output), *options]
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = round(time.perf_counter() - started)
        evaluations = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
        lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        kl = [row["kl"] for row in map(json.loads, lines) if "kl" in row]
    both = [{**one["metrics"], **one["rewards"]} for one in (evaluations["before"], evaluations["after"])]
    found = {name: [round(values[name], 3) for values in both] for name in figures}
    return {"seconds": seconds, **found, **({"last kl": round(sum(kl[-5:]) / len(kl[-5:]), 3)} if kl else {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    arguments, options = parser.parse_known_args()
    file = Path(__file__).parent / "results" / "learning.json"
    results = json.loads(file.read_text(encoding="utf-8"))["figures"] if file.exists() else {}
    for method in arguments.methods:
        results[method] = []
        for seed in arguments.seeds:
            results[method].append({"seed": seed, **run(method, seed, options)})
            print(method, results[method][-1], flush=True)
        if not options:
            record("learning", results)


if __name__ == "__main__":
    main()
