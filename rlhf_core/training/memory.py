"""A CPU's memory in training, where the allocator by itself holds a third more than there is, and twice as much with an
adapter.

Gradients that are allocated during a backward pass, among activations that go, leave holes that are too small for the
next ones; and glibc, once it has freed a large tensor, takes the next from its heap, where it can't be given back.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Sequence
from functools import partial

from torch import nn

from rlhf_core.prefix.pages import fresh

M_MMAP_THRESHOLD = -3  # of mallopt(3)
LARGE = 8 << 20  # bytes of a tensor that goes back to the system when it is freed
SMALLER = 4 << 20  # where most of what there is comes and goes: beside an adapter, and where answers are sampled
SMALL = 10_000_000  # weights of a model that needs little memory, and no time for clearing the pages of new tensors


def settle(model: nn.Module, *, samples: bool) -> None:
    """Give all gradients one place, weights a place that can be freed for a while (`few_rows.py`), and large tensors a
    place of their own. For one CPU process. `samples`: whether answers are sampled between training passes.
    """
    total = sum(weight.numel() for weight in model.parameters())
    if total < SMALL:
        return
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in weights:
        if not weight.untyped_storage().resizable():  # a file's pages, which learning would make its own one by one
            weight.data = weight.data.clone()
    _new_gradients(weights)
    model.zero_grad = partial(_new_gradients, weights)  # type: ignore[method-assign]
    if platform.libc_ver()[0] == "glibc":
        mostly_frozen = 2 * sum(weight.numel() for weight in weights) < total
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, SMALLER if samples or mostly_frozen else LARGE)


def _new_gradients(weights: Sequence[nn.Parameter], set_to_none: bool = True) -> None:
    """Zero for all `weights`, in one place for each precision."""
    for dtype in {weight.dtype for weight in weights}:
        chosen = [weight for weight in weights if weight.dtype == dtype]
        sizes = [weight.numel() for weight in chosen]
        for weight, part in zip(chosen, fresh([sum(sizes)], dtype).split(sizes), strict=True):
            weight.grad = part.view_as(weight)
