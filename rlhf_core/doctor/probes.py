"""What `rlhf doctor` tries with torch, bitsandbytes, drivers and plugins, in a process of its own: any may crash.

`asking.py` starts it and writes a question a line, `["plugin", "rewards", "length"]`; the answer is a line, too: what
was found, and the error if nothing was. Nothing is judged here.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

from rlhf_core import environment
from rlhf_core.errors import UserError, describe

Facts = dict[str, Any]

# What is used of a library: importing it alone imports nothing of those that are lazy.
USED = {
    "torch": ("torch", ()),
    "transformers": ("transformers", ("AutoModelForCausalLM", "Trainer")),
    "trl": ("trl", ("GRPOTrainer", "SFTTrainer")),
    "peft": ("peft", ("LoraConfig", "get_peft_model")),
    "datasets": ("datasets", ("Dataset",)),
    "accelerate": ("accelerate", ("Accelerator",)),
    "tensorboard": ("torch.utils.tensorboard", ("SummaryWriter",)),
}


def library(name: str) -> Facts:
    """Import what is used of a library."""
    module, names = USED[name]
    found = importlib.import_module(module)
    for each in names:
        getattr(found, each)
    return {}


def torch() -> Facts:
    import torch

    return {"cuda": torch.version.cuda, "hip": torch.version.hip}


def devices() -> Facts:
    """The kind of device that training would use, each device of it, and what torch said about others."""
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        device = torch.accelerator.current_accelerator(check_available=True)
        if device is None and torch.version.cuda:
            torch.cuda.is_available()  # again, for its warning
    kind = device.type if device else "cpu"
    count = torch.accelerator.device_count() if device else 0
    each = [_cuda(i) if kind == "cuda" else {"name": kind} for i in range(count)]
    return {"kind": kind, "devices": each, "said": [str(warning.message) for warning in said]}


def _cuda(index: int) -> Facts:
    import torch

    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    with torch.cuda.device(index):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        emulated = torch.cuda.is_bf16_supported()
    return {
        "name": properties.name,
        "memory": total,
        "free": free,
        "capability": f"{properties.major}.{properties.minor}",
        "bfloat16": "native" if native else "emulated" if emulated else "none",
    }


def nvidia() -> Facts:
    """The GPUs and the driver that nvidia-smi knows, without torch. Empty without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        return {}
    if done.returncode:
        return {"failed": (done.stdout + done.stderr).strip() or f"exit code {done.returncode}"}
    rows = [line.rpartition(",") for line in done.stdout.splitlines() if "," in line]
    return {"names": [name.strip() for name, _, _ in rows], "driver": rows[0][2].strip() if rows else ""}


def _device() -> Any:
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def step() -> Facts:
    """A step of all of the built-in model's weights on the device, in bfloat16 where it has that, else in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    from rlhf_core.builtin import MODEL
    from rlhf_core.models.precision import gpu_has_bfloat16

    device, dtype = _device(), torch.bfloat16 if gpu_has_bfloat16() else torch.float32
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype, local_files_only=True, trust_remote_code=False).to(
        device
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.arange(2 * 64, device=device).reshape(2, 64)
    losses = []
    for _ in range(2):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    name = str(dtype).removeprefix("torch.")
    return {"device": device.type, "dtype": name, "losses": losses}


def attention() -> Facts:
    """Whether the device's flash kernel, as the engine for shared prompts calls it, agrees with plain arithmetic."""
    import torch

    from rlhf_core.models.precision import frozen_dtype
    from rlhf_core.prefix.kernels import KERNELS, disagreement

    device = _device()
    if device.type not in KERNELS:
        return {"device": device.type, "kernel": False, "problem": None}
    dtype = frozen_dtype()
    query, key = (torch.zeros(1, heads, 64, device=device, dtype=dtype) for heads in (4, 2))
    return {"device": device.type, "kernel": True, "problem": disagreement(KERNELS[device.type], query, key)}


def bitsandbytes(bits: str) -> Facts:
    """How far the product of 4-bit or 8-bit weights is from that of the same weights dequantized, as a share of it."""
    import bitsandbytes
    import torch
    from bitsandbytes import functional, nn

    from rlhf_core.models.precision import frozen_dtype

    device, dtype = _device(), frozen_dtype()
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(rows, 256, generator=generator).to(dtype) for rows in (128, 8))
    x = x.to(device)
    if bits == "4":
        layer = nn.Linear4bit(256, 128, bias=False, compute_dtype=dtype, quant_type="nf4")
        layer.weight = nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
        product = layer.to(device)(x)
        dequantized = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    else:
        layer = nn.Linear8bitLt(256, 128, bias=False, has_fp16_weights=False)
        layer.weight = nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        product = layer.to(device)(x)
        dequantized = functional.int8_vectorwise_dequant(layer.state.CB, layer.state.SCB)
    expected = x.double().cpu() @ dequantized.double().cpu().T
    apart = (product.double().cpu() - expected).norm() / expected.norm()
    return {"apart": apart.item(), "version": bitsandbytes.__version__}


def processes(backend: str) -> Facts:
    """A sum over a group of one process, which opens the network interface that several would use."""
    import torch
    from torch import distributed

    environment.be_alone()  # if a launcher started this
    available = {"gloo": distributed.is_gloo_available, "nccl": distributed.is_nccl_available}
    if not (distributed.is_available() and available[backend]()):
        return {"available": False}
    device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    numbers = torch.ones(2, device=device)
    distributed.all_reduce(numbers)
    correct = numbers.sum().item() == 2
    distributed.destroy_process_group()
    version = ".".join(map(str, torch.cuda.nccl.version())) if backend == "nccl" else ""
    return {"available": True, "correct": correct, "version": version}


def variables() -> Facts:
    """Raise `UserError` for a launcher's variables with which a run refuses to start."""
    from rlhf_core.training.launch import check_environment

    check_environment()
    return {}


def plugin(kind: str, name: str) -> Facts:
    """Load a plugin. What makes callbacks needs a run, so of these the module is imported alone."""
    from rlhf_core.catalog import Catalog

    if kind == "callbacks":
        importlib.import_module(Catalog().find(kind, name).module)
    else:
        Catalog().load(kind, name)
    return {}


PROBES: dict[str, Callable[..., Facts]] = {
    each.__name__: each
    for each in (library, torch, devices, nvidia, step, attention, bitsandbytes, processes, variables, plugin)
}


def main() -> None:
    """Answer the questions on standard input. What libraries and plugins print goes to standard error."""
    environment.end_with_starter()
    questions, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    environment.prepare()
    for line in questions:
        probe, *arguments = json.loads(line)
        answer: tuple[Facts, str | None]
        try:
            answer = PROBES[probe](*arguments), None
        except (Exception, SystemExit) as error:  # what is broken may raise anything
            answer = {}, str(error) if isinstance(error, UserError) else describe(error)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    sys.stderr.flush()
    os._exit(0)  # a thread of gloo may abort Python's own end


if __name__ == "__main__":
    main()
