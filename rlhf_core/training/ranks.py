"""Sees when one process of a run with several ("rank") is stopped, hangs or is gone, and ends the run on all machines.

Without this the others would wait half an hour in a collective operation, until gloo or NCCL gives up.

- Each rank reports every second, from a thread: how many collective operations it has begun, whether it moves data, and
  where it is in the code.
- The command on each machine looks at the states of its ranks' processes, and shows that the machine is alive. That on
  machine 0 compares the ranks: one that others wait for, and that does nothing for `--hang-timeout` seconds, hangs.
- They meet in the store of torch's launcher, on machine 0. The first finding counts: every command ends its ranks.

A long time alone is no sign of anything: sampling, rewards and loading take as long as they take. Time in which the
command was suspended itself does not count, nor a debugger that holds a process.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Hashable
from contextlib import suppress
from types import FrameType
from typing import Any

from rlhf_core.config import RunConfig

INTERVAL = 1.0  # seconds between two looks, and between two reports
SILENT = 40.0  # seconds after which a stopped process, or a machine that doesn't answer, counts as gone
FAST = 1_000_000  # bytes a second: a process that reads or writes files at this speed is at work
LIMITED = (
    "rlhf_core.rewards.event_loop",
    "rlhf_core.rewards.worker",
)  # where a wait has its own limit
ENDED = "ended"  # instead of a machine's counter
FINDING = "finding"  # the key of what ends the run


def report(main: int) -> None:
    """Start this rank's reports. `main` is the thread to report about."""
    from torch.distributed import DistError, TCPStore

    rank, here = os.environ["RANK"], [os.getpid(), socket.gethostname()]
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    over = threading.Event()

    def go_on() -> None:
        moved, before = 0, _bytes()
        with suppress(DistError, RuntimeError):  # the launcher is gone, and ends this process
            while not over.wait(INTERVAL):
                frames = [frame for frame, _ in traceback.walk_stack(sys._current_frames().get(main))]
                now = _bytes()
                moved += now - before > FAST * INTERVAL or _waits_with_a_limit()
                before = now
                place = ", called from ".join(
                    f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})" for frame in frames[:2]
                )
                store.set(f"rank/{rank}", json.dumps([_collectives(frames), moved, *here, place]))

    thread = threading.Thread(target=go_on, daemon=True, name="rank report")
    atexit.register(over.set)
    thread.start()


def _collectives(frames: list[FrameType]) -> int:
    """How many collective operations this process has begun, in all groups: DeepSpeed has one of its own, with all
    processes, too. -1 before it joins the first.

    Torch's counts are private: gloo and NCCL keep them to find processes that are apart.
    """
    from torch.distributed import distributed_c10d, is_initialized

    if is_initialized():
        groups: list[Any] = list(distributed_c10d._world.pg_map)
        return sum(int(group._get_sequence_number_for_group()) for group in groups) + 1
    return 0 if any(frame.f_code.co_name == "init_process_group" for frame in frames) else -1


def _waits_with_a_limit() -> bool:
    """Whether a thread waits for a reward that runs elsewhere, and is stopped there when it takes too long."""
    frames = [frame for top in sys._current_frames().values() for frame, _ in traceback.walk_stack(top)]
    return any(frame.f_code.co_name == "score" and frame.f_globals.get("__name__") in LIMITED for frame in frames)


def _bytes() -> int:
    """Bytes that this process has read from files and written to them, where the system counts them."""
    import psutil

    if not hasattr(psutil.Process, "io_counters"):  # macOS
        return 0
    counts: Any = psutil.Process().io_counters()
    return int(getattr(counts, "read_chars", 0) + getattr(counts, "write_chars", 0))


def wait_to_be_ended(error: BaseException) -> None:
    """If the error is that another rank is gone, let the launcher, which knows which, say so and end this one. It may
    know only once the other machine has been silent for `SILENT` seconds.
    """
    if "RANK" not in os.environ:
        return
    from torch import distributed

    if isinstance(error, distributed.DistError) or "gloo/transport" in str(error):
        time.sleep(2 * SILENT)


class Unchanged:
    """For how many seconds values have stayed the same, counted in looks at them."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, tuple[Any, int]] = {}

    def seconds(self, key: Hashable, value: Any) -> float:
        before, looks = self._seen.get(key, (None, 0))
        looks = looks + 1 if value == before else 0
        self._seen[key] = (value, looks)
        return looks * INTERVAL


class Watch:
    """What the command on one machine does while its ranks run. `launcher` is the variable that they have of it."""

    def __init__(self, connect: Callable[[], Any], config: RunConfig, launcher: str) -> None:
        self.connect, self.launcher = connect, launcher
        self.machine, self.machines = config.machine_rank, config.num_machines
        self.size, self.hang_timeout = config.num_processes * config.num_machines, config.hang_timeout
        self.local = config.num_processes
        self.finding: str | None = None  # why the run ends
        self.processes: dict[int, Any] = {}  # of this machine, by rank
        self.states: dict[int, Any] = {}
        self.reports: dict[int, list[Any]] = {}
        self.signs: dict[int, str] = {}  # of life, by machine
        self.answers = 0  # of the store
        self.lost = False  # whether machine 0, where the store is, does not answer
        self._unchanged = Unchanged()
        self._over = threading.Event()
        self._looking = threading.Thread(target=self._look, daemon=True)
        self._talking = threading.Thread(target=self._talk, daemon=True)

    def start(self) -> None:
        self._looking.start()
        self._talking.start()

    def close(self, finding: str | None) -> str | None:
        """The ranks have ended, with `finding` if that was no good end. Returns what ended the run, once all know."""
        self.finding = self.finding or finding
        self._over.set()
        self._looking.join()
        self._talking.join(0 if self.lost else SILENT)  # the store may go with its machine now
        return self.finding

    def name(self, rank: int) -> str:
        """The rank with its process and machine, as far as they are known."""
        if rank in self.processes:
            return f"rank {rank} (process {self.processes[rank].pid} on {socket.gethostname()})"
        if rank in self.reports:
            return f"rank {rank} (process {self.reports[rank][2]} on {self.reports[rank][3]})"
        return f"rank {rank}"

    def _look(self) -> None:
        looks = 0
        while not self._over.wait(INTERVAL):
            looks += 1
            self._find_processes()
            found = self._stopped(looks) or self._silent(looks) or self._hanging(looks)
            if found:
                self.finding = self.finding or found
            if self.finding:
                self._end_processes()
                return

    def _find_processes(self) -> None:
        import psutil

        if len(self.processes) == self.local:
            return
        for process in psutil.Process().children():
            with suppress(psutil.Error, KeyError):  # it has ended, or is no rank
                environment = process.environ()
                if environment[self.launcher] == str(os.getpid()):
                    self.processes[int(environment["RANK"])] = process

    def _stopped(self, look: int) -> str | None:
        import psutil

        for rank, process in self.processes.items():
            state: Any = None
            with suppress(psutil.Error):
                state = process.status()
            self.states[rank] = state
            stopped = state == psutil.STATUS_STOPPED
            if self._unchanged.seconds(("stopped", rank), stopped or look) >= SILENT:
                return f"{self.name(rank)} has been stopped for {SILENT:.0f} seconds, as by SIGSTOP"
        return None

    def _silent(self, look: int) -> str | None:
        for machine, sign in self.signs.items():
            if self._unchanged.seconds(("machine", machine), look if sign == ENDED else sign) >= SILENT:
                self.lost = machine == 0
                return f"machine {machine} has not answered for {SILENT:.0f} seconds: it or its network is gone"
        connected = self.machine != 0 and self.answers
        if self._unchanged.seconds("store", self.answers if connected else look) >= SILENT:
            self.lost = True
            return f"machine 0 has not answered for {SILENT:.0f} seconds: it, its network or its command is gone"
        return None

    def _hanging(self, look: int) -> str | None:
        """On machine 0: the rank that others have waited for too long."""
        import psutil

        first = max((begun for begun, *_ in self.reports.values()), default=0)
        for rank, (begun, moved, *_, place) in sorted(self.reports.items()):
            if self._unchanged.seconds(("rank", rank), (begun, moved) if begun < first else look) >= self.hang_timeout:
                waited = f"the others have waited {self.hang_timeout:g} seconds for it (--hang-timeout)"
                what = "is stopped, as by SIGSTOP" if self.states.get(rank) == psutil.STATUS_STOPPED else "hangs"
                return f"{self.name(rank)} {what}: {waited}. It is at {place}"
        return None

    def _end_processes(self) -> None:
        """Kill the ranks of this machine, the stopped or hanging one last, so that no other sees it go."""
        import psutil

        last = self.finding or ""
        for rank in sorted(self.processes, key=lambda rank: last.startswith(f"rank {rank} ")):
            with suppress(psutil.Error):
                self.processes[rank].kill()

    def _talk(self) -> None:
        """Exchange signs of life and findings with the other machines, and read the ranks' reports."""
        from torch.distributed import DistError

        with suppress(DistError, RuntimeError):  # seen by the answers, which stop
            store = self.connect()
            while not self._over.wait(INTERVAL):
                self._exchange(store, str(self.answers))
            last_words = time.monotonic() + SILENT / 4
            self._exchange(store, ENDED)
            if self.finding and self.machine == 0:  # the others read it here
                while any(sign != ENDED for sign in self.signs.values()) and time.monotonic() < last_words:
                    time.sleep(INTERVAL)
                    self._exchange(store, ENDED)

    def _exchange(self, store: Any, sign: str) -> None:
        store.set(f"machine/{self.machine}", sign)
        if self.finding:
            store.compare_set(FINDING, "", self.finding)
        if store.check([FINDING]):
            self.finding = store.get(FINDING).decode()
        for machine in range(self.machines):
            if machine != self.machine and store.check([f"machine/{machine}"]):
                self.signs[machine] = store.get(f"machine/{machine}").decode()
        if self.machine == 0:
            for rank in range(self.size):
                if store.check([f"rank/{rank}"]):
                    self.reports[rank] = json.loads(store.get(f"rank/{rank}"))
        self.answers += 1


def how_it_ended(code: int) -> str:
    """What the exit code of a process says, to be put after its name."""
    if code < 0:
        killed = " (the system does that to what takes too much memory)" if code == -signal.SIGKILL else ""
        return f"was ended by {signal.Signals(-code).name}{killed}"
    return f"ended with exit code {code}: what it said is on that machine"
