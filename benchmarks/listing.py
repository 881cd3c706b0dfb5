"""How long `rlhf plugins` takes with 200 more plugins installed, relative to importing click and pluggy alone.

    python -m benchmarks.listing

The plugins are placeholders: a folder of dist-info folders and modules on PYTHONPATH, each with a README of 100 lines
in its metadata. The command is timed beside the baseline, one after the other; the median of the paired ratios counts.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.record import record
from benchmarks.startup import BASELINE, seconds

PAIRS = 20
PLUGINS = 200
COMMANDS = (["plugins"], ["rewards"], ["--help"])


def make_plugins(site: Path, count: int) -> None:
    """Write `count` reward plugins to `site`, as pip would leave them."""
    for number in range(count):
        module = f"rlhf_reward_placeholder_{number}"
        (site / f"{module}.py").write_text("raise SystemExit('a listing imported this')\n")
        info = site / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 1.0\nSummary: number {number}\n"
            "Requires-Python: >=3.11\nRequires-Dist: rlhf-core>=0.1\n\n" + "A line of the README.\n" * 100
        )
        (info / "entry_points.txt").write_text(f"[rlhf.rewards]\nplaceholder_{number} = {module}\n")


def measure(command: list[str]) -> dict[str, float]:
    """The median over pairs of the command and the baseline."""
    seconds(command)  # the first one reads files from the disk
    pairs = [(seconds(command), seconds(BASELINE)) for _ in range(PAIRS)]
    ratio = statistics.median(ours / base for ours, base in pairs)
    return {
        "times_the_baseline": round(ratio, 2),
        "seconds": round(statistics.median(ours for ours, _ in pairs), 3),
    }


def main() -> None:
    command = [sys.executable, "-m", "rlhf_core"]
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        for count in (0, PLUGINS):
            make_plugins(Path(folder), count)
            for arguments in COMMANDS:
                name = f"rlhf {arguments[0]}, {count} more plugins"
                figures[name] = measure([*command, *arguments])
                print(f"{name:36} {figures[name]['times_the_baseline']:5.2f} times, {figures[name]['seconds']:.3f} s")
    record("listing", figures)


if __name__ == "__main__":
    main()
