"""Several processes for one run: torch's own launcher starts them, and each checks that it got what was asked for.

    rlhf run --num-processes 2 …
    rlhf run --num-machines 2 --machine-rank 0 --main-address 10.0.0.1:29500 --num-processes 8 --distributed fsdp …

A process that runs out of memory leaves a note in the run's folder; the launcher, or the process itself where it is the
only one, then starts again from the last checkpoint with a smaller micro-batch and as much more accumulation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core.config import RunConfig
from rlhf_core.errors import UserError

if TYPE_CHECKING:
    from rlhf_core.method import TrainingOptions

OUT_OF_MEMORY = 75  # exit code of a run that wants to be started again with `smaller` settings
SMALLER = "smaller.json"


def needed(config: RunConfig) -> bool:
    """Whether other processes are to carry out this run: it asks for several, and this one is not one of them."""
    return config.num_processes * config.num_machines > 1 and "RANK" not in os.environ


def launch(config: RunConfig, arguments: list[str]) -> int:
    """Start the processes of this machine with the same command-line `arguments`; returns their exit code."""
    folder = Path(str(config.output_dir))
    code = _start(config, arguments)
    while code != 0 and (smaller := take_smaller(folder)):
        code = _start(config, retry_arguments(folder, smaller))
    return code


def _start(config: RunConfig, arguments: list[str]) -> int:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(config.num_processes)]
    if config.num_machines == 1:
        command += ["--standalone"]
    else:
        host, _, port = str(config.main_address).partition(":")
        command += ["--nnodes", str(config.num_machines), "--node-rank", str(config.machine_rank)]
        command += ["--master-addr", host, "--master-port", port or "29500"]
    threads = str(max(1, (os.cpu_count() or 1) // config.num_processes))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    process = subprocess.Popen([*command, "-m", "rlhf_core", "run", *arguments], env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the processes got it too: they save and end by themselves


def check(config: RunConfig, trainer: Any) -> None:
    """Raise `UserError` if the run got fewer processes, or another kind of distribution, than it asked for."""
    wanted, got = config.num_processes * config.num_machines, trainer.args.world_size
    if got < wanted:
        raise UserError(f"the run asked for {wanted} processes and got {got}: not going on with less")
    kind = trainer.accelerator.distributed_type.name
    expected = {"ddp": ("MULTI",), "fsdp": ("FSDP",), "zero2": ("DEEPSPEED",), "zero3": ("DEEPSPEED",)}
    if wanted > 1 and not kind.startswith(expected[config.distributed]):
        raise UserError(f"the run asked for {config.distributed} and got {kind}: not going on with something else")


def arguments_for(distributed: str) -> dict[str, Any]:
    """Fields of transformers' training arguments that ask for a kind of distribution."""
    if distributed == "fsdp":
        return {"fsdp": "full_shard auto_wrap", "fsdp_config": {"version": 2, "use_orig_params": True}}
    if distributed in ("zero2", "zero3"):
        zero = {"stage": int(distributed[-1]), "overlap_comm": True, "contiguous_gradients": True}
        auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
        return {"deepspeed": {"zero_optimization": zero, "bf16": {"enabled": "auto"}, **dict.fromkeys(auto, "auto")}}
    return {}


def smaller(options: TrainingOptions) -> dict[str, int] | None:
    """Half the micro-batch and twice the accumulation, so that a step has the same rows; None where it is one row."""
    rows, steps = options.per_device_train_batch_size, options.gradient_accumulation_steps
    if rows == 1:
        return None
    parts = 2 if rows % 2 == 0 else rows
    return {"per_device_train_batch_size": rows // parts, "gradient_accumulation_steps": steps * parts}


def leave_smaller(folder: Path, settings: dict[str, int]) -> None:
    (folder / SMALLER).write_text(json.dumps(settings), encoding="utf-8")


def take_smaller(folder: Path) -> dict[str, int] | None:
    """The settings that a process which ran out of memory left, once."""
    file = folder / SMALLER
    if not file.exists():
        return None
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    return settings


def retry_arguments(folder: Path, settings: dict[str, int]) -> list[str]:
    """The command line of `rlhf run` that goes on with `settings`."""
    flags = [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    return ["--resume", str(folder), *flags]
