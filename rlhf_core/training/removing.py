"""Removing a run: all that it wrote to its folder, and nothing else that lies there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rlhf_core.errors import UserError
from rlhf_core.outputs import LOCK, claim
from rlhf_core.training.run_folder import WRITTEN

MERGED = "merged"  # by `rlhf merge`, from the run's model


def size(folder: Path) -> int:
    """Bytes on disk of what `remove_run` would remove; of links only the links."""
    return sum(_size(folder / name) for name in (*WRITTEN, MERGED))


def _size(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size if os.path.lexists(path) else 0
    files = (Path(where) / name for where, _, names in os.walk(path) for name in names)
    return sum(file.lstat().st_size for file in files)


def remove_run(folder: Path) -> list[str]:
    """Remove a run, and its folder if nothing else is there; returns the names of what stays. Raises `UserError`."""
    try:
        with claim(folder, "rlhf runs rm"):
            for name in (*WRITTEN, MERGED):
                path = folder / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            (folder / LOCK).unlink(missing_ok=True)
        left = sorted(os.listdir(folder))
        if not left:
            folder.rmdir()
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror}") from error
    return left
