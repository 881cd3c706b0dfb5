"""What a reward may leave changed in the process that it runs in, and how that is kept from the run. Needs no torch.

A crash, `os._exit` and an endless loop can't be: a reward that may do such asks for `isolation="process"`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

from rlhf_core.ui.text import Output, protect_output

Setting = tuple[str, Callable[[], Any], Callable[[Any], Any]]  # what it is, what reads it, what sets it
OUTPUTS = {1: "stdout", 2: "stderr"}  # descriptors, and their names in `sys`

log = logging.getLogger("rlhf")
_said: set[tuple[str, str]] = set()  # (reward, what it left changed)


@contextmanager
def guarded(name: str) -> Iterator[None]:
    """For a call of the reward `name`: what it leaves changed is put back, and said once.

    A process that it forks ends here, instead of going on as a second trainer.
    """
    process = os.getpid()
    on_main_thread = threading.current_thread() is threading.main_thread()
    before = [(setting, setting[1]()) for setting in _settings()] if on_main_thread else []
    outputs = [_Output(number) for number in OUTPUTS] if on_main_thread else []
    changed: list[str] = []
    try:
        with _alarms(changed) if on_main_thread and os.name == "posix" else nullcontext():
            yield
    finally:
        if os.getpid() != process:
            os._exit(0)
        for (what, read, write), value in before:
            if read() != value:
                write(value)
                changed.append(what)
        changed += [OUTPUTS[output.number] for output in outputs if output.put_back()]
        for what in changed:
            if (name, what) not in _said:
                _said.add((name, what))
                log.warning("reward %r left %s changed: it is put back after each of its calls", name, what)


def _settings() -> list[Setting]:
    settings: list[Setting] = [
        ("which warnings are errors", _error_filters, _set_error_filters),
        ("the working directory", _working_directory, os.chdir),
        ("what is logged", lambda: logging.root.manager.disable, logging.disable),
        ("what Ctrl-C does", lambda: signal.getsignal(signal.SIGINT), lambda old: signal.signal(signal.SIGINT, old)),
        ("what SIGTERM does", lambda: signal.getsignal(signal.SIGTERM), lambda old: signal.signal(signal.SIGTERM, old)),
    ]
    if torch := sys.modules.get("torch"):
        settings.append(("whether gradients are computed", torch.is_grad_enabled, torch.set_grad_enabled))
        settings.append(("torch's default type", torch.get_default_dtype, torch.set_default_dtype))
    return settings


def _error_filters() -> list[Any]:
    return [one for one in warnings.filters if one[0] == "error"]


def _set_error_filters(old: list[Any]) -> None:
    warnings.filters[:] = [one for one in warnings.filters if one[0] != "error" or one in old]  # type: ignore[index]


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was deleted
        return ""


@contextmanager
def _alarms(changed: list[str]) -> Iterator[None]:
    """An alarm that nothing handles is an error of the call that set it, and not the end of the process."""
    others = signal.getitimer(signal.ITIMER_REAL)[0] > 0
    before = signal.getsignal(signal.SIGALRM)
    unhandled = before in (signal.SIG_DFL, signal.SIG_IGN)
    if unhandled:
        signal.signal(signal.SIGALRM, _ring)
    try:
        yield
    finally:
        if not others and signal.setitimer(signal.ITIMER_REAL, 0)[0] > 0:
            changed.append("an alarm")
        if unhandled:
            signal.signal(signal.SIGALRM, before)


def _ring(number: int, frame: FrameType | None) -> None:
    raise TimeoutError("an alarm that the reward set")


class _Output:
    """One of the process's outputs, which is put back if it was closed or is now something else."""

    def __init__(self, number: int) -> None:
        self.number, self.stream = number, getattr(sys, OUTPUTS[number])
        try:
            self.copy: int | None = os.dup(number)
        except OSError:  # closed by who started the run
            self.copy = None

    def put_back(self) -> bool:
        """Whether it had changed."""
        if self.copy is None:
            return False
        changed = not self._is_open()
        if changed:
            os.dup2(self.copy, self.number)
        os.close(self.copy)
        if self.stream is not None and self.stream.closed:
            encoding, errors = self.stream.encoding, self.stream.errors
            setattr(sys, OUTPUTS[self.number], os.fdopen(self.number, "w", 1, encoding, errors, closefd=False))
            if isinstance(self.stream, Output):
                protect_output()
        return changed

    def _is_open(self) -> bool:
        assert self.copy is not None
        try:
            return os.path.sameopenfile(self.copy, self.number)
        except OSError:
            return False
