"""Context managers for a run under check: no output, and no network."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

LOCAL = ("127.0.0.1", "::1", "localhost")


@contextlib.contextmanager
def silence() -> Iterator[io.StringIO]:
    """Capture what is printed within the block."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        yield output


@contextlib.contextmanager
def no_network(calls: set[str]) -> Iterator[None]:
    """Refuse every connection that leaves this machine, and record its target in `calls`.

    Connections of threads that existed before are refused but not recorded, because they are not this run's.
    """
    from huggingface_hub import constants

    connect, look_up = socket.socket.connect, socket.getaddrinfo
    others = set(threading.enumerate()) - {threading.current_thread()}

    def record(call: str) -> None:
        if threading.current_thread() not in others:
            calls.add(call)

    def refused_connect(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in LOCAL:
            record(f"{address[0]}:{address[1]}")
            raise OSError(f"no network in this check: {address}")
        connect(self, address)

    def refused_look_up(host: Any, *rest: Any, **named: Any) -> Any:
        if host is not None and host not in (*LOCAL, socket.gethostname()):
            record(str(host))
            raise socket.gaierror(f"no network in this check: {host}")
        return look_up(host, *rest, **named)

    with (
        mock.patch.object(socket.socket, "connect", refused_connect),
        mock.patch.object(socket, "getaddrinfo", refused_look_up),
        # `rlhf run` sets this before the Hub's client is imported; here it may have been imported already.
        mock.patch.object(constants, "HF_HUB_DISABLE_TELEMETRY", True),
    ):
        yield
