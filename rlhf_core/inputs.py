"""What people hand us: files, JSON, YAML, and what a library makes of them. Each mistake becomes one `UserError`.

Everything that reads what a user gave goes through these functions, and nothing else catches a library's exceptions.
They need neither torch nor pydantic.
"""

from __future__ import annotations

import json
import math
import os
import signal
import stat
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

from rlhf_core.errors import RunStopped, UserError, first_line
from rlhf_core.ui.text import shown

SMALL = 1 << 20  # bytes of a file that a person writes: settings, a chat template, a list of words
DEPTH = 100  # lists within lists; Python's own limit is near 1,000, and most libraries stop earlier
LONGEST_NAME = 255  # bytes, in the file systems of Linux and macOS
LONGEST_PATH = 4000  # with what is written below it, Linux allows 4,096
LONGEST_LABEL = 120  # bytes of a name that a user gives a run
VALUES = 10_000  # in one YAML file, each alias counted with all that it stands for
LARGEST = 2**63 - 1  # an integer that every library can take


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Make any error of a library that takes what the user gave one message: `what`, and the error's first line.

    For calls that do nothing else: elsewhere it would hide faults of our own. A full GPU is no mistake in the input.
    """
    torch = sys.modules.get("torch")
    pass_on = (UserError, RunStopped, torch.OutOfMemoryError) if torch else (UserError, RunStopped)
    try:
        yield
    except pass_on:
        raise
    except RecursionError as error:
        raise UserError(f"{what}: nested too deeply") from error
    except KeyError as error:  # whose text may be the key alone
        text = first_line(error)
        raise UserError(f"{what}: {text if ' ' in text else f'{text} is missing, or not known'}") from error
    except Exception as error:  # tokenizers, Rust and Arrow raise no narrower one
        raise UserError(f"{what}: {first_line(error)}") from error


def path_of(text: str | Path, what: str) -> Path:
    """`text` as a path, `~` resolved. Raises `UserError` for what no file can be called."""
    if text == "":
        raise UserError(f"{what} is empty: write a name, or . for this folder")
    with library_errors(f"{what} {str(text)[:80]!r}"):
        path = Path(text).expanduser()
        long = max(len(os.fsencode(part)) for part in (path.name, *path.parts)) > LONGEST_NAME
        if long or len(os.fsencode(path)) > LONGEST_PATH or "\0" in str(path):
            raise UserError(f"{what} {str(text)[:80]!r}: no file can have such a name")
    return path


def open_file(path: Path, what: str = "", limit: int | None = None) -> IO[bytes]:
    """A regular file. `what` says what it is for. Raises `UserError`, also for more than `limit` bytes."""
    called = f"{what} {path}".strip()
    try:
        mode, size = path.stat().st_mode, path.stat().st_size  # opening a pipe would wait for who writes to it
        if not stat.S_ISREG(mode):
            raise UserError(f"{called}: is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}")
        if limit is not None and size > limit:
            raise UserError(f"{called}: has {size:,} bytes, more than the {limit:,} that are read of such a file")
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{called}: {error.strerror}") from error


def read_bytes(path: Path, what: str = "", limit: int | None = SMALL) -> bytes:
    """A regular file's content. `what` says what it is for. Raises `UserError`, also for more than `limit` bytes."""
    with open_file(path, what, limit) as file:
        try:
            return file.read()
        except OSError as error:
            raise UserError(f"{f'{what} {path}'.strip()}: {error.strerror}") from error


def read_text(path: Path, what: str = "", limit: int | None = SMALL) -> str:
    """A regular file's text, which must be UTF-8. Raises `UserError`."""
    content = read_bytes(path, what, limit)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        given_as = f"{what} {path}".strip()
        raise UserError(
            f"{given_as}: is not UTF-8 text (byte {error.start}, in line {line}): save it in UTF-8"
        ) from error


def label(value: str) -> str:
    """`value`, a name or a tag, if it is short, one line, and without signs that divide paths and lists. Else raises
    `ValueError`.
    """
    if (
        not value.strip()
        or value != value.strip()
        or value[0] in ".-"
        or set(value) & set("/\\,")
        or shown(value) != value
    ):
        raise ValueError("write a few words, without / \\ or a comma, and no . or - before them")
    if "\n" in value or "\t" in value or len(value.encode()) > LONGEST_LABEL:
        raise ValueError(f"it is one line of at most {LONGEST_LABEL} bytes")
    return value


def is_text(value: Any) -> bool:
    """Whether all text in `value` can be written in UTF-8: JSON may have half of a character, a lone surrogate."""
    if isinstance(value, Mapping):
        return all(is_text(item) for pair in value.items() for item in pair)
    if isinstance(value, list | tuple):
        return all(map(is_text, value))
    if not isinstance(value, str) or value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_json(text: str, where: str) -> Any:
    """The JSON value of `text`, which stands at `where`. Raises `UserError`, also for lists in lists beyond `DEPTH`."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        excerpt = text[max(0, error.pos - 10) : error.pos + 30]
        place = f"{where} line {error.lineno}" if "\n" in text.strip() else where
        raise UserError(f"{place} is not JSON: {error.msg}, at: {excerpt!r}") from error
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply, beyond {DEPTH} levels") from error
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{where}: {first_line(error).partition(';')[0]}") from error
    if text.count("[") + text.count("{") > DEPTH and _depth(value) > DEPTH:
        raise UserError(f"{where}: nested too deeply, beyond {DEPTH} levels")
    return value


def _depth(value: Any) -> int:
    """How many lists and objects are within one another; counted without recursion."""
    depth, level = 0, [value]
    while level := [v for v in level if isinstance(v, (dict, list))]:
        depth += 1
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
    return depth


def plain(value: Any, where: str) -> Any:
    """`value`, if it is what a setting can be: text, a finite number, true, false, nothing, or lists and mappings of
    these. Raises `UserError`.
    """
    depth, level = 0, [value]
    while level:
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner += [*each, *each.values()]
            elif isinstance(each, list | tuple):
                inner += each
            elif (problem := _problem(each)) is not None:
                raise UserError(f"{where}: {problem}")
        depth, level = depth + 1, inner
        if depth > DEPTH:
            raise UserError(f"{where}: nested too deeply, beyond {DEPTH} levels")
    return value


def _problem(value: Any) -> str | None:
    """Why a value within a setting can't be used."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return f"{value[:80]!r} is not valid Unicode text"
        return f"{value[:80]!r} has a null character" if "\0" in value else None
    if isinstance(value, int):
        return None if abs(value) <= LARGEST else "an integer has at most 64 bits"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{value} is not a finite number"
    return f"expected text, a number, a list or a mapping, not {type(value).__name__} (text goes in quotes)"


def parse_yaml(text: str, where: str) -> Any:
    """The value of YAML `text`, which stands at `where`, by the safe loader. Raises `UserError`.

    Refused besides errors of syntax: tags of Python, keys that are there twice, what is nested beyond `DEPTH`, an alias
    within what it stands for, and aliases that make more than `VALUES` values.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            if twice := [name for name, times in names.most_common(1) if times > 1]:
                raise UserError(f"{where} line {node.start_mark.line + 1}: {twice[0]!r} is there twice")
            return super().construct_mapping(node, deep)

    try:
        _check_size(yaml.parse(text, Loader=yaml.SafeLoader), where)
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"{where}{place} is not YAML: {problem}") from error
    except (ValueError, TypeError, RecursionError) as error:  # a date that is none, a key that is a list
        raise UserError(f"{where}: {first_line(error).partition(';')[0]}") from error


def _check_size(events: Iterator[Any], where: str) -> None:
    """Raise `UserError` for YAML events that nest too deeply or stand for too many values."""
    import yaml

    anchors: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]  # (anchor, values so far) of each list and mapping
    for event in events:
        values = 0
        if isinstance(event, yaml.AliasEvent):
            if any(event.anchor == anchor for anchor, _ in open_nodes):
                raise UserError(f"{where} line {event.start_mark.line + 1}: *{event.anchor} stands for what it is in")
            values = anchors.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            values = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 0))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, inside = open_nodes.pop()
            values = inside + 1
            if anchor:
                anchors[anchor] = values
        total = open_nodes[-1][1] + values
        open_nodes[-1] = (open_nodes[-1][0], total)
        if len(open_nodes) > DEPTH:
            raise UserError(f"{where} line {event.start_mark.line + 1}: nested too deeply, beyond {DEPTH} levels")
        if total > VALUES:
            raise UserError(f"{where}: has more than {VALUES:,} values, what aliases stand for among them")


class TookTooLong(UserError):
    """What a user's file brings has been stopped."""


class _Alarm(BaseException):
    """Raised by the alarm; no library's `except Exception` catches it."""


@contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """Raise `TookTooLong` when the block takes longer, for code that a user's file brings, such as a chat template.

    The alarm of POSIX systems interrupts the main thread alone: on others, and in other threads, there is no limit.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise _Alarm

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _Alarm:
        raise TookTooLong(f"{what} took over {seconds:g} seconds") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
