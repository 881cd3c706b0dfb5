"""GRPO at rates from 1e-6 to 1e-3: at which does an adapter learn?

    python -m benchmarks.lora_rates [--smollm2 FOLDER] [--seeds 42 43 44] [--again]

Adapters are those of the defaults (r 16, alpha 32, all-linear, beta 0.001), the rate is constant, and runs are short,
because they were to fit on one core beside other programs. The built-in model learns the format that `medical_format`
rewards (16 answers a step), SmolLM2-135M-Instruct, whose folder `--smollm2` names, to answer in few characters (8
answers of 12 tokens a step). Figures are of the answers that are trained on. Results are written after each run, and a
second start goes on with the runs that are missing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.record import record
from rlhf_core.catalog import Catalog
from rlhf_core.config import resolve
from rlhf_core.training.run import train

SHORT = {
    **{"method": "grpo", "num_generations": 8, "gradient_accumulation_steps": 1, "gradient_checkpointing": False},
    **{"lr_scheduler_type": "constant", "num_eval_prompts": 0, "logging_steps": 1, "save_steps": 1000, "beta": 0.001},
    **{"lora": True, "lora_target_modules": "all-linear"},
}
STUDIES: dict[str, dict[str, Any]] = {
    "built-in model, LoRA": {
        **SHORT,
        **{"reward": ["medical_format"], "max_steps": 16, "per_device_train_batch_size": 16},
    },
    "SmolLM2-135M, LoRA": {
        **SHORT,
        **{"reward": ["length:max=0,tolerance=60"], "max_steps": 6, "per_device_train_batch_size": 8},
        "max_completion_length": 12,
    },
}
RATES = ((1e-5, 1e-4, 1e-3), (1e-6, 3e-5, 3e-4))  # the first three with every seed before the others
LAST = 4  # steps whose mean is given
THINGS = (
    *("rain", "a volcano", "bread", "the moon", "a bicycle", "salt", "a library", "snow", "a bridge", "honey"),
    *("thunder", "a compass", "soap", "a magnet", "coffee", "paper", "a tide", "glass", "a seed", "rust"),
)


def run(values: dict[str, Any], rate: float, seed: int, folder: Path) -> dict[str, Any]:
    """The figures of one run: its rewards in the first step and in the last ones, and the last KL divergence."""
    output = folder / f"run-{time.time_ns()}"
    started = time.perf_counter()
    config, method = resolve({**values, "learning_rate": rate, "seed": seed, "output_dir": str(output)}, Catalog())
    with contextlib.redirect_stdout(None):
        if code := train(config, method, Catalog()):
            raise SystemExit(f"{config.model}, rate {rate:g}: the run ended with {code}")
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [line for line in map(json.loads, lines) if "reward" in line]
    means = {name: fmean(line[name] for line in steps[-LAST:]) for name in ("reward", "kl")}
    return {"seconds": round(time.perf_counter() - started), "first reward": steps[0]["reward"], **means}


def write_prompts(file: Path) -> None:
    questions = ("What is {}?", "Why do people like {}?", "Tell me something about {}.")
    rows = [{"prompt": question.format(thing)} for question in questions for thing in THINGS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def jobs(seeds: list[int], smollm2: Path | None, prompts: Path) -> Iterator[tuple[str, float, int, dict[str, Any]]]:
    """(study, rate, seed, options) of each run, in the order of what is worth knowing most."""
    for rates in RATES:
        for seed in seeds:
            for study, values in STUDIES.items():
                own = not study.startswith("SmolLM2")
                more = {} if own else {"model": str(smollm2), "data": [str(prompts)]}
                if own or smollm2 is not None:
                    yield from ((study, rate, seed, {**values, **more}) for rate in rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", type=Path, help="folder of SmolLM2-135M-Instruct; without it, it is left out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--again", action="store_true", help="run all again")
    arguments = parser.parse_args()
    file = Path(__file__).parent / "results" / "lora_rates.json"
    kept = file.exists() and not arguments.again
    results: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["figures"] if kept else []
    done = {(line["study"], line["rate"], line["seed"]) for line in results}
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        write_prompts(prompts)
        for study, rate, seed, values in jobs(arguments.seeds, arguments.smollm2, prompts):
            if (study, rate, seed) not in done:
                results.append({"study": study, "rate": rate, "seed": seed, **run(values, rate, seed, Path(folder))})
                record("lora_rates", results)


if __name__ == "__main__":
    main()
