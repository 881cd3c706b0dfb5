"""What it costs to trust nothing on resume: hashing a checkpoint, checking it, and reading long logs.

    python -m benchmarks.resume [GIGABYTES] [FOLDER]

The checkpoint is that of a run in float32 with Adam: a third of its bytes are weights, in files of 5 GB at most, two
thirds the optimizer's state. Each time is measured twice, with the files in memory and after they were dropped from it,
where the system allows that (as root). The logs are 600 MB of samples, of which half are kept; memory is the peak over
that of the process before.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.record import record
from rlhf_core.outputs import keep_lines
from rlhf_core.training.checkpoint import damage, seal

LOG_BYTES = 600_000_000
SHARD = 5_000_000_000


def make(folder: Path, size: int) -> Path:
    """A checkpoint of `size` bytes of noise."""
    made = folder / "checkpoint-1"
    made.mkdir()
    third, noise = size // 3, os.urandom(1 << 24)
    files = {f"model-{i}.safetensors": min(SHARD, third - i * SHARD) for i in range(-(-third // SHARD))}
    for name, left in {**files, "optimizer.pt": 2 * third}.items():
        with (made / name).open("wb") as stream:
            while left > 0:
                left -= stream.write(noise[: min(left, len(noise))])
            os.fsync(stream.fileno())
    return made


def seconds(work: Callable[[], object]) -> dict[str, float]:
    """Seconds by the clock, and of all processors together, which others on the machine change less."""
    start, processors = time.monotonic(), time.process_time()
    work()
    return {"seconds": round(time.monotonic() - start, 2), "processors": round(time.process_time() - processors, 2)}


def drop_cache() -> bool:
    """Drop files from memory; whether that could be done."""
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        return False
    return True


def read_logs(folder: Path) -> None:
    """In a process of its own: reads a log, and prints what it took."""
    file = folder / "samples.jsonl"
    answer = "An answer with a line separator\u2028in it. " * 50
    with file.open("w", encoding="utf-8") as stream:
        for row in range(LOG_BYTES // 2200):
            line = {"step": row % 100, "prompt": [{"role": "user", "content": "?"}], "completion": answer}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
    size, before = file.stat().st_size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    took = seconds(lambda: keep_lines(file, lambda line: line["step"] < 50))
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"megabytes": round(size / 1e6), **took, "memory_mb": round(memory, 1)}))


def main() -> None:
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 16
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as temporary:
        made = make(Path(temporary), int(gigabytes * 1e9))
        found: dict[str, object] = {"gigabytes": gigabytes, "seal": seconds(lambda: seal(made, 1, {}))}
        found["check"] = seconds(lambda: damage(made))
        if drop_cache():
            found["check, from disk"] = seconds(lambda: damage(made))
        logs = subprocess.run(
            [sys.executable, "-c", f"from benchmarks.resume import *; read_logs(Path({temporary!r}))"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    figures = {"checkpoint": found, "logs": json.loads(logs.stdout)}
    print(json.dumps(figures, indent=2))
    record("resume", figures)


if __name__ == "__main__":
    main()
