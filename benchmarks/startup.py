"""How long `rlhf --help` and the listings take, relative to importing click and pluggy alone.

    python -m benchmarks.startup

Each command is timed beside the baseline, one after the other, many times; the median of the paired ratios counts.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.record import record

PAIRS = 20
BASELINE = [sys.executable, "-c", "import click, pluggy"]
COMMANDS = (["--help"], ["methods"], ["rewards"], ["formatters"], ["plugins"])


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    rlhf = str(Path(sys.executable).with_name("rlhf"))
    figures = {}
    for arguments in COMMANDS:
        seconds([rlhf, *arguments])  # the first one reads files from the disk
        pairs = [(seconds([rlhf, *arguments]), seconds(BASELINE)) for _ in range(PAIRS)]
        ratio = statistics.median(ours / base for ours, base in pairs)
        milliseconds = statistics.median(ours for ours, _ in pairs) * 1000
        figures["rlhf " + arguments[0]] = {"times_the_baseline": round(ratio, 2), "milliseconds": round(milliseconds)}
        print(f"rlhf {arguments[0]:12} {ratio:.2f} times the baseline, {milliseconds:.0f} ms")
    record("startup", figures)


if __name__ == "__main__":
    main()
