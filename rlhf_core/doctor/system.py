"""Python, memory, disks, limits and variables of the environment; none of it needs a library."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from rlhf_core.doctor import Check, Status, one_line
from rlhf_core.doctor.asking import Asking
from rlhf_core.environment import prepare
from rlhf_core.errors import UserError

GB = 1e9
TESTED = ((3, 11), (3, 13))  # the first and the last version of Python
FILES = 1024  # that a run may need open: of data, logs and workers
SHARED = 1 * GB  # which processes exchange tensors through
FULL = 12  # bytes a parameter of a checkpoint: weights and two moments of AdamW, in float32
HALF = 2  # of a model that is downloaded, in bfloat16
CGROUP = Path("/sys/fs/cgroup")


def python() -> Check:
    version, place = platform.python_version(), home_as_tilde(sys.executable)
    if not TESTED[0] <= sys.version_info[:2] <= TESTED[1]:
        first, last = (".".join(map(str, each)) for each in TESTED)
        return Check("Python", "warn", f"{version}, {place}: {first} to {last} are supported")
    return Check("Python", "ok", f"{version}, {place}")


def home_as_tilde(text: str) -> str:
    """`text` without the place of the home folder, which has the user's name."""
    with suppress(RuntimeError):  # there is none, as in some containers
        home = Path.home()
        if len(home.parts) > 1:
            return text.replace(f"{home}/", "~/")
    return text


def memory(cgroup: Path = CGROUP, meminfo: Path = Path("/proc/meminfo")) -> Check:
    """Memory and processors, which a container may have less of than its machine."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = _available(meminfo)
    limit = _number(cgroup / "memory.max")
    if limit is not None and limit < total:
        used = _number(cgroup / "memory.current") or 0
        total, free = limit, limit - used if free is None else min(free, limit - used)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    have = f"{total / GB:.1f} GB" if free is None else f"{free / GB:.1f} of {total / GB:.1f} GB free"
    text = f"{have}, {cores} CPU cores"
    quota = _quota(cgroup)
    if quota and quota < cores and "OMP_NUM_THREADS" not in os.environ:
        slow = f"{text}, of which this container may use {quota:g}: threads that wait for each other make it slow"
        return Check("memory", "warn", slow, f"Set it: export OMP_NUM_THREADS={max(1, int(quota))}")
    if free is not None and free < 2 * GB:
        return Check("memory", "warn", f"{text}: the libraries alone take 1 GB", "End other programs")
    return Check("memory", "ok", text)


def _available(meminfo: Path) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _number(file: Path) -> int | None:
    with suppress(OSError, ValueError):  # "max" is no limit
        return int(file.read_text())
    return None


def _quota(cgroup: Path) -> float | None:
    """CPU cores that a container may use at once."""
    with suppress(OSError, ValueError):
        quota, period = (cgroup / "cpu.max").read_text().split()
        return int(quota) / int(period)
    return None


def disks(output_dir: Path) -> Iterator[Check]:
    """Where runs write, where downloaded models are kept, and temporary files."""
    yield judge_disk("output", output_dir, FULL, "a checkpoint of all weights", "--output-dir")
    try:
        yield judge_disk("downloads", downloads(os.environ), HALF, "a model in bfloat16", "HF_HOME")
    except RuntimeError:
        yield Check("downloads", "warn", "there is no home folder to keep models in", "Name one: export HF_HOME=FOLDER")
    try:
        found = Path(tempfile.gettempdir())
        if (given := os.environ.get("TMPDIR")) and os.path.abspath(given) != str(found):
            yield Check("temporary", "warn", f"TMPDIR={home_as_tilde(given)} can't be written to: {found} is used")
        else:
            yield judge_disk("temporary", found, 0, "", "TMPDIR")
    except FileNotFoundError:
        yield Check(
            "temporary", "fail", "no folder for temporary files can be written to", "Name one: export TMPDIR=FOLDER"
        )


def downloads(environment: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps what it downloads. Raises `RuntimeError` without a home folder."""
    if given := environment.get("HF_HUB_CACHE"):
        return Path(given).expanduser()
    return hub_home(environment) / "hub"


def hub_home(environment: Mapping[str, str]) -> Path:
    if given := environment.get("HF_HOME"):
        return Path(given).expanduser()
    return Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"


def judge_disk(name: str, folder: Path, size: int, what: str, otherwise: str) -> Check:
    """Whether a folder, or the nearest one there is, can be written to, and for what its disk has room.

    `size`: bytes a parameter of `what` that goes there. `otherwise`: what names another folder.
    """
    shown = home_as_tilde(str(folder.absolute()))
    there = next(path for path in [folder.absolute(), *folder.absolute().parents] if os.path.lexists(path))
    status: Status = "fail" if otherwise == "--output-dir" else "warn"
    advice = f"Name another folder with {otherwise}"
    try:
        with tempfile.TemporaryFile(dir=there):  # permissions alone don't tell of all file systems
            free = shutil.disk_usage(there).free
    except OSError as error:
        return Check(name, status, f"{shown} can't be written to: {error.strerror}", advice)
    text = f"{free / GB:.1f} GB free in {shown}"
    if size:
        sizes = ", ".join(f"{size * billions:.0f} GB for {billions:g} B" for billions in (0.6, 1.7, 8))
        text += f"; {what} takes {sizes} parameters"
    if free < max(1, size) * 0.6 * GB:
        return Check(name, status if free < 0.1 * GB else "warn", text, f"Make room. {advice}")
    return Check(name, "ok", text)


def limits() -> Iterator[Check]:
    yield judge_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if space != resource.RLIM_INFINITY:
        limited = f"a process may map {space / GB:.1f} GB: CUDA and large files map more than they use"
        yield Check("address space", "warn", limited, "Before the command: ulimit -v unlimited")
    with suppress(FileNotFoundError):  # not on every system
        yield judge_shared(shutil.disk_usage("/dev/shm").total)


def judge_files(soft: int, hard: int) -> Check:
    if soft == resource.RLIM_INFINITY:
        return Check("open files", "ok", "unlimited")
    if soft >= FILES:
        return Check("open files", "ok", f"{soft:,} at once")
    few = f"{soft:,} at once: a run with workers may need more"
    if hard == resource.RLIM_INFINITY or hard >= FILES:
        most = hard if 0 < hard < FILES * 64 else FILES * 64
        return Check("open files", "warn", few, f"Before the command: ulimit -n {most}")
    return Check(
        "open files", "warn", few, f"Start the container with --ulimit nofile={FILES * 64}, or ask who runs it"
    )


def judge_shared(size: int) -> Check:
    text = f"{size / GB:.2g} GB in /dev/shm"
    if size < SHARED:
        few = f"{text}: too few for several GPUs and workers that read data"
        return Check("shared memory", "warn", few, "Give the container more: docker run --shm-size=8g")
    return Check("shared memory", "ok", text)


def environment(asking: Asking) -> Check:
    """Whether a run would refuse the variables that are set."""
    try:
        prepare()
    except UserError as error:
        return Check("environment", "fail", one_line(str(error)))
    if problem := asking.ask("variables").error:
        return Check("environment", "fail", one_line(problem))
    return Check("environment", "ok", "no variable is set that a run refuses")


def hub() -> Check:
    """Whether models can be fetched that ask for a login; nothing is connected to."""
    offline = [
        f"{name}={os.environ[name]}" for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name)
    ]
    note = "".join(f"; {each}: nothing is downloaded" for each in offline[:1])
    token = bool(os.environ.get("HF_TOKEN"))
    with suppress(OSError, RuntimeError):
        token = token or Path(os.environ.get("HF_TOKEN_PATH") or hub_home(os.environ) / "token").is_file()
    if token:
        return Check("Hub", "ok", f"a token is set{note}")
    return Check(
        "Hub", "missing", f"no token: models that ask for a login can't be downloaded{note}", "To log in: hf auth login"
    )
