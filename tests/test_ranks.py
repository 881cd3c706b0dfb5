"""A rank that is stopped, hangs or is killed ends the run on the others with one message that names it; one that is slow,
or at work, does not.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import distributed

from rlhf_core import Reward, cli, environment
from rlhf_core.config import RunConfig
from rlhf_core.rewards.event_loop import EventLoop
from rlhf_core.training import launch, ranks
from rlhf_core.training.run import train

# Two processes that meet once: rank 0 waits there for rank 1, which something happens to.
PROGRAM = """
import os, signal, sys, threading, time
import torch
from torch import distributed
from rlhf_core import environment
from rlhf_core.training import ranks
ranks.report(threading.get_ident())
distributed.init_process_group("gloo")
distributed.all_reduce(torch.ones(1))
def hang(): time.sleep(600)
def stop(): os.kill(os.getpid(), signal.SIGSTOP)
def kill(): os.kill(os.getpid(), signal.SIGKILL)
def kill_other_command():
    ranks.SILENT = float(sys.argv[2])
    os.kill(int(sys.argv[3]), signal.SIGKILL)
    time.sleep(0.2)
environment.end_with(int(os.environ["RLHF_LAUNCHER"]))
if os.environ["RANK"] == "1":
    globals()[sys.argv[1]]()
try:
    distributed.all_reduce(torch.ones(1))
except RuntimeError as error:
    ranks.wait_to_be_ended(error)
    raise
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="needs the states of processes")
@pytest.mark.parametrize(
    ("happens", "message"),
    [
        ("stop", "has been stopped for 1 seconds"),
        ("hang", "hangs: the others have waited 2 seconds for it"),
        ("kill", "was ended by SIGKILL"),
    ],
)
def test_what_happens_to_a_rank_is_said_once_and_ends_the_others(tmp_path, monkeypatch, capfd, happens, message):
    monkeypatch.chdir(tmp_path)
    Path("meets_once.py").write_text(PROGRAM)
    monkeypatch.setattr(ranks, "SILENT", 1.0 if happens == "stop" else 60.0)
    config = RunConfig(method="sft", num_processes=2, output_dir="out")
    config.hang_timeout = 2.0 if happens == "hang" else 60.0
    assert launch.launch(config, [happens], program=["meets_once"]) == 1
    said, errors = capfd.readouterr()
    assert (said.count("The run ends: rank 1 (process "), said.count(message), errors.count("Traceback")) == (1, 1, 0)
    assert "Resume from the last checkpoint: rlhf run --resume out" in said
    if happens == "hang":
        assert "meets_once.py:10 (hang), called from " in said


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="processes end with their command on Linux")
def test_a_command_that_is_killed_on_machine_0_is_said_on_machine_1(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("meets_once.py").write_text(PROGRAM)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    values = {"method": "sft", "num_machines": 2, "master_addr": address, "output_dir": "out"}
    first = "from rlhf_core.config import RunConfig\nfrom rlhf_core.training.launch import launch\n"
    first += f"launch(RunConfig(**{values}), [], program=['meets_once'])"
    command = subprocess.Popen([sys.executable, "-c", first])
    monkeypatch.setattr(ranks, "SILENT", 3.0)
    monkeypatch.setattr(ranks, "INTERVAL", 0.2)
    arguments = ["kill_other_command", str(ranks.SILENT), str(command.pid)]
    try:
        assert launch.launch(RunConfig(**values, machine_rank=1), arguments, program=["meets_once"]) == 1
    finally:
        command.kill()
        command.wait()
    said, errors = capfd.readouterr()
    assert said.count("The run ends: machine 0 has not answered for 3 seconds") == 1
    assert "Traceback" not in errors


class Store(dict):
    """The store of torch's launcher, without a network."""

    def set(self, key, value):
        self[key] = value.encode()

    def check(self, keys):
        return all(key in self for key in keys)

    def get(self, key):
        return self[key]

    def compare_set(self, key, expected, value):
        self.setdefault(key, value.encode())


@pytest.fixture
def watch():
    """watch(machine) -> the watch of one of two machines with two ranks each, which share a store."""
    store = Store()

    def make(machine: int) -> ranks.Watch:
        config = RunConfig(method="sft", num_processes=2, num_machines=2, machine_rank=machine, master_addr="a:1")
        made = ranks.Watch(lambda: store, config, launch.LAUNCHER)
        made.store = store
        return made

    return make


def after(watch, seconds: int, *, reports=None, sign=None, answers=True) -> str | None:
    """What it finds when for so many seconds every rank reports the same, and the other machine the same sign."""
    found = None
    for look in range(seconds + 1):
        watch.answers += answers
        watch.reports = {rank: [*values, 7, "node", "f.py:1 (f)"] for rank, values in (reports or {}).items()}
        watch.signs = {} if sign is None else {1 - watch.machine: sign(look)}
        found = found or watch._stopped(look) or watch._silent(look) or watch._hanging(look)
    return found


@pytest.mark.parametrize(
    ("machine", "state", "found"),
    [
        (0, {"reports": {0: [6, 0], 1: [5, 3]}}, "rank 1 (process 7 on node) hangs"),
        (0, {"reports": {0: [0, 0], 3: [-1, 0]}}, "rank 3 (process 7 on node) hangs"),  # before there is a group
        (0, {"reports": {0: [5, 0], 1: [5, 0]}}, None),  # both sample for long: nobody waits
        (0, {"sign": lambda look: "3"}, "machine 1 has not answered"),
        (0, {"sign": lambda look: ranks.ENDED}, None),
        (0, {"sign": str}, None),
        (0, {}, None),  # it has not started yet
        (1, {"answers": False}, None),  # nor has machine 0
        (1, {"sign": lambda look: "3"}, "machine 0 has not answered"),
    ],
)
def test_what_is_found_after_ten_minutes_of_the_same(watch, machine, state, found):
    assert (after(watch(machine), 600, **state) or "None").startswith(str(found))


def test_nothing_is_found_before_its_time(watch):
    waits = {0: [6, 0], 1: [5, 3]}
    assert after(watch(0), 599, reports=waits) is None
    assert after(watch(0), 39, sign=lambda look: "3") is None


def test_a_rank_at_work_is_waited_for(watch):
    """It moves data, or waits where a reward has a time limit of its own: its second number grows."""
    one = watch(0)
    for moved in range(5):
        assert after(one, 500, reports={0: [6, 0], 1: [5, moved]}) is None


def test_a_machine_that_was_silent_since_it_answered_is_gone(watch):
    other = watch(1)
    other.answers = 1
    assert "machine 0 has not answered" in after(other, 40, answers=False)


def test_a_finding_ends_the_other_machine(watch):
    first, other = watch(0), watch(1)
    first.finding = "rank 1 hangs"
    first._exchange(first.store, "4")
    other.finding = "what it saw of it itself"
    other._exchange(other.store, "4")
    assert other.finding == "rank 1 hangs"


def test_the_ranks_of_a_finding_are_killed_with_the_one_it_names_last(watch):
    killed, one = [], watch(0)
    one.processes = {rank: SimpleNamespace(kill=lambda rank=rank: killed.append(rank)) for rank in (0, 1, 10)}
    one.finding = "rank 1 (process 7 on node) hangs"
    one._end_processes()
    assert killed == [0, 10, 1]


def test_only_the_loss_of_another_rank_waits_to_be_ended(monkeypatch):
    from torch import distributed

    waited = []
    monkeypatch.setattr(ranks.time, "sleep", waited.append)
    lost = [RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer")]
    lost += [distributed.DistBackendError("NCCL communicator was aborted on rank 1")]
    for error in [*lost, ValueError("a bug"), RuntimeError("CUDA error")]:
        ranks.wait_to_be_ended(error)  # alone: there is no other
        monkeypatch.setenv("RANK", "0")
        ranks.wait_to_be_ended(error)
        monkeypatch.delenv("RANK")
    assert waited == [2 * ranks.SILENT] * 2  # the launcher has found it by then


def test_reports_say_what_a_rank_does(monkeypatch):
    """How often it met the others, that it writes fast, that it waits where there is a limit, and where it is."""
    store, sent = Store(), threading.Event()
    monkeypatch.setattr("torch.distributed.TCPStore", lambda *_, **__: store)
    monkeypatch.setattr(ranks, "INTERVAL", 0.01)
    monkeypatch.setattr(ranks.atexit, "register", lambda end: setattr(store, "end", end))
    store.set = lambda key, value: (store.update({key: value}), sent.set())
    for name, value in {"RANK": "3", "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    ranks.report(threading.get_ident())
    assert sent.wait(5)
    begun, moved, process, _, place = ranks.json.loads(store["rank/3"])
    store.end()
    assert (begun, moved, process) == (-1, 0, os.getpid())
    assert "threading.py:" in place


def test_a_wait_for_a_reward_with_a_time_limit_is_no_hang():
    @Reward
    async def slow(completions, **_):
        seen.append(ranks._waits_with_a_limit())
        return [1.0 for _ in completions]

    seen = []
    loop = EventLoop(SimpleNamespace(call=lambda columns, trl: slow.function(**trl), name="slow", reward=slow))
    waiting = threading.Thread(target=loop.score, args=(({}, {"completions": ["a"]}), 1, 5.0))
    waiting.start()
    waiting.join()
    loop.stop()
    assert seen == [True]
    assert not ranks._waits_with_a_limit()


def test_a_rank_reports_from_its_beginning(monkeypatch):
    class Begun(Exception):
        pass

    def begin(thread):
        raise Begun(thread)

    monkeypatch.setattr(ranks, "report", begin)
    monkeypatch.setattr(environment, "end_with", lambda parent: None)
    monkeypatch.setenv(launch.LAUNCHER, "1")
    with pytest.raises(Begun, match=str(threading.get_ident())):
        train(RunConfig(method="sft"), None, None)


def test_an_exit_code_in_words():
    assert ranks.how_it_ended(-signal.SIGSEGV) == "was ended by SIGSEGV"
    assert "memory" in ranks.how_it_ended(-signal.SIGKILL)
    assert ranks.how_it_ended(1).startswith("ended with exit code 1")


@pytest.mark.parametrize(("variable", "said"), [("RLHF_LAUNCHER", ""), ("ELSE", "Interrupted.\n")])
def test_a_rank_that_is_ended_leaves_it_to_the_command_to_say_so(monkeypatch, capsys, variable, said):
    def ended(**settings):
        raise environment.Ended

    monkeypatch.setattr(cli.rlhf, "main", ended)
    monkeypatch.setenv(variable, "1")
    assert cli.exit_code() == 130
    assert capsys.readouterr().err == said


def test_operations_of_a_group_of_its_own_count():
    """DeepSpeed's are: without them, who waits there for a process that hangs would not be seen to wait."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        group = distributed.new_group([0])
        before = ranks._collectives([])
        distributed.all_reduce(torch.ones(1), group=group)
        distributed.all_reduce(torch.ones(1))
        assert ranks._collectives([]) == before + 2
    finally:
        distributed.destroy_process_group()
    assert ranks._collectives([]) == -1
