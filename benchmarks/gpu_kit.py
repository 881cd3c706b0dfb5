"""What the parts of `benchmarks/gpu.py` share: shapes, models of random weights, clocks, memory, and the printing of
findings.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

GB = 1e9


Shape = dict[str, int]


@dataclass(frozen=True)
class Scale:
    """Shapes of a real measurement, or of a rehearsal on a CPU. `checked`: tokens of answers that are compared;
    `rows`: answers that are sampled beside each other; `copied`: bytes by which memory is measured.
    """

    device: str
    dtype: torch.dtype
    small: Shape
    middle: Shape
    large: Shape
    prompt: int
    answer: int
    group: int
    rows: tuple[int, ...]
    matmul: int
    copied: int
    checked: int


# Of Qwen3: 0.6B, 4B, 8B.
REAL = Scale(
    device="cuda",
    dtype=torch.bfloat16,
    small={"hidden_size": 1024, "num_hidden_layers": 28, "intermediate_size": 3072, "num_attention_heads": 16},
    middle={"hidden_size": 2560, "num_hidden_layers": 36, "intermediate_size": 9728, "num_attention_heads": 32},
    large={"hidden_size": 4096, "num_hidden_layers": 36, "intermediate_size": 12288, "num_attention_heads": 32},
    **{"prompt": 1024, "answer": 512, "group": 8, "rows": (8, 64, 16, 256, 128)},
    **{"matmul": 8192, "copied": 2**31, "checked": 40},
)
TINY = {"hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 256, "num_attention_heads": 2}
REHEARSAL = Scale(
    device="cpu",
    dtype=torch.bfloat16,
    **{"small": TINY, "middle": TINY, "large": TINY},
    **{"prompt": 24, "answer": 16, "group": 2, "rows": (2, 4), "matmul": 256, "copied": 2**16, "checked": 10},
)


def qwen3(shape: dict[str, int], scale: Scale, *, tied: bool) -> Qwen3Config:
    real = scale is REAL
    return Qwen3Config(
        **shape,
        vocab_size=151_936 if real else 2048,
        num_key_value_heads=8 if real else 1,
        head_dim=128 if real else 64,
        max_position_embeddings=40_960,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    )


def built(config: Qwen3Config, dtype: torch.dtype, device: str) -> Any:
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def say(what: str, **found: Any) -> None:
    """One finding. `ok` false: a check that failed."""
    rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in found.items()}
    print(json.dumps({"what": what, **rounded}), flush=True)


@contextmanager
def attempt(what: str) -> Iterator[None]:
    """A failure is a finding, and the next measurement still runs."""
    try:
        yield
    except Exception as error:  # whatever it is, what comes after it is still worth measuring
        say(what, ok=False, error=f"{type(error).__name__}: {error}"[:500])


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(call: Callable[[], Any], times: int = 3) -> float:
    """The fastest of `times`, after one that does not count."""
    found = []
    for _ in range(times + 1):
        wait()
        started = time.perf_counter()
        call()
        wait()
        found.append(time.perf_counter() - started)
    return min(found[1:])


def busy(call: Callable[[], Any], times: int) -> dict[str, Any]:
    """How much of a call's time the device computes, and how many kernels it is given in each of `times` parts."""
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        return {}
    wait()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        started = time.perf_counter()
        call()
        wait()
        took = time.perf_counter() - started
    kernels = [one for one in found.events() if one.device_type == torch.autograd.DeviceType.CUDA]
    computed = sum(one.device_time_total for one in kernels) / 1e6
    return {"busy": computed / took, "kernels": round(len(kernels) / times)}


def peak_of(call: Callable[[], Any]) -> tuple[Any, float]:
    """(what `call` returns, GB allocated at its peak)."""
    if not torch.cuda.is_available():
        return call(), 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    torch.cuda.synchronize()
    return result, torch.cuda.max_memory_allocated() / GB


def token_ids(count: int, generator: torch.Generator, vocabulary: int = 2000) -> list[int]:
    return torch.randint(5, vocabulary, (count,), generator=generator).tolist()


def rates(scale: Scale) -> tuple[float, float]:
    """(TFLOP/s of a matrix product, GB/s of memory read and written by a copy), measured."""
    size = scale.matmul
    a, b = (torch.randn(size, size, device=scale.device, dtype=scale.dtype) for _ in range(2))
    flops = 2 * size**3 / seconds(lambda: a @ b, 10) / 1e12
    source = torch.empty(scale.copied, device=scale.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return flops, 2 * source.numel() / seconds(lambda: target.copy_(source), 10) / GB
