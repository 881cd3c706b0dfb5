"""Everything that needs a GPU, in parts, each with a limit of time, ordered by worth: is it correct there, how fast is
it, how much memory does it take?

    python -m benchmarks.gpu [--output FOLDER] [--parts correct command …]
    python -m benchmarks.gpu --rehearse          # tiny shapes on a CPU: does the script itself work?

Without `--parts` it runs those that have not been measured before, in 13 minutes at most; where a command may take ten
minutes, `--parts first` and `--parts second` are these in two. `gpu_parts.py` says what each part measures, each in its
own process. Findings are printed, and written to FOLDER/gpu_DATE.json (by default in benchmarks/results), as they are
made; those of parts that are not run now stay there. The exit code is 1 if any check or part failed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.record import machine

FIRST = {"correct": 120, "kernels": 30, "command": 220, "generate": 100, "batching": 70}  # 540 in all
SECOND = {"speed": 60, "speed_large": 80, "unsloth": 110}  # 250 in all
BEFORE = {"trainers": 120, "commands": 110, "resume": 230}  # measured in November 2026, but for `trainers`
SECONDS = FIRST | SECOND | BEFORE
HALVES = {"first": FIRST, "second": SECOND}
GOALS = """goals: sampling within 2 times the time of reading weights and cache (speed: times_floor); 5 times the
tokens_per_s of TRL with generate, 3 times those with continuous batching (command, generate, batching); a step of
8B in 4 bits, prompts of 1,024 tokens, 8 answers of 512, within 12 GB, then 8 GB (command)"""
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")


def run(part: str, rehearse: bool, models: str) -> Iterator[dict[str, Any]]:
    """What a part found, as it finds it, and how it ended if it failed."""
    command = [sys.executable, "-m", "benchmarks.gpu_parts", part, *(["--rehearse"] if rehearse else [])]
    limit = SECONDS[part] * (5 if rehearse else 1)
    started = time.perf_counter()
    environment = {**os.environ, "BENCHMARK_MODELS": models}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment
    ) as process:
        stop = threading.Timer(limit, os.killpg, (process.pid, signal.SIGKILL))
        stop.start()
        for line in process.stdout or ():
            if line.startswith('{"what"'):
                yield {"part": part, **json.loads(line)}
            print(line, end="", flush=True)
        code = process.wait()
        stop.cancel()
    took = round(time.perf_counter() - started, 1)
    if code:
        why = f"stopped after {limit} s" if took >= limit else f"ended with exit code {code}"
        yield {"part": part, "what": "the full part", "ok": False, "error": why}
    yield {"part": part, "what": "time", "seconds": took}


def table(found: list[dict[str, Any]]) -> str:
    lines = ["| part | what | ok | figures |", "|---|---|---|---|"]
    for one in found:
        ok = {True: "yes", False: "NO"}.get(one.get("ok", ""), "")
        figures = ", ".join(f"{name} {value}" for name, value in one.items() if name not in ("part", "what", "ok"))
        lines.append(f"| {one['part']} | {one['what']} | {ok} | {figures} |")
    return "\n".join(lines)


def gpu() -> str | None:
    """Its name, asked of the driver, or else of torch, in another process, so that this one takes no memory there."""
    by_torch = "import torch; print(torch.cuda.get_device_name())"
    nvidia_smi = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    for query in (nvidia_smi, [sys.executable, "-c", by_torch]):
        try:
            return subprocess.check_output(query, text=True, stderr=subprocess.DEVNULL).splitlines()[0]
        except (OSError, subprocess.CalledProcessError):
            continue
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on a CPU; writes gpu_rehearsal.json")
    parser.add_argument("--parts", nargs="+", default=list(HALVES), choices=[*HALVES, *SECONDS])
    parser.add_argument("--output", type=Path, help="folder of the results")
    given = parser.parse_args()
    name = gpu()
    if name is None and not given.rehearse:
        parser.error("there is no NVIDIA GPU here; --rehearse tries the script on a CPU")
    parts = [part for name_of in given.parts for part in HALVES.get(name_of, [name_of])]
    date = datetime.date.today().isoformat()
    folder = given.output or Path(__file__).parent / "results"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ("gpu_rehearsal.json" if given.rehearse else f"gpu_{date}.json")
    before = json.loads(file.read_text())["figures"] if file.exists() else []
    installed = {one.metadata["Name"] for one in importlib.metadata.distributions()}
    figures = [one for one in before if one["part"] not in parts]
    result: dict[str, Any] = {
        "date": date,
        "machine": machine() + (f"; {name}" if name else ""),
        "versions": {one: importlib.metadata.version(one) for one in LIBRARIES if one in installed},
        "figures": figures,
    }
    with tempfile.TemporaryDirectory(dir=in_memory()) as models:
        for part in parts:
            for one in run(part, given.rehearse, models):
                figures.append(one)
                write(file, result)
    print(f"\n{table(figures)}\n\n{GOALS}\n\nwritten to {file}")
    if any(one.get("ok") is False for one in figures):
        raise SystemExit(1)


def in_memory() -> str | None:
    """Where the models of several parts are kept: in memory if there is room, else on the disk."""
    place = "/dev/shm"
    return place if os.path.isdir(place) and shutil.disk_usage(place).free > 40e9 else None


def write(file: Path, result: dict[str, Any]) -> None:
    """Whole, whatever ends this process."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    new.replace(file)


if __name__ == "__main__":
    main()
