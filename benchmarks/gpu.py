"""Everything that needs a GPU, in fourteen minutes at most: is it correct there, how fast is it, how much memory
does it take?

    python -m benchmarks.gpu [--output FOLDER] [--parts equality qlora …]
    python -m benchmarks.gpu --rehearse          # tiny shapes on a CPU: does the script itself work?

`gpu_parts.py` says what each part measures. Each part runs in its own process with a time budget; what it found before
it failed or was stopped is saved. Findings are printed as they are made, then as a table, and written to
FOLDER/gpu.json (by default in benchmarks/results). The exit code is 1 if any check or part failed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.record import machine

SECONDS = {
    "equality": 45,
    "qlora": 160,
    "decoding": 60,
    "steps": 75,
    "commands": 110,
    "trainers": 120,
    "resume": 230,
}  # 800 in all
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")


def run(part: str, rehearse: bool) -> list[dict[str, Any]]:
    """What a part found, and how it ended if it failed."""
    command = [sys.executable, "-m", "benchmarks.gpu_parts", part, *(["--rehearse"] if rehearse else [])]
    found: list[dict[str, Any]] = []
    limit = SECONDS[part] * (5 if rehearse else 1)
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        stop = threading.Timer(limit, os.killpg, (process.pid, signal.SIGKILL))
        stop.start()
        for line in process.stdout or ():
            if line.startswith('{"what"'):
                found.append({"part": part, **json.loads(line)})
            print(line, end="", flush=True)
        code = process.wait()
        stop.cancel()
    took = round(time.perf_counter() - started, 1)
    if code:
        why = f"stopped after {limit} s" if took >= limit else f"ended with exit code {code}"
        found.append({"part": part, "what": "the full part", "ok": False, "error": why})
    found.append({"part": part, "what": "time", "seconds": took})
    return found


def table(found: list[dict[str, Any]]) -> str:
    lines = ["| part | what | ok | figures |", "|---|---|---|---|"]
    for one in found:
        ok = {True: "yes", False: "NO"}.get(one.get("ok", ""), "")
        figures = ", ".join(f"{name} {value}" for name, value in one.items() if name not in ("part", "what", "ok"))
        lines.append(f"| {one['part']} | {one['what']} | {ok} | {figures} |")
    return "\n".join(lines)


def gpu() -> str | None:
    """Its name, asked of the driver, so that this process takes no memory there."""
    try:
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        return subprocess.check_output(query, text=True).splitlines()[0]
    except (OSError, subprocess.CalledProcessError):
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on a CPU; writes gpu_rehearsal.json")
    parser.add_argument("--parts", nargs="+", default=list(SECONDS), choices=SECONDS)
    parser.add_argument("--output", type=Path, help="folder of the results")
    given = parser.parse_args()
    name = gpu()
    if name is None and not given.rehearse:
        parser.error("there is no NVIDIA GPU here; --rehearse tries the script on a CPU")
    folder = given.output or Path(__file__).parent / "results"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ("gpu_rehearsal.json" if given.rehearse else "gpu.json")
    installed = {one.metadata["Name"] for one in importlib.metadata.distributions()}
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": machine() + (f"; {name}" if name else ""),
        "versions": {one: importlib.metadata.version(one) for one in LIBRARIES if one in installed},
        "figures": [],
    }
    for part in given.parts:
        result["figures"] += run(part, given.rehearse)
        file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"\n{table(result['figures'])}\n\nwritten to {file}")
    if any(one.get("ok") is False for one in result["figures"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
