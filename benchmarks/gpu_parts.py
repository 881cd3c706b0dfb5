"""What `benchmarks/gpu.py` measures, each part in its own process. Prints a line of JSON for every finding.

    python -m benchmarks.gpu_parts correct [--rehearse]

Models have random weights: speed and memory do not depend on them, and no file is needed. Every answer has the full
length.
"""

from __future__ import annotations

import argparse

from benchmarks.gpu_correct import correct, kernels_alone
from benchmarks.gpu_grpo import batching, command, generate, unsloth
from benchmarks.gpu_kit import REAL, REHEARSAL
from benchmarks.gpu_runs import commands
from benchmarks.gpu_speed import speed, speed_large
from benchmarks.gpu_trainers import resume, trainers

PARTS = {
    "correct": correct,
    "kernels": kernels_alone,
    "command": command,
    "generate": generate,
    "batching": batching,
    "speed": speed,
    "speed_large": speed_large,
    "unsloth": unsloth,
    "trainers": trainers,
    "commands": commands,
    "resume": resume,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on a CPU")
    given = parser.parse_args()
    PARTS[given.part](REHEARSAL if given.rehearse else REAL)


if __name__ == "__main__":
    main()
