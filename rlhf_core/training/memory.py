"""The most memory that a run takes: of its GPU, or of the machine where it runs on CPUs."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # what forgets the highest resident set of a process: man 5 proc


@dataclass(frozen=True)
class Expected:
    """What a run is expected to take, in bytes at once, if that is known; `lines` are shown before its weights load."""

    peak: int | None = None
    lines: list[tuple[str, str]] = field(default_factory=list)


class PeakMemory:
    """Begins before weights load. `read()`: bytes at most since then, by name: `allocated` and `reserved` on a GPU,
    `resident` beyond the beginning on a CPU, where the system tells it (Linux).
    """

    def __init__(self) -> None:
        import torch

        self.on_gpu = torch.cuda.is_available()
        self.before = 0
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):
                CLEAR_REFS.write_text(RESET_PEAK)
            self.before = _of_status("VmRSS") or 0

    def read(self) -> dict[str, int]:
        if self.on_gpu:
            import torch

            return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        most = _of_status("VmHWM")
        return {} if most is None else {"resident": max(0, most - self.before)}


def _of_status(name: str) -> int | None:
    """A figure of the process's status in bytes."""
    try:
        lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith(f"{name}:")), None)
    return None if found is None else int(found) * 1024
