"""Replies by the content of their requests, in the user's cache folder, for all runs and processes.

`rlhf/endpoint` in `$XDG_CACHE_HOME` (or `~/.cache`) may be deleted at any time. It holds hashes of requests and their
replies, no keys. SQLite keeps several processes apart. Where it can't be used, that is said once, and every call is
made.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from pathlib import Path

from rlhf_core.data.cache import folder

NAME = "replies.sqlite"
MOST = 1_000_000  # replies; those that were used longest ago go
SECONDS = 30.0  # that a process waits for another one's write

log = logging.getLogger("rlhf")


class Cache:
    """Opened when it is first used, in each process anew."""

    def __init__(self, place: Path | None = None) -> None:
        self.place = place
        self._opened: tuple[int, sqlite3.Connection | None] | None = None  # by which process
        self._lock = threading.Lock()

    def find(self, key: str) -> str | None:
        with self._lock:
            try:
                if (table := self._table()) is None:
                    return None
                row = table.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    table.execute("UPDATE replies SET used = ? WHERE key = ?", (int(time.time()), key))
                return None if row is None else str(row[0])
            except sqlite3.Error as error:
                self._give_up(error)
                return None

    def keep(self, key: str, reply: str) -> None:
        with self._lock:
            try:
                if (table := self._table()) is not None:
                    values = (key, reply, int(time.time()))
                    table.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", values)
            except sqlite3.Error as error:
                self._give_up(error)

    def _table(self) -> sqlite3.Connection | None:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), None)
            place = self.place or folder("endpoint")
            try:
                place.mkdir(parents=True, exist_ok=True)
                self._opened = (os.getpid(), _open(place / NAME))
            except OSError as error:
                self._give_up(error)
        return self._opened[1]

    def _give_up(self, error: Exception) -> None:
        self._opened = (os.getpid(), None)
        log.warning("replies are not kept, so that each is paid for again: %s: %s", self.place or NAME, error)


def _open(file: Path) -> sqlite3.Connection:
    table = sqlite3.connect(file, timeout=SECONDS, isolation_level=None, check_same_thread=False)
    table.execute("PRAGMA journal_mode=WAL")
    table.execute("PRAGMA synchronous=NORMAL")
    table.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT, used INTEGER)")
    (count,) = table.execute("SELECT COUNT(*) FROM replies").fetchone()
    if count > MOST:
        oldest = "SELECT key FROM replies ORDER BY used LIMIT ?"
        table.execute(f"DELETE FROM replies WHERE key IN ({oldest})", (count - MOST * 9 // 10,))
    return table
