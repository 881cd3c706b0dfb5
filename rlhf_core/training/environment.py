"""What is settled before torch is imported: quiet libraries, and how threads wait."""

from __future__ import annotations

import logging
import os


def prepare() -> None:
    """No telemetry, no progress bars but ours, no advice from libraries. A variable that is set stays as it is.

    Threads that wait for each other spin, unless other programs use the cores: alone that gains a third of a small
    model's step, beside another program it made one ten times slower.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorBoard's
    if "OMP_WAIT_POLICY" not in os.environ and _cores_in_use() > 0.25:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _cores_in_use() -> float:
    """How many cores other programs keep busy just now."""
    import psutil

    return psutil.cpu_percent(interval=0.2) / 100 * (psutil.cpu_count() or 1)
