"""The head on a GPU, by shapes alone: how often its weights are read, and how much of the logits lives at once. That its
numbers are right is in tests/test_prefix_adapters.py.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_core.estimate.meter import LOGITS, Meter
from rlhf_core.estimate.weightless import Weightless, storage_of, without_values
from rlhf_core.prefix import head
from rlhf_core.prefix.logits import LogitScaling

TOKENS, VOCABULARY, SIZE = 4096, 151_936, 4096  # of Qwen3-8B
GIB = 2**30


class Reads(TorchDispatchMode):
    """Bytes that products read of `weight`, and how often they do."""

    def __init__(self, weight):
        super().__init__()
        self.weight, self.bytes, self.times = weight, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            read = [one for one in args if storage_of(one)._cdata == storage_of(self.weight)._cdata]
            self.times += len(read)
            self.bytes += sum(one.numel() * one.element_size() for one in read)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(("gib", "rows", "cap"), [(7.7, 850, None), (11.7, 1024, 30.0), (79, 1024, None)])
def test_weights_are_read_a_few_times_and_logits_are_a_small_part_of_memory(monkeypatch, gib, rows, cap, frozen):
    monkeypatch.setattr(head, "_gpu_memory", lambda device: int(gib * GIB))
    layer = torch.nn.Linear(SIZE, VOCABULARY, bias=False, dtype=torch.bfloat16, device="meta").requires_grad_(
        not frozen
    )
    without_values(layer)
    states = Weightless(torch.empty(TOKENS, SIZE, dtype=torch.bfloat16, device="meta")).requires_grad_()
    tokens = torch.zeros(TOKENS, dtype=torch.long)
    with Meter(vocabulary=VOCABULARY) as meter, meter.during("head"), Reads(layer.weight) as reads:
        head.token_logps(layer, states, tokens, 0.7, LogitScaling(cap=cap))[0].sum().backward()
    chunks = -(-TOKENS // rows)
    assert reads.times == chunks * (2 if frozen else 3)
    assert reads.bytes == reads.times * 2 * VOCABULARY * SIZE < 20e9
    # One chunk in bfloat16, and of a block in float32 two of logits, log-probabilities, probabilities and a cap's slope.
    chunk = 2 * rows * VOCABULARY
    assert chunk < meter.phases["head"].parts[LOGITS] <= chunk + 2 * head.BLOCK_BYTES < gib * GIB / 15


def test_rows_by_device():
    """A GPU's memory bounds them; on a CPU a chunk of float32 has 32 MiB."""
    assert head.chunk_rows(262_144, torch.bfloat16, 24 * GIB) == 1024
    assert head.chunk_rows(262_144, torch.float32, 8 * GIB) == 256
    assert head.chunk_rows(VOCABULARY, torch.float32, None) == 55
    assert head.chunk_rows(10**9, torch.float32, None) == head.chunk_rows(10**9, torch.float32, GIB) == 16
