"""A CPU's memory for large tensors: from the system, page by page when it is written to, and back when it is freed.

What goes through glibc's heap instead leaves holes there that stay in memory and that few other tensors fit in.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

PRIVATE = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}


def fresh(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros, which take memory where they are written to."""
    room = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, **PRIVATE)
    return torch.frombuffer(room, dtype=dtype).view(*shape)


def give_back() -> None:
    """To the system what has been freed, which glibc would keep."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
