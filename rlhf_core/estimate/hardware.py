"""Devices: what they hold, and how fast they compute.

Peak figures are those of the makers' data sheets: dense, without sparsity, of bfloat16 products that are added up in
float32 (float16 ones on Volta and Turing, which have no bfloat16). NVIDIA: the architecture whitepapers of Turing,
Ampere GA102, Ada and RTX Blackwell for GeForce; the data sheets of RTX A4000, A5000, A6000 and 6000 Ada, and of T4,
V100, A10, L4, L40S, A100, H100, H200 and B200; that of A10G is Amazon's.

Memory is what torch sees, in GiB: a few hundred MiB less than on the box, and up to 2 % more or less by the driver and
by ECC.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rlhf_core.errors import UserError, did_you_mean, excerpt

if TYPE_CHECKING:
    import torch

GB = 10**9
GIB = 2**30
UNITS = {"GB": GB, "GIB": GIB, "MB": 10**6, "MIB": 2**20, "G": GB, "M": 10**6, "": GB}


# Shares of the peak figures that runs reach, and seconds that Python needs for an operation: measured, see
# docs/benchmarks.md.
COMPUTED, MOVED, LAUNCH = 0.6, 0.8, 20e-6
FLOAT32 = 8  # times that float32 products take longer than those of half precision


@dataclass(frozen=True)
class Device:
    """`memory`: bytes; `flops`: of products in bfloat16 (in float16 where there is none) a second; `bandwidth`: bytes a
    second.
    """

    name: str
    memory: int
    flops: float = 0.0
    bandwidth: float = 0.0
    bfloat16: bool = True
    is_gpu: bool = True

    @property
    def frozen_dtype(self) -> torch.dtype:
        """The type that a run on it gives weights that are not trained."""
        import torch

        half = torch.bfloat16 if self.bfloat16 else torch.float16
        return half if self.is_gpu else torch.float32

    def seconds(self, flops: float, moved: float, half: bool) -> float:
        """Of one operation on the device."""
        return max(flops * (1 if half else FLOAT32) / (self.flops * COMPUTED), moved / (self.bandwidth * MOVED))


# (name, GB on the box, GiB that torch sees, TFLOP/s, GB/s)
_WITHOUT_BFLOAT16 = (
    ("RTX 2060", 6, 5.8, 25.8, 336),
    ("RTX 2080 Ti", 11, 10.7, 53.8, 616),
    ("T4", 16, 14.6, 65, 320),
    ("V100 16GB", 16, 15.7, 125, 900),
    ("V100 32GB", 32, 31.7, 125, 900),
    ("V100 PCIe 16GB", 16, 15.7, 112, 900),
    ("V100 PCIe 32GB", 32, 31.7, 112, 900),
)
_WITH_BFLOAT16 = (
    ("RTX 3060", 12, 11.7, 25.5, 360),
    ("RTX 3070", 8, 7.7, 40.6, 448),
    ("RTX 3080 10GB", 10, 9.7, 59.5, 760),
    ("RTX 3080 12GB", 12, 11.7, 61.3, 912),
    ("RTX 3090", 24, 23.6, 71.2, 936),
    ("RTX 4060", 8, 7.7, 30.2, 272),
    ("RTX 4060 Ti 8GB", 8, 7.7, 44.1, 288),
    ("RTX 4060 Ti 16GB", 16, 15.6, 44.1, 288),
    ("RTX 4070", 12, 11.6, 58.3, 504),
    ("RTX 4070 Super", 12, 11.6, 71.0, 504),
    ("RTX 4070 Ti", 12, 11.6, 80.2, 504),
    ("RTX 4070 Ti Super", 16, 15.6, 88.2, 672),
    ("RTX 4080", 16, 15.6, 97.5, 717),
    ("RTX 4080 Super", 16, 15.6, 104.4, 736),
    ("RTX 4090", 24, 23.6, 165.2, 1008),
    ("RTX 5070", 12, 11.5, 61.7, 672),
    ("RTX 5070 Ti", 16, 15.4, 87.9, 896),
    ("RTX 5080", 16, 15.4, 112.6, 960),
    ("RTX 5090", 32, 31.3, 209.5, 1792),
    ("RTX A4000", 16, 15.7, 76.7, 448),
    ("RTX A5000", 24, 23.6, 111.1, 768),
    ("RTX A6000", 48, 47.4, 154.8, 768),
    ("RTX 6000 Ada", 48, 47.4, 364.2, 960),
    ("A10", 24, 22.0, 125, 600),
    ("A10G", 24, 22.0, 70, 600),
    ("L4", 24, 22.0, 121, 300),
    ("L40S", 48, 44.4, 362, 864),
    ("A100 40GB", 40, 39.4, 312, 1555),
    ("A100 80GB", 80, 79.1, 312, 2039),
    ("A100 PCIe 40GB", 40, 39.4, 312, 1555),
    ("A100 PCIe 80GB", 80, 79.1, 312, 1935),
    ("H100", 80, 79.1, 989, 3350),
    ("H100 PCIe", 80, 79.1, 756, 2000),
    ("H200", 141, 139.7, 989, 4800),
    ("B200", 180, 178.3, 2250, 8000),
)
CARDS = {
    name: (size, Device(name, int(seen * GIB), teraflops * 1e12, gigabytes * GB, bfloat16))
    for bfloat16, rows in ((False, _WITHOUT_BFLOAT16), (True, _WITH_BFLOAT16))
    for name, size, seen, teraflops, gigabytes in rows
}


def find_card(name: str) -> Device:
    """The card that a user means: `rtx3090`, `3090`, `a100-80gb`, `h100`. Raises `UserError` if none is known, or if
    several are, which differ in memory.
    """
    found = _matching(name)
    if len(found) == 1:
        return found[0]
    typed = [_typed(card) for card in CARDS]
    if found:
        which = " or ".join(_typed(card.name) for card in found)
        raise UserError(f"--gpu {excerpt(name)}: there are several. Write {which}")
    model, _, pcie = _parts(name)
    of_model = [card for card in CARDS if _parts(card)[::2] == (model, pcie)]
    if of_model:
        raise UserError(f"--gpu {excerpt(name)}: there is {' and '.join(map(_typed, of_model))}")
    hint = did_you_mean(re.sub(r"[\s_]+", "-", name.strip().lower()), typed) or f" Known are {', '.join(typed)}."
    raise UserError(f"--gpu {excerpt(name)}: no such card is known.{hint} For another card give --memory, such as 24GB")


def device_of(gpu: str | None, memory: str | None) -> Device:
    """What `--gpu` and `--memory` say, else the device that is here. Raises `UserError`."""
    size = None if memory is None else size_of(memory)
    device = find_card(gpu) if gpu else here()
    if size is None:
        return device
    if gpu or device.is_gpu:
        return replace(device, memory=size)
    return replace(device, memory=size, is_gpu=True, bfloat16=True, name="a GPU")


def size_of(text: str) -> int:
    """Bytes of a size such as 12GB. Raises `UserError`."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text, re.I)
    unit = found[2].upper() if found else None
    if found is None or unit not in UNITS or not float(found[1]):
        raise UserError(f"--memory {text}: write a size, such as 12GB or 24GiB")
    return round(float(found[1]) * UNITS[unit])


def here() -> Device:
    """The device of a run on this machine: its first GPU, or its processors with all of their memory."""
    from rlhf_core import environment

    environment.prepare()
    import psutil
    import torch

    if not torch.cuda.is_available():
        return Device("the CPU", psutil.virtual_memory().available, bfloat16=False, is_gpu=False)
    name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
    return of(name, memory) or Device(name, memory, bfloat16=torch.cuda.is_bf16_supported(including_emulation=False))


def of(torch_name: str, memory: int = 0) -> Device | None:
    """The card that `torch.cuda.get_device_name` names, or None. `memory`: the bytes that torch sees, if known, which
    the device then has, and which tell apart cards of one name.
    """
    found = _matching(torch_name)
    if memory:
        found = [replace(card, memory=memory) for card in found if abs(card.memory - memory) < 0.1 * card.memory]
    return found[0] if len(found) == 1 else None


def _matching(name: str) -> list[Device]:
    model, size, pcie = _parts(name)
    return [
        card
        for known, (known_size, card) in CARDS.items()
        if _parts(known)[::2] == (model, pcie) and size in (None, known_size)
    ]


NOISE = re.compile(r"nvidia|geforce|tesla|rtx|generation|sxm\d?|hbm3e?")


def _parts(name: str) -> tuple[str, int | None, bool]:
    """The model, the GB and whether it is a PCIe card, as names of cards say it: ("a100", 80, False)."""
    model, size, pcie = "", None, False
    for word in re.split(r"[\s_/-]+", name.strip().lower()):
        if number := re.fullmatch(r"(\d+)g(?:i?b)?", word):
            size = int(number[1])
        elif word == "pcie":
            pcie = True
        elif not NOISE.fullmatch(word):
            model += word.removeprefix("rtx")
    return model, size, pcie


def _typed(name: str) -> str:
    return name.lower().replace("rtx ", "rtx").replace(" ", "-")
