"""Several processes for one run: the command runs torch's launcher, and each process checks that it got what was asked.

    rlhf run --num-processes 2 …
    rlhf run --num-machines 2 --machine-rank 0 --master-addr 10.0.0.1:29500 --num-processes 8 --distributed fsdp …

Ctrl-C, SIGTERM and SIGHUP reach only the command that was typed. It writes the file `stop` to the run's folder, and the
processes, which check for it after every step, stop together with a checkpoint. When that command is killed, its
processes end with it (on Linux). What happens to a process that stops or hangs is in `ranks.py`.

A process that runs out of memory writes the file `smaller.json`, and the command starts again from the last checkpoint
with a smaller micro-batch and more accumulation.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

from rlhf_core import environment
from rlhf_core.config import RunConfig
from rlhf_core.environment import LAUNCHER
from rlhf_core.errors import UserError
from rlhf_core.inputs import library_errors
from rlhf_core.outputs import write_whole
from rlhf_core.training.run_folder import SMALLER, STOP

if TYPE_CHECKING:
    from rlhf_core.method import TrainingOptions

OUT_OF_MEMORY = 75  # exit code of a run that is to be started again with smaller settings
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")  # what it holds
INTERRUPTED = 130
STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPING = "Stopping with a checkpoint after this step. Ctrl-C again stops at once."


def launch(config: RunConfig, arguments: list[str], program: Sequence[str] = ("rlhf_core", "run")) -> int:
    """Run the processes of this machine with the same command-line `arguments`, and return their exit code."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from rlhf_core.training.ranks import Watch, how_it_ended

    folder = Path(str(config.output_dir))
    for file in (STOP, SMALLER):
        (folder / file).unlink(missing_ok=True)
    host, port, connect = _meeting_point(config)
    options = ["--nproc-per-node", str(config.num_processes)]
    options += ["--signals-to-handle", "SIGUSR1"]  # nobody sends it: Ctrl-C and SIGTERM are for `stop` below
    options += ["--nnodes", str(config.num_machines), "--node-rank", str(config.machine_rank)]
    options += ["--master-addr", host, "--master-port", str(port)]
    threads = str(max(1, (os.cpu_count() or 1) // config.num_processes))
    defaults = {"OMP_NUM_THREADS": threads, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "10"}
    before = dict(os.environ)
    os.environ.update({**defaults, **os.environ, LAUNCHER: str(os.getpid())})
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes report their own errors
    received: list[int] = []

    def stop(number: int, frame: Any) -> None:
        again = environment.comes_again()
        if received and (again or number == signal.SIGHUP):  # a terminal that closes sends more than one
            return
        received.append(number)
        if len(received) > 1:
            raise SignalException("stopped at once", signal.SIGKILL)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STOP).touch()
        print(STOPPING, flush=True)

    code, finding, watch = 0, None, Watch(connect, config, LAUNCHER)
    resume = f"Resume from the last checkpoint: {shlex.join(['rlhf', 'run', '--resume', str(folder)])}"
    try:
        with on_signals(stop):
            watch.start()
            run.run(run.parse_args([*options, "-m", *program, *arguments]))
    except SignalException:
        print(f"\nStopped at once. {resume}", flush=True)
        return INTERRUPTED
    except ChildFailedError as error:
        rank, failure = min(error.failures.items(), key=lambda item: (item[1].exitcode >= 0, item[1].timestamp))
        code = failure.exitcode
        if code != INTERRUPTED:
            finding = f"{watch.name(rank)} {how_it_ended(code)}"
    finally:
        os.environ.clear()  # of what is for the processes: this one may go on to another run
        os.environ.update(before)
        (folder / STOP).unlink(missing_ok=True)
        finding = watch.close(finding)
    if code != 0 and (folder / SMALLER).exists():
        return OUT_OF_MEMORY
    if code < 0:
        Console().show_cursor()  # which the live view of a process that was killed has hidden
        print(f"\nThe run ends: {finding}. {resume}", flush=True)
        return 1
    return code


def _meeting_point(config: RunConfig) -> tuple[str, int, Callable[[], Any]]:
    """(host, port, function that connects) of the store of torch's launcher. Machine 0 opens it here, and the launcher,
    in the same process, uses the same one.
    """
    from torch.distributed import TCPStore

    host, _, text = str(config.master_addr or "127.0.0.1:0").partition(":")
    port = int(text or 29500)
    if config.machine_rank > 0:
        return host, port, lambda: TCPStore(host, port, is_master=False)
    with library_errors(f"--master-addr {config.master_addr}"):
        store = TCPStore(host, port, is_master=True, wait_for_workers=False, multi_tenant=True)
    return host, store.port, lambda: store


@contextmanager
def on_signals(handle: Callable[[int, Any], None]) -> Iterator[None]:
    """Call `handle` for Ctrl-C, SIGTERM and a terminal that closes, if this is the main thread: only it may.

    A terminal that closes is ignored under `nohup`, and stays so. Ctrl-C is ignored where a shell runs the command in
    the background; there SIGINT comes from a person or a scheduler, and stops the run.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    by_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = [number for number in STOPPING_SIGNALS if not (by_nohup and number == signal.SIGHUP)]
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def outlive_others() -> None:
    """Ignore the signal that the launcher sends to the other processes of a run once one has ended with an error code:
    this one has said why, and has its page to write.
    """
    if LAUNCHER in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def check_distributed(config: RunConfig) -> None:
    """Raise `UserError` for a kind of distribution that is not available, before anything is loaded or started."""
    kind, started = config.distributed, os.environ.get("LOCAL_WORLD_SIZE", "")
    here = int(started) if started.isdecimal() else config.num_processes
    if here > 1:
        _check_gpus(here)
    if kind == "ddp":
        return
    if config.num_processes * config.num_machines == 1 and "RANK" not in os.environ:
        raise UserError(
            f"--distributed {kind} splits a model between processes: add --num-processes N, one for each GPU"
        )
    if kind in ("zero2", "zero3") and importlib.util.find_spec("deepspeed") is None:
        raise UserError(f"--distributed {kind} needs DeepSpeed: pip install deepspeed. Or use --distributed fsdp")
    import torch

    if not torch.accelerator.is_available():
        raise UserError(f"--distributed {kind} needs GPUs, and this machine has none: leave it out to train on CPUs")


def _check_gpus(processes: int) -> None:
    """Raise `UserError` for more processes on this machine than it has GPUs, if it has some."""
    import torch

    if torch.cuda.is_available() and processes > (gpus := torch.cuda.device_count()):
        raise UserError(
            f"{processes} processes on this machine need a GPU each, and it has {gpus}: start {gpus}, or write "
            "CUDA_VISIBLE_DEVICES= before the command to train on its CPUs"
        )


def use_one_gpu(config: RunConfig) -> list[tuple[str, str]]:
    """Let a run in one process see the first of several GPUs alone, before CUDA starts: libraries would split batches
    between all of them, in threads. Returns the line that says so.
    """
    import torch

    gpus = torch.cuda.device_count()
    if gpus < 2 or config.num_processes * config.num_machines > 1 or "RANK" in os.environ:
        return []
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    return [("GPUs", f"the first of {gpus} is used; for all of them: --num-processes {gpus}")]


def check_environment() -> None:
    """Raise `UserError` for what no launcher sets: no numbers, a process that is not there, only some variables."""
    names = environment.OF_SEVERAL
    found = {name: os.environ[name] for name in (*names, "LOCAL_WORLD_SIZE") if name in os.environ}
    told = f"the environment has {', '.join(f'{name}={value}' for name, value in found.items())}"
    advice = "Start several processes with --num-processes, or with torchrun; unset these variables for one process"
    several = found.get("WORLD_SIZE", "1") != "1" or "LOCAL_RANK" in found  # or these are left from something else
    numbers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", *["MASTER_PORT"] * several)
    for name in (name for name in numbers if name in found):
        if not (found[name].isascii() and found[name].isdecimal() and len(found[name]) < 10):
            raise UserError(f"{told}: {name} is no number. {advice}")
    rank, size = int(found.get("RANK", 0)), int(found.get("WORLD_SIZE", 1))
    if rank >= size or found.get("LOCAL_WORLD_SIZE") == "0":
        raise UserError(f"{told}: that is process {rank} of {size}, counted from 0. {advice}")
    missing = [name for name in names if not found.get(name)]
    if several and missing:
        raise UserError(f"{told}, without {', '.join(missing)}. {advice}")


def check(config: RunConfig, trainer: Any) -> None:
    """Raise `UserError` if the run got fewer processes, or another kind of distribution, than it asked for."""
    wanted, got = config.num_processes * config.num_machines, trainer.args.world_size
    if got < wanted:
        raise UserError(f"the run asked for {wanted} processes and got {got}: stopping instead of training with fewer")
    if trainer.args.n_gpu > 1:
        raise UserError("CUDA was started before the run, with several GPUs: write CUDA_VISIBLE_DEVICES=0 before it")
    kind = trainer.accelerator.distributed_type.name
    expected = {"ddp": ("MULTI",), "fsdp": ("FSDP",), "zero2": ("DEEPSPEED",), "zero3": ("DEEPSPEED",)}
    if max(wanted, got) > 1 and not kind.startswith(expected[config.distributed]):
        raise UserError(f"the run asked for {config.distributed} and got {kind}: stopping instead of training with it")


def arguments_for(distributed: str) -> dict[str, Any]:
    """Fields of transformers' training arguments that ask for a kind of distribution."""
    if distributed == "fsdp":
        return {"fsdp": "full_shard auto_wrap", "fsdp_config": {"version": 2, "use_orig_params": True}}
    if distributed in ("zero2", "zero3"):
        zero = {"stage": int(distributed[-1]), "overlap_comm": True, "contiguous_gradients": True}
        if distributed == "zero3":
            zero["stage3_gather_16bit_weights_on_model_save"] = True  # else no model that loads is saved
        auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
        kinds = {name: {"enabled": "auto"} for name in ("bf16", "fp16")}
        return {"deepspeed": {"zero_optimization": zero, **kinds, **dict.fromkeys(auto, "auto")}}
    return {}


def ask_for_smaller(folder: Path, options: TrainingOptions) -> bool:
    """Ask for half the micro-batch and twice the accumulation, or one row where it is odd.

    False for one row, and where another launcher started this process: it would not start it again.
    """
    rows, steps = options.per_device_train_batch_size, options.gradient_accumulation_steps
    if rows == 1 or ("RANK" in os.environ and LAUNCHER not in os.environ):
        return False
    parts = 2 if rows % 2 == 0 else rows
    settings = dict(zip(BATCH, (rows // parts, steps * parts), strict=True))
    write_whole(folder / SMALLER, json.dumps(settings))
    return True


def start_again(config: RunConfig) -> NoReturn:
    """Replace this process, which frees its memory, by one that resumes the run with the settings that it asked for."""
    file = Path(str(config.output_dir)) / SMALLER
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    changed = ", ".join(f"{name} {value}" for name, value in settings.items())
    print(f"\nThe device ran out of memory. Starting again from the last checkpoint with {changed}.", flush=True)
    settings["machine_rank"] = config.machine_rank
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    flags += [f"--allow-changed={name}" for name in BATCH]
    command = [sys.executable, "-m", "rlhf_core", "run", "--resume", str(config.output_dir), *flags]
    os.execv(sys.executable, command)


def end_process(code: int) -> None:
    """End one of several processes after its `atexit` functions, without Python's own clean-up; otherwise do nothing.

    A gloo thread that frees its last tensor while Python ends sometimes aborts the process, and the launcher takes that
    for a failure (pytorch/pytorch#179291). Leaving the group is not enough: DDP keeps it.
    """
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return
    if code in (0, INTERRUPTED):  # as in all other processes
        distributed.destroy_process_group()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
