"""A CPU's memory in training, where the allocator by itself holds a third more than there is, and twice as much with an
adapter.

Gradients that are allocated during a backward pass, among activations that go, leave holes that are too small for the
next ones; and glibc, once it has freed a large tensor, takes the next from its heap, where it can't be given back.
"""

from __future__ import annotations

import ctypes
import platform
from functools import partial

import torch
from torch import nn

M_MMAP_THRESHOLD = -3  # of mallopt(3)
LARGE = 8 << 20  # bytes of a tensor that goes back to the system when it is freed
LARGE_BESIDE_AN_ADAPTER = 2 << 20  # where most weights are frozen, and such tensors are most of what there is
SMALL = 10_000_000  # weights of a model that needs little memory, and no time for clearing the pages of new tensors


def settle(model: nn.Module) -> None:
    """Give all gradients one place, which they keep, and large tensors a place of their own. For one CPU process."""
    total = sum(weight.numel() for weight in model.parameters())
    if total < SMALL:
        return
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for dtype in {weight.dtype for weight in weights}:
        chosen = [weight for weight in weights if weight.dtype == dtype]
        sizes = [weight.numel() for weight in chosen]
        block = torch.zeros(sum(sizes), dtype=dtype)
        for weight, part in zip(chosen, block.split(sizes), strict=True):
            weight.grad = part.view_as(weight)
    model.zero_grad = partial(model.zero_grad, set_to_none=False)  # type: ignore[method-assign]
    if platform.libc_ver()[0] == "glibc":
        mostly_frozen = 2 * sum(weight.numel() for weight in weights) < total
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BESIDE_AN_ADAPTER if mostly_frozen else LARGE)
