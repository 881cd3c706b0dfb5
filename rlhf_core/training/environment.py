"""What is settled before torch is imported: quiet libraries, what they keep in memory, and how threads wait."""

from __future__ import annotations

import logging
import os

# No telemetry, no progress bars but ours, no advice from libraries. MKL gives its buffers back after each product, and
# oneDNN keeps what it made for 16 shapes instead of 1,024: 15 to 60 MB less while a model of 34 million weights trains
# on a CPU, in the same time (docs/lab-notes.md).
VARIABLES = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TF_CPP_MIN_LOG_LEVEL": "3",  # TensorBoard's
    "MKL_DISABLE_FAST_MM": "1",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
}


def prepare() -> None:
    """Set the variables above; one that is set stays as it is.

    Threads that wait for each other spin, unless other programs use the cores: alone that gains a third of a small
    model's step, beside another program it made one ten times slower.
    """
    os.environ.update(VARIABLES | os.environ)
    if "OMP_WAIT_POLICY" not in os.environ and _cores_in_use() > 0.25:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _cores_in_use() -> float:
    """How many cores other programs keep busy just now."""
    import psutil

    return psutil.cpu_percent(interval=0.2) / 100 * (psutil.cpu_count() or 1)
