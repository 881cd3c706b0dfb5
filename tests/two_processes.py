"""Two copies of the tests' process, as torch's launcher would start two processes.

Copies have imported everything, which takes a launcher and its processes most of their time.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState

from rlhf_core import environment

LIMIT = 300  # seconds


def start(work: Callable[[], None], folder: Path) -> None:
    """Call `work` in both, each told what the launcher tells; what they print goes to `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    logs = [folder / "0", folder / "1"]
    make = multiprocessing.get_context("fork").Process
    both = [make(target=_be_one, args=(rank, port, log, work)) for rank, log in enumerate(logs)]
    for process in both:
        process.start()
    deadline = time.monotonic() + LIMIT
    while any(one.is_alive() for one in both) and not any(one.exitcode for one in both):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for process in both:
        process.kill()
        process.join()
    assert [one.exitcode for one in both] == [0, 0], "\n".join(log.read_text() for log in logs)


def _be_one(rank: int, port: int, log: Path, work: Callable[[], None]) -> None:
    with log.open("w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        AcceleratorState._reset_state(reset_partial_state=True)  # it remembers that this process was alone
        GradientState._reset_state()
        environment.be_alone()
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        work()
