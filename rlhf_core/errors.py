"""The error types that are shown as one message, and how errors are worded."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can correct: one message (what was given, what is allowed, what to do) and exit code 2."""


class RunStopped(Exception):
    """A run that can't go on: one message (what was seen, what to do), the command to resume it, and exit code 1."""


class SamplerFailed(RunStopped):
    """What samples for the run failed, before anything was computed of a step: all is as after the last one."""


class PluginError(UserError):
    """A plugin could not be loaded. The message names it and its distribution."""


LONGEST = 2000  # characters of an exception's text that are kept, of which some have megabytes


def describe(error: BaseException) -> str:
    """An exception's type and text."""
    text = _text(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of a library's message, which may have hundreds, and the next where it only leads to that."""
    lines = [line.strip() for line in _text(error).splitlines() if line.strip()] or [type(error).__name__]
    first = f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    return first[:300]


def _text(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # a class may have a `__str__` that fails
        return ""
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    return text.encode("utf-8", "backslashreplace").decode()  # a lone surrogate can't be written anywhere


def excerpt(value: object, most: int = 200) -> str:
    """What a user gave, for a message: the beginning of it where it is long."""
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first of `names`, and how many others there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest of `known`, or an empty string."""
    near = difflib.get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


REFUSALS = (ValueError, ImportError, OSError)
# Whose complaints about values are the user's to read.
LIBRARIES = ("transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "torch", "vllm")


def raised_by_library(error: BaseException) -> bool:
    """Whether code of a library raised this, as they do for values that they can't use."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    of_the_system = isinstance(error, OSError) and error.errno is not None  # such as a full disk
    return isinstance(error, REFUSALS) and not of_the_system and module.partition(".")[0] in LIBRARIES
