"""The estimate that a run shows before its weights load: it changes nothing, and no trouble with it ends the run."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from rlhf_core.estimate import before_run
from rlhf_core.estimate.hardware import Device
from rlhf_core.ui.screen import Screen

CPU = Device("the CPU", 64 * 10**9, is_gpu=False)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a process is copied on Linux alone")


@pytest.fixture
def run(monkeypatch):
    """What the estimate asks a run, which is not more than its size here."""
    monkeypatch.setattr(before_run, "here", lambda: CPU)
    return SimpleNamespace(info=SimpleNamespace(parameters=before_run.SMALLEST))


def shown(run) -> str:
    return dict(before_run.of_run(run, None, None, Screen(quiet=True)).lines)["Memory"]


def test_a_run_with_an_estimate_is_the_run_without_to_the_last_bit(tmp_path, monkeypatch):
    from rlhf_core.catalog import Catalog
    from rlhf_core.config import resolve
    from rlhf_core.training.run import train

    monkeypatch.setattr(before_run, "SMALLEST", 0)
    logged, expected = [], []
    for estimate in (None, before_run.of_run):
        folder = tmp_path / str(len(logged))
        values = {"method": "grpo", "reward": "length", "max_steps": 2, "per_device_train_batch_size": 8}
        more = {"max_completion_length": 16, "num_eval_prompts": 8, "output_dir": str(folder)}
        config, method = resolve({**values, **more}, catalog := Catalog())
        assert train(config, method, catalog, estimate=estimate) == 0
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        logged.append(
            [{name: line[name] for name in ("loss", "reward", "grad_norm") if name in line} for line in lines]
        )
        expected.append(json.loads((folder / "manifest.json").read_text())["memory"]["estimated_bytes"])
    assert logged[0] == logged[1]
    assert any(logged[0])
    assert expected[0] is None
    assert expected[1] > 10**7


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda *_: os.kill(os.getpid(), signal.SIGKILL), "not estimated: its process ended"),
        (lambda *_: 1 / 0, "not estimated: ZeroDivisionError: division by zero"),
        (lambda *_: time.sleep(60), "not estimated: it took more than 0.5 s"),
    ],
    ids=["crash", "error", "hang"],
)
def test_trouble_is_said_and_the_run_goes_on(run, what, message, monkeypatch):
    monkeypatch.setattr(before_run, "SECONDS", 0.5)
    monkeypatch.setattr(before_run, "_estimated", what)
    assert shown(run) == message


def test_of_several_processes_it_is_alone_and_waits_for_none(run, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)

    def found(*_):
        raise ValueError(
            ", ".join(name for name in os.environ if "RANK" in name or "MASTER" in name or "WORLD" in name)
        )

    monkeypatch.setattr(before_run, "_estimated", found)
    assert shown(run) == "not estimated: ValueError: "


def test_what_it_prints_is_not_seen(run, monkeypatch, capfd):
    def loud(*_):
        print("to the standard output")
        os.write(2, b"to the standard error, as libraries do")
        raise ValueError("no")

    monkeypatch.setattr(before_run, "_estimated", loud)
    assert shown(run) == "not estimated: ValueError: no"
    assert capfd.readouterr() == ("", "")


def test_an_interruption_is_the_run_s_and_ends_it(run, monkeypatch):
    """Ctrl-C reaches both processes: the copy says nothing, and is gone."""
    copies, others = [], {*children()}
    monkeypatch.setattr(before_run, "SECONDS", 20)

    def hang(*_):
        time.sleep(60)

    def interrupt():
        time.sleep(0.3)
        copies.extend(int(pid) for pid in {*children()} - others)
        for pid in (*copies, os.getpid()):
            os.kill(pid, signal.SIGINT)

    monkeypatch.setattr(before_run, "_estimated", hang)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background commands ignore it
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            shown(run)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert copies
    assert {*children()} <= others


def children() -> list[str]:
    from pathlib import Path

    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
