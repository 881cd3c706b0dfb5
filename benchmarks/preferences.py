"""From prompts to a better model, as the guide has it: make, inspect, DPO, compare, each timed as a user runs it.

    python -m benchmarks.preferences [--prompts 160]

Twice: with the reward `medical_format` as the judge, and with a judge behind an endpoint on loopback that compares two
answers at a time. That one is no language model: it prefers the answer with more different characters, so its part
measures the path, not a judge. Several minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import record
from tests.endpoint_server import EndpointServer
from tests.gullible import Judge

RLHF = str(Path(sys.executable).with_name("rlhf"))


def timed(folder: Path, *words: str) -> float:
    started = time.perf_counter()
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    subprocess.run([RLHF, *words], check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - started, 1)


def path(folder: Path, judge: list[str], compare: list[str], prompts: int) -> dict[str, Any]:
    """The seconds of each command, and what came of them."""
    make = ["preferences", "make", "--data", "builtin", "--model", "builtin", "--n", "4", "--prompts", str(prompts)]
    seconds = {
        "make": timed(folder, *make, *judge, "--output", "pairs.jsonl"),
        "inspect": timed(folder, "data", "inspect", "pairs.jsonl"),
        "dpo": timed(folder, "run", "--method", "dpo", "--data", "pairs.jsonl", "--output-dir", "dpo", *compare[:2]),
        "compare": timed(
            folder,
            "compare",
            "builtin",
            "dpo",
            "--data",
            "builtin",
            *compare,
            "--prompts",
            "64",
            "--output",
            "compared",
        ),
    }
    sheet = json.loads((folder / "pairs.sheet.json").read_text(encoding="utf-8"))
    compared = json.loads((folder / "compared" / "comparison.json").read_text(encoding="utf-8"))["results"]["sampled"]
    found = {"seconds": {**seconds, "all": round(sum(seconds.values()), 1)}, "pairs": sheet["pairs"]}
    found["before"] = compared["models"]["builtin"]["rewards"]
    found["after"] = compared["models"]["dpo"]["rewards"]
    if judged := compared["against_baseline"]["dpo"].get("judged"):
        found["wins by the judge"] = {key: judged["win_rate"][key] for key in ("rate", "low", "high")}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=160)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"prompts": arguments.prompts}
    with tempfile.TemporaryDirectory() as folder:
        reward = ["--reward", "medical_format"]
        result["reward"] = path(Path(folder), ["--judge", "medical_format"], reward, arguments.prompts)
        print(json.dumps(result["reward"]), flush=True)
    prefers = Judge(lambda question, answer: min(1.0, len(set(answer)) / 200))
    with EndpointServer(prefers) as server, tempfile.TemporaryDirectory() as folder:
        judge = f"judge:model=loopback,base_url={server.url},prices=1/1"
        asked = [*reward, "--judge", judge]
        result["endpoint"] = path(Path(folder), ["--pairwise", "--judge", judge], asked, arguments.prompts)
        result["endpoint"]["calls"] = len(server.requests)
        print(json.dumps(result["endpoint"]), flush=True)
    record("preferences", result)


if __name__ == "__main__":
    main()
