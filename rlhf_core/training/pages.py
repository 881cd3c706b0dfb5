"""report.html of a run while it trains: written anew now and then, and at its end."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from transformers import TrainerCallback

from rlhf_core.errors import UserError
from rlhf_core.report.writing import write_report

log = logging.getLogger("rlhf")
SHARE = 0.002  # of the run's time, at most, goes into pages
FIRST = 30.0  # seconds after which the first one is written


class Pages(TrainerCallback):
    """Writes the page after a step, as often as its time allows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.due = time.monotonic() + FIRST

    def on_step_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero and time.monotonic() >= self.due:
            self.write()

    def write(self) -> None:
        """Write it now. What goes wrong, a fault of ours included, costs the page and not the run."""
        began = time.monotonic()
        try:
            write_report([self.folder])
        except UserError as error:
            log.warning("the page of the run is not written: %s", error)
        except Exception:
            log.exception("the page of the run is not written")
        now = time.monotonic()
        self.due = now + (now - began) / SHARE
