"""Is each diagnosis found where it is really wrong, and nothing where a run is clean?

    python -m benchmarks.diagnoses [NAME …]           planted failures, each a short run of its own
    python -m benchmarks.diagnoses --clean [FOLDER …] the runs of the learning benchmark, or those in these folders

A planted run has one thing wrong; the diagnosis of that name must be found, and no other one. The clean runs are those
of benchmarks/learning.py: six methods with their presets, three seeds each. Results: benchmarks/results/diagnoses.json.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.diagnoses_planted import PLANTED, Planted, trainer_state
from benchmarks.record import record
from rlhf_core.diagnoses import folder
from rlhf_core.diagnoses.catalog import DIAGNOSES

RESULTS = Path(__file__).parent / "results" / "diagnoses.json"
RLHF = str(Path(sys.executable).with_name("rlhf"))
LAYOUT = ["--reward", "medical_format"]
METHODS = {"sft": [], "reward_model": [], "dpo": LAYOUT, "orpo": LAYOUT, "ppo": LAYOUT, "grpo": LAYOUT}


def found_in(run: Path) -> list[dict[str, Any]]:
    """What the run said of itself, and what `rlhf diagnose` says of it now: they must be the same."""
    said = folder.said_of(run) if run.is_dir() else None
    lines = [line for line in folder.diagnose(str(run))[1] if line["level"] != "info"]
    names = [line["name"] for line in lines]
    if said is not None and sorted(said) != sorted(names):
        print(f"  said while it trained: {said}; said of its logs: {names}")
    return lines


def plant(one: Planted, here: Path) -> dict[str, Any]:
    """{"name", "found": [name, …], "step", "seconds"} of a run in which something is wrong. One that is there already
    is not trained again.
    """
    if (here / "run" / "metrics.jsonl").is_file():
        return looked_at(one, here / "run")
    flags = one.prepare(here) if one.prepare else []
    (here / "rewards.py").write_text(one.rewards)
    flags = ["--method", one.method, "--num-eval-prompts", "0", *one.flags, *flags, "--output-dir", str(here / "run")]
    started = time.perf_counter()
    log = here / "log"
    with log.open("w") as stream:
        code = subprocess.run([RLHF, "run", *flags], cwd=here, stdout=stream, stderr=stream).returncode
    seconds = round(time.perf_counter() - started)
    if code not in (0, 1) or not (here / "run").is_dir():
        print(log.read_text()[-2000:])
        return {"name": one.name, "found": [], "code": code}
    return {**looked_at(one, here / "run"), "seconds": seconds}


def looked_at(one: Planted, run: Path) -> dict[str, Any]:
    found = found_in(trainer_state(run) if one.by_state else run)
    for line in found:
        print(f"  {line['name']}, step {line['step']}: {line['evidence']}")
    step = next((line["step"] for line in found if line["name"] == one.name), None)
    return {"name": one.name, "plant": one.what, "found": [line["name"] for line in found], "step": step}


def clean(method: str, seed: int, run: Path) -> dict[str, Any]:
    if not run.exists():
        flags = ["--method", method, *METHODS[method], "--seed", str(seed), "--output-dir", str(run)]
        subprocess.run([RLHF, "run", *flags], check=True, stdout=subprocess.DEVNULL)
    lines = found_in(run)
    return {"method": method, "seed": seed, "steps": folder.diagnose(str(run))[0].step, "found": lines}


def keep(new: dict[str, list[dict[str, Any]]]) -> None:
    """Puts each result in the place of the one of the same run: several commands may be at work beside each other."""
    with RESULTS.open("a+", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        text = stream.read()
        results = json.loads(text)["figures"] if text else {}
        planted = {one["name"]: one for one in results.get("planted", [])}
        for one in new.get("planted", []):
            planted[one["name"]] = {**planted.get(one["name"], {}), **one}
        clean = {(one["method"], one["seed"]): one for one in [*results.get("clean", []), *new.get("clean", [])]}
        order, methods = [one.name for one in DIAGNOSES], list(METHODS)
        record(
            "diagnoses",
            {
                "planted": sorted(planted.values(), key=lambda one: order.index(one["name"])),
                "clean": sorted(clean.values(), key=lambda one: (methods.index(one["method"]), one["seed"])),
            },
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--clean", action="store_true")
    parser.add_argument("--keep", help="folder for the planted runs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.clean:
            folders = [Path(name) for name in arguments.names]
            folders = folders or [Path(temporary, f"{method}-{seed}") for method in METHODS for seed in (42, 43, 44)]
            for run in folders:
                method, _, seed = run.name.rpartition("-")
                found = clean(method, int(seed), run)
                print(found, flush=True)
                keep({"clean": [found]})
        else:
            for one in [one for one in PLANTED if not arguments.names or one.name in arguments.names]:
                here = Path(arguments.keep or temporary, one.name)
                here.mkdir(parents=True, exist_ok=True)
                found = plant(one, here)
                print(found, flush=True)
                keep({"planted": [found]})


if __name__ == "__main__":
    main()
