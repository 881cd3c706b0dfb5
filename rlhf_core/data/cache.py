"""Large sources as they were when they were last read: in the user's cache folder, by the content of their files.

An entry is found by all that decides what is in it: the files, how they are read, the template, the limits, and the
code of the core and of the formatters. `rlhf/data` in `$XDG_CACHE_HOME` (or `~/.cache`) may be deleted at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from rlhf_core.catalog import Catalog
from rlhf_core.errors import UserError
from rlhf_core.outputs import write_whole

LARGE = 1 << 25  # bytes: smaller sources are read again each time, into memory
DAY = 86_400  # seconds
MOST = 20 << 30  # bytes that all entries together may have; the ones that were used last stay
ELSEWHERE = "Rows of large data are kept there: set XDG_CACHE_HOME for another place"
ROWS, ABOUT = "rows.arrow", "about.json"


def folder(kind: str = "data") -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlhf" / kind
    except RuntimeError as error:
        raise UserError(
            "large data is kept in a cache folder, and there is no home folder: set XDG_CACHE_HOME"
        ) from error


def key_of(files: Iterable[Path], **decides: Any) -> str:
    """The name of an entry: of the content of `files` and of whatever else decides what is in it."""
    found = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
    for path in files:
        try:
            with path.open("rb") as stream:
                found.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from error
    return found.hexdigest()


def code_of(catalog: Catalog | None = None) -> list[tuple[str, str, str]]:
    """What tells one state of the code that reads rows from another: of ours, and of all formatters that could."""
    entries = [e for e in catalog.entries("formatters") if e.problem != "disabled"] if catalog else []
    modules = {"rlhf_core.data": Path(__file__).parent}
    for entry in entries:
        module = sys.modules.get(entry.module)
        file = getattr(module, "__file__", None)
        if file is not None:
            modules[entry.module] = Path(file).parent if Path(file).name == "__init__.py" else Path(file)
    found = [(entry.name, entry.distribution, entry.version) for entry in entries]
    for name, path in sorted(modules.items()):
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            status = file.stat()
            found.append((f"{name} {file.name}", str(status.st_size), str(status.st_mtime_ns)))
    return found


def find(key: str) -> tuple[Path, dict[str, Any]] | None:
    """(the file with the rows, what is known of them), if they were read before."""
    entry = folder() / key
    try:
        about: dict[str, Any] = json.loads((entry / ABOUT).read_text(encoding="utf-8"))
        whole = (entry / ROWS).stat().st_size == about["size"]
        os.utime(entry / ABOUT)  # when it was last used
    except (OSError, ValueError):
        return None
    return (entry / ROWS, about) if whole else None


@contextmanager
def locked(key: str) -> Iterator[None]:
    """One process at a time makes an entry; others wait, and find it."""
    file = folder() / f".lock-{key}"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            try:
                yield
            finally:
                file.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}. {ELSEWHERE}") from error


@contextmanager
def writing(key: str) -> Iterator[tuple[IO[bytes], dict[str, Any], Path]]:
    """(where to write the rows, what to say of them, the file that they are in afterwards).

    Nobody finds an entry before it is complete. Raises `UserError` if it can't be written.
    """
    place = folder()
    try:
        place.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=place))
        try:
            about: dict[str, Any] = {}
            with (temporary / ROWS).open("wb") as stream:
                yield stream, about, place / key / ROWS
                about["size"] = stream.tell()
            write_whole(temporary / ABOUT, json.dumps(about, ensure_ascii=False))
            shutil.rmtree(place / key, ignore_errors=True)
            with suppress(FileExistsError):  # another process wrote the same meanwhile
                temporary.rename(place / key)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{place}: {error.strerror or error}. {ELSEWHERE}") from error
    _tidy(place, key)


def _tidy(place: Path, key: str) -> None:
    """Delete the entries that were not used for longest, until all others have no more than `MOST` bytes, and what a
    process that was killed left.
    """
    for left in place.glob(".writing-*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > DAY:
                shutil.rmtree(left, ignore_errors=True)
    entries = []
    for about in place.glob(f"*/{ABOUT}"):
        with suppress(OSError):  # another process deletes as well
            entries.append((about.stat().st_mtime, about.parent.name != key, about.parent))
    total = 0
    for _, _, entry in sorted(entries, key=lambda one: (one[1], -one[0])):
        with suppress(OSError):
            total += (entry / ROWS).stat().st_size
            if total > MOST and entry.name != key:
                shutil.rmtree(entry, ignore_errors=True)
