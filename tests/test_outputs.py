"""What the commands write: files appear whole, and nothing that was there before is written over."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from rlhf_core import catalog, outputs
from rlhf_core.catalog import Catalog
from rlhf_core.cli import rlhf
from rlhf_core.config import RunConfig
from rlhf_core.errors import UserError
from rlhf_core.outputs import LOCK, claim, keep_lines, new_folder, read_lines, write_whole
from rlhf_core.training import ending, run_folder
from rlhf_core.training.launch import on_signals
from rlhf_core.ui.page import page_file


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    file.write_text("before")

    def full(descriptor):
        assert file.read_text() == "before"
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_whole(file, "after")
    assert file.read_text() == "before"
    write_whole(file, "after\r\n")
    assert file.read_bytes() == b"after\r\n"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_private_file_is_for_its_owner_and_others_follow_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        for private, mode in ((True, 0o600), (False, 0o644)):
            write_whole(tmp_path / "a", "text", private=private)
            assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode
    finally:
        os.umask(before)


def test_half_a_character_is_written_as_its_escape_in_json(tmp_path):
    write_whole(tmp_path / "a.json", json.dumps(["\ud800 é"], ensure_ascii=False))
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '["\\ud800 é"]'
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == ["\ud800 é"]


def test_a_file_with_the_longest_name_can_be_written(tmp_path):
    write_whole(tmp_path / ("x" * 255), "text")
    assert (tmp_path / ("x" * 255)).read_text() == "text"


LINES = {  # a line -> whether it is an object
    '{"step": 1, "x": "a\u2028b\u0085cd"}'.encode(): True,
    b'{"step": 1}\r': True,
    b'{"step": 1, "x": "\\ud800"}': True,
    b"[1]": False,
    b"null": False,
    b'{"step": 1': False,
    b'{"step": "\xff"}': False,
    b'{"step": ' + b"9" * 5000 + b"}": False,
    b"[" * 100_000: False,
    b"\x00" * 2_000: False,
    b'{"step": 1, "x": "' + b"y" * 300_000 + b'"}': False,  # longer than a line may be
}


def test_json_lines_end_at_line_feeds_and_damage_is_set_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "LONGEST_LINE", 200_000)
    file, whole = tmp_path / "log.jsonl", [line for line, good in LINES.items() if good]
    file.write_bytes(b"".join(line + b"\n" for line in LINES) + b'\n  \n{"step": 9}\n{"step": 1}\n{"half": "\xe4')
    assert [value["step"] for value in read_lines(file)] == [1, 1, 1, 9, 1]
    damaged = [line for line, good in LINES.items() if not good]
    assert keep_lines(file, lambda value: value["step"] < 5) == len(damaged) + 1  # the longest in two parts
    assert file.read_bytes() == b"".join(line + b"\n" for line in [*whole, b'{"step": 1}'])
    aside = (tmp_path / "log.jsonl.damaged").read_bytes()
    assert aside == b"".join(line + b"\n" for line in damaged)
    assert keep_lines(file, lambda value: None) == 4  # what does not say when it was written
    assert file.read_bytes() == b""
    file.write_bytes(b'{"step": 1}\n{"step": 2}')  # nothing ends the last line, and it is whole
    assert [value["step"] for value in read_lines(file)] == [1, 2]
    assert keep_lines(file, lambda value: True if value["step"] == 1 else None) == 1
    assert (file.read_bytes(), (tmp_path / "log.jsonl.damaged").read_bytes()[-12:]) == (
        b'{"step": 1}\n',
        b'{"step": 2}\n',
    )
    file.write_bytes(b"x" * 200_000 + b'{"step": 1}\n' + b"x" * 400_000 + b'{"step": 1}\n{"step": 5}\n')
    assert [value["step"] for value in read_lines(file)] == [5]  # the end of a line that is too long is no line
    assert keep_lines(tmp_path / "new.jsonl", lambda value: True) == 0
    assert (tmp_path / "new.jsonl").read_bytes() == b""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(folder: str | None) -> RunConfig:
    return RunConfig.model_construct(method="sft", output_dir=folder, machine_rank=0)


def everything(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() if path.is_file() else "" for path in folder.rglob("*")}


@pytest.mark.parametrize("name", run_folder.WRITTEN)
def test_a_new_run_writes_over_nothing(here, name):
    (here / name).mkdir()
    (here / name / "mine").touch()
    before = everything(here)
    with pytest.raises(UserError, match=name), run_folder.claimed(config("."), resume=False):
        pass
    assert everything(here) == before


REFUSED = {
    "": "is empty",
    "file": "file is a file",
    "file/run": "file is a file",
    "dangling": "dangling is a link to nowhere, which is not there",
    "dangling/run": "dangling is a link to nowhere",
    "loop/run": "loop is a link to loop",
    "/proc/rlhf": "can't be written to",
    "/sys/kernel/rlhf/run": "can't be written to",
    "/dev/null": "/dev/null is a file",
    "~nobody-of-that-name/run": "home directory",
    "x" * 256: "no file can have such a name",
    "nul\0": "no file can have such a name",
    "locked": "locked/.rlhf.lock is no file",
    "old": "holds a run already. Resume it: rlhf run --resume old",
    "theirs": "has files that a run would write over: config.yaml, metrics.jsonl",
}


@pytest.mark.parametrize("folder", REFUSED)
def test_a_folder_that_a_run_cannot_have_is_refused_and_left_as_it_was(here, folder):
    (here / "file").write_text("mine")
    (here / "dangling").symlink_to("nowhere")
    (here / "loop").symlink_to("loop")
    (here / "locked" / LOCK).mkdir(parents=True)
    (here / "old" / "checkpoints").mkdir(parents=True)
    (here / "theirs").mkdir()
    for name in ("old/config.yaml", "theirs/config.yaml", "theirs/metrics.jsonl"):
        (here / name).write_text("mine")
    before = everything(here)
    with pytest.raises(UserError) as raised, run_folder.claimed(config(folder), resume=False):
        pass
    assert REFUSED[folder] in str(raised.value)
    assert "--output-dir" in str(raised.value)
    assert everything(here) == before


@pytest.mark.parametrize("folder", ["new", "new/in/new", "empty", "notes", ".", "link", "with space/é", "~/new", None])
def test_a_folder_that_a_run_can_have_appears_and_goes_again_if_no_run_begins(here, monkeypatch, folder):
    monkeypatch.setenv("HOME", str(here / "home"))
    for name in ("empty", "notes", "home"):
        (here / name).mkdir()
    (here / "notes" / "notes.txt").write_text("mine")
    (here / "link").symlink_to("empty")
    before, asked = everything(here), config(folder)
    with run_folder.claimed(asked, resume=False) as made:
        assert made.is_dir()
        assert asked.output_dir == str(made)
    assert everything(here) == before
    assert "~" not in str(made)


def test_two_runs_that_start_in_the_same_second_get_two_folders(here, monkeypatch):
    monkeypatch.setattr(run_folder.time, "strftime", lambda form: "20260101-120000")
    with run_folder.claimed(config(None), False) as one, run_folder.claimed(config(None), False) as two:
        assert [str(one), str(two)] == ["runs/sft-20260101-120000", "runs/sft-20260101-120000-2"]
    assert not Path("runs").exists()


def test_many_claims_at_once_get_a_folder_each(here, monkeypatch):
    monkeypatch.setattr(run_folder.time, "strftime", lambda form: "20260101-120000")
    together, found = threading.Barrier(16), []

    def start():
        together.wait()
        with run_folder.claimed(config(None), False) as folder:
            found.append(folder)
            together.wait()

    threads = [threading.Thread(target=start) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 16


def test_one_process_at_a_time_writes_to_a_folder(here):
    with claim(here / "out", "--output-dir"):
        (here / "out" / "config.yaml").write_text("")
        (here / "out" / "checkpoints").mkdir()
        for resume in (False, True):
            with pytest.raises(UserError, match=f"process {os.getpid()} on .* writes to it"):
                run_folder.claimed(config("out"), resume).__enter__()
    (here / "out" / LOCK).write_text("x" * 1000)
    with run_folder.claimed(config("out"), resume=True):
        assert json.loads((here / "out" / LOCK).read_text())["process"] == os.getpid()
        assert len(outputs._locks) == 1
    assert not outputs._locks
    assert (here / "out" / "config.yaml").exists()


HOLD = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace
from rlhf_core.outputs import claim
with claim(Path("out"), "--output-dir"):
    Path("out", "config.yaml").touch()
    if os.fork() == 0:
        print("held", flush=True)  # once this process has closed its copy of the lock
    time.sleep(60)
"""


def test_the_lock_of_a_dead_process_is_taken_over(here):
    """Also where a process that it forked, such as a loader of data, is still there."""
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            with pytest.raises(UserError, match=f"process {process.pid} on"):
                claim(Path("out"), "--resume").__enter__()
            process.kill()
            process.wait()
            with claim(Path("out"), "--resume"):
                pass
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_folders_that_another_process_makes_meanwhile_are_as_good(here, monkeypatch):
    def made(path, *_):
        os.makedirs(path)
        raise FileExistsError

    monkeypatch.setattr(Path, "mkdir", made)
    with claim(Path("out/in"), "--output-dir") as folder:
        assert folder.is_dir()


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[]", b"{}", b'{"process": {}}'])
def test_a_damaged_lock_file_is_one_of_another_process(here, content):
    with claim(Path("out"), "--output-dir"):
        (here / "out" / LOCK).open("r+b").write(content.ljust(200))
        with pytest.raises(UserError, match="process"):
            claim(Path("out"), "--output-dir").__enter__()


def test_a_file_system_without_locks_is_said(here, monkeypatch, caplog):
    from rlhf_core import outputs

    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(outputs.fcntl, "flock", no_locks)
    with claim(Path("out"), "--output-dir"):
        pass
    assert "out can't be locked (Operation not supported): let only one process write there" in caplog.text


STREAMS = """
import os, sys
from rlhf_core.ui.streams import open_streams, outlast_streams
open_streams()
if sys.argv[1] == "outlast":
    outlast_streams()
for number in range(3):
    print("text", flush=True)
    os.write(2, b"again\\n")
assert open("file", "w").fileno() > 2
assert sys.stdin.read() == ""
"""


@pytest.mark.parametrize(
    ("mode", "shell", "ends"),
    [
        ("outlast", ">/dev/full", 3),
        ("outlast", "<&- >&-", 3),
        ("outlast", "| true", 3),
        ("end", ">/dev/full", 0),
        ("end", ">&-", 3),
    ],
)
def test_a_run_outlasts_its_streams_and_other_commands_end(here, mode, shell, ends):
    (here / "streams.py").write_text(STREAMS)
    command = f"(sleep 0.2; {sys.executable} streams.py {mode}) {shell}"
    errors = subprocess.run(command, shell=True, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True).stderr
    assert errors.count("again") == ends, errors
    assert ("Traceback" in errors) == (ends == 0)


def test_a_closed_terminal_stops_a_run_unless_it_is_to_be_ignored():
    received = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        for handler, expected in ((signal.SIG_IGN, 0), (signal.SIG_DFL, 1)):
            signal.signal(signal.SIGHUP, handler)
            with on_signals(lambda number, frame: received.append(number)):
                os.kill(os.getpid(), signal.SIGHUP)
            assert received == [signal.SIGHUP] * expected
            assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_in_the_background_of_a_shell_can_be_interrupted():
    received = []
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for `rlhf run … &`
    try:
        with on_signals(lambda number, frame: received.append(number)):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert received == [signal.SIGINT]


def test_a_page_replaces_a_page_and_nothing_else(here, write_jsonl):
    data = Path(write_jsonl("d.jsonl", [{"prompt": "q", "completion": "a"}]))
    Path("link.html").symlink_to("nowhere")
    Path("folder.html").mkdir()
    before = data.read_bytes()
    for name, said in {
        "d.jsonl": "is no page of this command", "none/p.html": "its folder does not exist", "link.html": "No such file",
        "folder.html": "is a folder", "x" * 300: "no file can have such a name",
    }.items():  # fmt: skip
        done = CliRunner().invoke(rlhf, ["score", "d.jsonl", "--reward", "length", "--html", name])
        assert isinstance(done.exception, UserError), name
        assert "--html" in str(done.exception)
        assert said in str(done.exception)
    assert data.read_bytes() == before
    for _ in range(2):
        assert CliRunner().invoke(rlhf, ["score", "d.jsonl", "--reward", "length", "--html", "p.html"]).exit_code == 0
    assert "Rewards on d.jsonl" in Path("p.html").read_text()


def test_a_user_without_a_home_folder_can_list_plugins_that_fail(monkeypatch):
    def without():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", without)
    entry = Catalog().entries("rewards")[0]
    catalog._record(entry, "broken")
    assert catalog._last_failure(entry) is None


def test_why_plugins_failed_may_be_anything(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    entry = replace(Catalog().entries("rewards")[0], name="../../up")
    catalog._record(entry, "broken \ud800")
    assert "broken" in catalog._last_failure(entry)
    file = next((tmp_path / "rlhf" / "plugin_failures").iterdir())
    file.unlink()
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)):
        make(file)
        assert catalog._last_failure(entry) is None
        catalog._record(entry, "broken")
        file.rmdir() if file.is_dir() else file.unlink()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "can't be written to: No space left"),
        (
            RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "can't be written to",
        ),
        (OSError(errno.ENOENT, "No such file"), None),
        (ValueError("a bug"), None),
    ],
)
def test_a_disk_that_is_full_is_told_from_a_bug(tmp_path, error, said):
    (tmp_path / "config.yaml").touch()
    found = ending._of_the_disk(error, SimpleNamespace(folder=tmp_path))
    assert (found is None) if said is None else said in found


def test_a_folder_that_is_renamed_while_its_run_goes_on_is_no_bug(tmp_path):
    found = ending._of_the_disk(FileNotFoundError(2, "No such file"), SimpleNamespace(folder=tmp_path / "before"))
    assert "renamed or removed" in found


@pytest.mark.parametrize("name", [".", "file", "file/x", "dangling", "dangling/x", "/proc/rlhf", "/dev/full"])
def test_a_new_folder_that_cannot_be_is_refused_before_anything_is_written(here, name):
    (here / "file").write_text("mine")
    (here / "dangling").symlink_to("nowhere")
    before = everything(here)
    with pytest.raises(UserError, match="--output"), new_folder(Path(name), "--output"):
        raise AssertionError
    assert everything(here) == before


def test_a_new_folder_appears_when_all_is_written_and_only_then(here):
    def interrupted() -> None:
        with new_folder(here / "a" / "b", "--output") as part:
            (part / "file").write_text("half")
            raise KeyboardInterrupt

    def overtaken() -> None:
        with new_folder(here / "c", "--output"):
            (here / "c").mkdir()
            (here / "c" / "theirs").touch()

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(here.iterdir())
    with new_folder(here / "a" / "b", "--output") as part:
        (part / "file").write_text("whole")
        assert not (here / "a" / "b").exists()
    assert [path.read_text() for path in here.rglob("*") if path.is_file()] == ["whole"]
    with pytest.raises(UserError, match="--output"):
        overtaken()
    assert sorted(path.name for path in here.iterdir()) == ["a", "c"]


def test_a_page_in_a_folder_that_cannot_be_written_to_is_refused_at_once():
    with pytest.raises(UserError, match=r"--html /proc/x\.html: its folder can't be written to"):
        page_file("/proc/x.html", "--html")
