"""A command of `rlhf` in this process, with what it took of the GPU's memory, and no more than it is allowed.

    python -m benchmarks.gpu_measured FILE LIMIT run --method grpo …     # LIMIT: GB, 0 for all

Imports nothing of the engine before the phases of training are watched.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rlhf_core import phases

GB = 1e9
peaks: dict[str, float] = {}
file = Path(sys.argv[1])  # written after each phase, so that a run that is stopped leaves its own


def peak(of: str) -> None:
    """Note the most that was allocated since the last call, as of this phase."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        peaks[of] = max(peaks.get(of, 0.0), torch.cuda.max_memory_allocated() / GB)
        peaks["reserved"] = torch.cuda.max_memory_reserved() / GB
        torch.cuda.reset_peak_memory_stats()
        file.write_text(json.dumps(peaks))


def watch_phases() -> None:
    plain = phases.phase

    @contextmanager
    def watched(name: phases.Phase) -> Iterator[None]:
        peak("learning" if "sampling" in peaks else "loading")
        try:
            with plain(name):
                yield
        finally:
            peak(name)

    phases.phase = watched  # type: ignore[assignment]


def leave_out_the_estimate() -> None:
    """It takes the processor longer than a step of such a model takes the GPU; the part measures it by itself."""
    run = importlib.import_module("rlhf_core.cli.run")
    memory = importlib.import_module("rlhf_core.training.memory")
    run._expected = lambda *_: memory.Expected()


def limit(gigabytes: float) -> None:
    """As if the GPU had so much memory, part of which the CUDA context takes, also for who asks how much is free."""
    if not torch.cuda.is_available():
        return
    free, total = torch.cuda.mem_get_info()
    context = total - free  # taken before a tensor is there, by this process or others
    allowed = int(gigabytes * GB) - context
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    torch.cuda.mem_get_info = lambda *_: (allowed - torch.cuda.memory_reserved(), int(gigabytes * GB))


def main() -> int:
    gigabytes, arguments = float(sys.argv[2]), sys.argv[3:]
    watch_phases()
    leave_out_the_estimate()
    if gigabytes:
        limit(gigabytes)
    from rlhf_core.cli import main as rlhf

    sys.argv = ["rlhf", *arguments]
    code: Any = 0
    try:
        rlhf()
    except SystemExit as error:
        code = error.code
    peak("learning")
    return int(code or 0)


if __name__ == "__main__":
    raise SystemExit(main())
