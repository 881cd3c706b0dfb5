"""The estimate that a run shows before its weights load, made in a process of its own, which leaves nothing behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import torch

from rlhf_core import environment
from rlhf_core.catalog import Catalog
from rlhf_core.errors import UserError
from rlhf_core.estimate import showing
from rlhf_core.estimate.estimating import Estimate, estimate
from rlhf_core.estimate.hardware import Device, here
from rlhf_core.estimate.planning import longest_pass
from rlhf_core.estimate.scorers import bind
from rlhf_core.method import Method
from rlhf_core.training.memory import Expected
from rlhf_core.ui.screen import Screen
from rlhf_core.ui.text import gb

if TYPE_CHECKING:
    from rlhf_core.training.run import Run

SMALLEST = 20_000_000  # parameters: a smaller model needs little memory, and its runs are short
SECONDS = 90  # that an estimate may take


def of_run(run: Run, method: Method, catalog: Catalog, screen: Screen) -> Expected:
    """The estimate, or why there is none; nothing for small models, and where a process can't be copied."""
    if run.info.parameters < SMALLEST or sys.platform != "linux":
        return Expected()
    with screen.working("Estimating memory …"):
        found = _in_a_copy(run, method, catalog, here())
    if isinstance(found, str):
        return Expected(lines=[("Memory", f"not estimated: {found}")])
    lines = [("Memory", showing.one_line(found))]
    if not found.fits:
        card = f"the {gb(found.device.memory)} of {found.device.name}"
        lines.append(("Warning", f"{showing.verdict(found, card)} What would: rlhf estimate, with the same flags"))
    return Expected(found.expected, lines)


def _in_a_copy(run: Run, method: Method, catalog: Catalog, device: Device) -> Estimate | str:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    copied = multiprocessing.get_context("fork")
    process = copied.Process(target=_send, args=(sender, run, method, catalog, device), daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # in the copy, where Ctrl-C is not its own
    try:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the copy has none, and waits for none
                process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        sender.close()
        return receiver.recv() if receiver.poll(SECONDS) else f"it took more than {SECONDS} s"
    except EOFError:
        return "its process ended"
    except OSError as error:
        return f"no process can be started ({error})"
    finally:
        if process.pid is not None:
            process.kill()
            process.join()


def _send(sender: Connection, *asked: Any) -> None:
    """In a copy of the process: its threads are gone, and CUDA can't be used."""
    environment.end_with(os.getppid())
    environment.be_alone()
    with open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        for descriptor in (1, 2):  # where libraries print that are not Python's
            os.dup2(nowhere.fileno(), descriptor)
        torch.set_num_threads(1)
        try:
            found: Estimate | str = _estimated(*asked)
        except UserError as error:
            found = str(error)
        except Exception as error:
            found = f"{type(error).__name__}: {error}".splitlines()[0]
        sender.send(found)
        sender.close()
    os._exit(0)


def _estimated(run: Run, method: Method, catalog: Catalog, device: Device) -> Estimate:
    rows = longest_pass(run.train_rows, method, run.template, run.options)
    _, scorers = bind(run.config, catalog)
    return estimate(run.config, method, run.info, catalog, rows, device, scorers)
