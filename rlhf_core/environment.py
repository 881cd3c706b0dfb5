"""What is settled before torch is imported: no telemetry, no progress bars but ours, no advice from libraries."""

from __future__ import annotations

import logging
import os

VARIABLES = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TF_CPP_MIN_LOG_LEVEL": "3",  # TensorBoard's
}


def prepare() -> None:
    """Set the variables above; one that is set stays as it is."""
    os.environ.update(VARIABLES | os.environ)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
