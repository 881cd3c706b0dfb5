"""Work on many chunks by several processes, with the results in order.

The processes are forks, so that what they need is not sent to them. Each has one chunk at a time: what waits is in no
queue, and a reader is never far ahead of them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from rlhf_core import environment
from rlhf_core.errors import UserError

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")
KILLED = "a process that reads the data was killed: is there enough memory?"
MOST = 16  # processes: one reads for all


def cores() -> int:
    """How many processes this one may start: the cores that it may use, divided among the ranks of this machine."""
    if sys.platform != "linux":  # forks of a process with threads are not safe elsewhere
        return 1
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(MOST, len(os.sched_getaffinity(0)) // ranks))


def in_order(work: Callable[[Chunk], Result], chunks: Iterable[Chunk], processes: int) -> Iterator[Result]:
    """`work(chunk)` of each. What it raises is raised here."""
    if processes < 2:
        yield from map(work, chunks)
        return
    workers: list[tuple[multiprocessing.process.BaseProcess, Connection]] = []
    busy: deque[Connection] = deque()
    try:
        for number, chunk in enumerate(chunks):
            if number < processes:
                workers.append(_start(work, [connection for _, connection in workers]))
            elif len(busy) == processes:
                yield _receive(busy.popleft())
            connection = workers[number % processes][1]
            try:
                connection.send(chunk)
            except ConnectionError as error:
                raise UserError(KILLED) from error
            busy.append(connection)
        while busy:
            yield _receive(busy.popleft())
    finally:
        for process, connection in workers:
            process.terminate()
            connection.close()
        for process, _ in workers:
            process.join()


def beside(work: Callable[[Iterator[Chunk]], Result], chunks: Iterable[Chunk]) -> Result:
    """`work(chunks)`, in a process of its own, while this one makes the chunks. What it raises is raised here."""
    if cores() < 2:
        return work(iter(chunks))
    context = multiprocessing.get_context("fork")
    given, chunks_in = context.Pipe(duplex=False)
    result, result_in = context.Pipe(duplex=False)
    arguments = work, given, result_in, (chunks_in, result), os.getpid()
    process = context.Process(target=_work_beside, args=arguments, daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # as in `_start`
        process.start()
    given.close()
    result_in.close()
    try:
        with suppress(ConnectionError):  # it has ended, and says why
            for chunk in chunks:
                chunks_in.send((chunk,))
            chunks_in.send(())
        return _receive(result)
    finally:
        process.terminate()
        chunks_in.close()
        result.close()
        process.join()


def _work_beside(
    work: Callable[[Iterator[Chunk]], Result],
    given: Connection,
    result: Connection,
    others: tuple[Connection, ...],
    parent: int,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    environment.end_with(parent)
    for other in others:
        other.close()
    try:
        done: tuple[bool, Any] = True, work(chunk for [chunk] in iter(given.recv, ()))
    except Exception as error:  # raised where the result is wanted
        done = False, error
    given.close()  # so that nobody waits to send more
    result.send(done)


def _start(
    work: Callable[[Chunk], Result], others: list[Connection]
) -> tuple[multiprocessing.process.BaseProcess, Connection]:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(work, there, [here, *others], os.getpid()), daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, about the threads of libraries that wait
        process.start()
    there.close()
    return process, here


def _serve(work: Callable[[Chunk], Result], connection: Connection, others: list[Connection], parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one, which ends it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    environment.end_with(parent)
    for other in others:
        other.close()
    while True:
        try:
            chunk = connection.recv()
        except EOFError:
            return
        try:
            result: tuple[bool, Any] = True, work(chunk)
        except Exception as error:  # raised where the result is wanted
            result = False, error
        connection.send(result)


def _receive(connection: Connection) -> Any:
    try:
        done, result = connection.recv()
    except (EOFError, ConnectionError) as error:
        raise UserError(KILLED) from error
    if not done:
        raise result
    return result
