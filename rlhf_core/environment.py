"""What is settled before torch is imported: no telemetry, no progress bars but ours, no advice from libraries; and that
a process that a command started ends with it.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rlhf_core.errors import UserError

VARIABLES = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "true",  # of huggingface_hub and MLflow, among others
    "MLFLOW_DISABLE_TELEMETRY": "true",  # what MLflow would tell its makers; runs go where MLFLOW_TRACKING_URI says
    "GRADIO_ANALYTICS_ENABLED": "False",  # Trackio is made with it
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_QUIET": "true",  # no second table of results at a run's end
    "WANDB_CONSOLE": "off",  # trackers would take the screen for a log, with answers in it
    "SWANLAB_TERMINAL__PROXY_TYPE": "none",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",  # else each try to reach the Hub is a line
    "TOKENIZERS_PARALLELISM": "false",
    "USE_HUB_KERNELS": "NO",  # transformers downloads and runs kernels from the Hub if the package `kernels` is there
    "TF_CPP_MIN_LOG_LEVEL": "3",  # TensorBoard's
}
# Variables that accelerate reads, some while it is imported, and what their values begin with.
VALUES = {
    "ACCELERATE_LOG_LEVEL": ("CRITICAL", "FATAL", "ERROR", "WARN", "WARNING", "INFO", "DEBUG", "NOTSET"),
    "ACCELERATE_FP8_BACKEND": ("TE", "MSAMP", "AO"),
    "ACCELERATE_TORCH_DEVICE": ("CPU", "CUDA", "MPS", "XPU", "NPU", "HPU", "MLU", "MUSA", "SDAA"),
}


class Ended(KeyboardInterrupt):
    """SIGTERM, or a terminal that was closed: ends the command, also where Ctrl-C would stop less than that."""


# What a launcher tells each of several processes. torch reads the variables, and waits for the other processes.
OF_SEVERAL = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# What torch's launcher tells besides, and what transformers tells accelerate once it has read the training arguments.
OF_LAUNCHERS = ("GROUP_", "ROLE_", "TORCHELASTIC_", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_", "FSDP_")
LAUNCHER = "RLHF_LAUNCHER"  # environment: the command that started this process, one of several of a run
STARTED_BY = "RLHF_STARTED_BY"  # environment: the process that a command's process ends with
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
SAME_SIGNAL = 0.5  # seconds
_signalled = [float("-inf")]  # when the last one came that was not the same


def prepare() -> None:
    """Set the variables above; one that is set stays as it is. Raises `UserError` for one that a library can't read."""
    for name, allowed in VALUES.items():
        value = os.environ.get(name)
        if value is not None and value.upper().partition(":")[0] not in allowed:
            raise UserError(f"the environment has {name}={value!r}, which is none of {', '.join(allowed)}: unset it")
    os.environ.update(VARIABLES | os.environ)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextmanager
def starting() -> Iterator[None]:
    """Within, cycles of garbage are looked for seldom: while libraries are imported there are few, and what they keep
    is walked over again and again (which took a seventh of the start of an estimate).
    """
    before = gc.get_threshold()
    gc.set_threshold(100_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def be_alone() -> None:
    """Forget that this is one of several processes."""
    others = [name for name in os.environ if name.startswith(OF_LAUNCHERS)]
    for name in (*OF_SEVERAL, "LOCAL_WORLD_SIZE", *others):
        os.environ.pop(name, None)


def see_one_gpu() -> None:
    """Let one of several processes, and what it starts, see no GPU but its own. It acts before CUDA starts."""
    rank, visible = os.environ.get("LOCAL_RANK", ""), os.environ.get("CUDA_VISIBLE_DEVICES")
    if not (rank.isascii() and rank.isdecimal()):
        return
    gpus = [rank] if visible is None else visible.split(",")[int(rank) :]
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[0]


def end_with(parent: int) -> None:
    """Let the kernel kill this process when its `parent` dies (on Linux), so that no trainer is left running."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died before
        os._exit(1)


def comes_again() -> bool:
    """Whether the signal that is being handled came right after another one, and is the same: a terminal and a
    scheduler send it to every process, and a pipeline passes its own on.
    """
    now = time.monotonic()
    again = now - _signalled[0] < SAME_SIGNAL
    if not again:
        _signalled[0] = now
    return again


def end_with_starter() -> None:
    """The same for a process that was told in its environment who started it. Those that it starts are not told."""
    if parent := os.environ.pop(STARTED_BY, ""):
        end_with(int(parent))
