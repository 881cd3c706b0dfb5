"""What the commands write, and read again: small files whole, JSON lines one after the other, and folders that one
process at a time writes to.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rlhf_core.errors import UserError

LOCK = ".rlhf.lock"
LOOKED_AT = 0.05  # seconds, in which who only looks at a lock has let it go
LONGEST_LINE = 1 << 26  # bytes; what has no line break for longer is no log
_locks: set[int] = set()  # descriptors of the lock files that this process holds


def write_whole(path: Path, text: str, private: bool = False) -> None:
    """Write a file that nobody ever sees half written: not if the process is killed, nor if the disk is full.

    `private`: only its owner can read it. Half of a character (a lone surrogate), which UTF-8 can't hold, is written as
    its escape in JSON. Raises `OSError`.
    """
    temporary = path.with_name(f".writing-{secrets.token_hex(8)}")  # a process id is the same in every container
    mode = 0o600 if private else 0o666
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def claim(folder: Path, flag: str, *, rename: bool = False) -> Iterator[Path]:
    """Make `folder`, which the user gave as `flag`, and let no other process claim it meanwhile.

    `rename`: where there is one of this name, take NAME-2, NAME-3 and so on. What was made is removed at the end if
    nothing was put there. The lock ends with this process, however that ends. Raises `UserError`.
    """
    made: list[Path] = []
    names = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    try:
        try:
            while not _make(folder, made) and rename:
                folder = next(names)
            before = set(os.listdir(folder))
            descriptor = _lock(folder, flag)
        except OSError as error:
            raise UserError(f"{flag} {folder}: {_why(folder, error)}") from error
        try:
            yield folder
        finally:
            with suppress(OSError):
                if set(os.listdir(folder)) - before == {LOCK}:
                    (folder / LOCK).unlink()
            _locks.discard(descriptor)
            os.close(descriptor)
    finally:
        for path in reversed(made):
            with suppress(OSError):  # there is something in it
                path.rmdir()


@contextmanager
def new_folder(folder: Path, flag: str) -> Iterator[Path]:
    """A folder to write to, which gets the name `folder` when all is written, and is removed if that fails.

    Raises `UserError`, before anything is written, if there is one of this name or it can't be made.
    """
    made: list[Path] = []
    part = folder.with_name(f".writing-{secrets.token_hex(8)}") if folder.name else folder
    try:
        if os.path.lexists(folder):
            raise UserError(f"{flag} {folder} exists already: give another folder, or remove it")
        try:
            _make(part, made)
        except OSError as error:
            raise UserError(f"{flag} {folder}: {_why(folder, error)}") from error
        yield part
        try:
            part.rename(folder)
        except OSError as error:  # another process has made it meanwhile
            raise UserError(f"{flag} {folder}: {error.strerror}") from error
    finally:
        if made:
            shutil.rmtree(part, ignore_errors=True)
        for path in reversed(made):
            with suppress(OSError):  # there is something in it
                path.rmdir()


@contextmanager
def new_file(path: Path, flag: str) -> Iterator[Path]:
    """A file to write to, which gets the name `path` when all is written, and is removed if that fails.

    Raises `UserError`, before anything is written, if there is one of this name or its folder can't be written to.
    """
    part = path.with_name(f".writing-{secrets.token_hex(8)}")
    if os.path.lexists(path):
        raise UserError(f"{flag} {path} exists already: give another name, or remove it")
    try:
        part.touch(exist_ok=False)
    except OSError as error:
        why = f"there is no folder {path.parent}" if not path.parent.exists() else _why(path.parent, error)
        raise UserError(f"{flag} {path}: {why}") from error
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))  # another process may have made it meanwhile
        except OSError as error:
            raise UserError(f"{flag} {path}: {error.strerror}") from error
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _make(folder: Path, made: list[Path]) -> bool:
    """Make a folder and those that it is in, adding them to `made`. False if it was there."""
    for path in [*reversed(folder.parents), folder]:
        new = False
        if not path.is_dir():
            try:
                path.mkdir()
            except FileExistsError:  # by another process, or a file or a link is there
                if not path.is_dir():
                    raise
            else:
                made.append(path)
                new = True
    return new


def _why(folder: Path, error: OSError) -> str:
    """Why a folder can't be made or written to."""
    for path in [folder, *folder.parents]:
        if path.is_symlink() and not path.exists():
            return f"{path} is a link to {os.readlink(path)}, which is not there"
        if os.path.lexists(path) and not path.is_dir():
            return f"{path} is a file"
    return f"can't be written to: {error.strerror}"


def _try_to_lock(descriptor: int) -> None:
    """Lock an open file, at a second try if need be: `rlhf runs` looks at a lock by sharing it for a moment."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(LOOKED_AT)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock(folder: Path, flag: str) -> int:
    """The descriptor of the folder's lock file, locked. Raises `UserError` if another process has locked it."""
    file, same = folder / LOCK, False
    while not same:
        if os.path.lexists(file) and (file.is_symlink() or not file.is_file()):
            raise UserError(f"{flag} {folder}: {file} is no file, and a lock of that name is needed: move it away")
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            _try_to_lock(descriptor)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UserError(
                f"{flag} {folder}: {_owner(file)} writes to it. Wait for it or stop it, or give another folder"
            ) from error
        except OSError as error:
            told = "%s can't be locked (%s): let only one process write there"
            logging.getLogger("rlhf").warning(told, folder, error.strerror)
        try:
            same = os.path.samestat(os.fstat(descriptor), os.stat(file))
        except FileNotFoundError:  # its owner has removed it since it was opened
            same = False
        if not same:
            os.close(descriptor)
    _locks.add(descriptor)
    owner = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner).encode() + b"\n", 0)
    return descriptor


def _owner(file: Path) -> str:
    """Who has locked a folder, by its lock file."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        owner = json.loads(file.read_bytes())
        return f"process {owner['process']} on {owner['host']}, since {owner['since']},"
    return "another process"


def _release_in_child() -> None:
    """Close the lock files in a process that was forked: it would keep them locked after its parent's death."""
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


os.register_at_fork(after_in_child=_release_in_child)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, one at a time, without lines that hold none; none of a file that is not
    there.
    """
    if path.is_file():
        yield from (value for _, value in _lines(path) if value is not None)


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool | None]) -> int:
    """Rewrite a file of JSON lines, or begin one, with the lines whose objects are to be kept, as they were written.

    A line that holds no object, or for which `keep` returns None, is added to NAME.damaged; returns their number. Half
    a line at the end, which a killed process leaves, is dropped.
    """
    damaged, aside = 0, path.with_name(path.name + ".damaged")
    temporary = path.with_name(f".writing-{secrets.token_hex(8)}")
    try:
        with temporary.open("wb") as kept:
            for line, value in _lines(path) if path.exists() else ():
                decided = None if value is None else keep(value)
                if decided:
                    kept.write(line.rstrip(b"\n") + b"\n")
                elif decided is None and line.strip() and not (value is None and _is_cut(line)):
                    damaged += 1
                    with aside.open("ab") as stream:
                        stream.write(line + b"\n" * _is_cut(line))
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    return damaged


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """(line, the object that it holds or None). JSON lines end at a line feed alone: texts may hold other breaks."""
    with path.open("rb") as stream:
        within = False
        while line := stream.readline(LONGEST_LINE):
            ends = line.endswith(b"\n") or _is_cut(line)
            yield line, object_in(line) if ends and not within else None
            within = not ends


def _is_cut(line: bytes) -> bool:
    """Whether the file ends here without a line feed."""
    return not line.endswith(b"\n") and len(line) < LONGEST_LINE


def object_in(line: bytes) -> dict[str, Any] | None:
    """The JSON object in a line; None of one that is damaged or holds none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
