"""The branch for CUDA, by its kernels' stand-ins on a CPU (tests/flash.py): what they are given passes their checks, and
results in bfloat16 are as near to float64 as those of rows alone.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3Config

from rlhf_core.estimate import operations
from rlhf_core.prefix import Group, attention, kernels, packed, padded, share, shares, two_phase
from tests import flash
from tests.prefix_models import SIZES, random_model

GROUPS = [Group(list(range(3, 33)), [[34] * 7, [35], list(range(20, 39))]), Group([40, 41, 42], [[50, 51, 52]])]
LAYERS = SIZES["num_hidden_layers"]


def found(model, module):
    """(log-probabilities, all gradients) in float64."""
    model.zero_grad()
    scored = module.completion_logps(model, GROUPS)
    weights = torch.sin(torch.arange(scored.logps.numel())).view_as(scored.logps)
    (scored.logps * weights).sum().backward()
    gradients = torch.cat([weight.grad.flatten().double() for weight in model.parameters()])
    return (scored.logps * scored.mask).detach().double(), gradients


@pytest.mark.parametrize(("module", "passes"), [(packed, 1), (two_phase, None)])
def test_results_are_as_near_to_float64_as_those_of_rows_alone(said, module, passes):
    model = random_model(Qwen3Config(**SIZES), torch.bfloat16, spread=0.1)
    exact, alone = (
        found(random_model(Qwen3Config(**SIZES), torch.bfloat16, spread=0.1).double(), padded),
        found(model, padded),
    )
    with flash.emulated() as calls:
        share(model)
        assert shares(model, GROUPS)
        calls.clear()
        ours = found(model, module)
    if passes:  # for each layer: each to itself, and all completions to their prompts
        assert calls == {"forward": 2 * LAYERS, "backward": 2 * LAYERS}
    else:  # prompts, and two for each completion; forward passes twice
        assert calls == {"forward": 2 * (2 + 2 * 4) * LAYERS, "backward": (2 + 2 * 4) * LAYERS}
    assert said() == []
    for one, other, true in zip(ours, alone, exact, strict=True):
        assert (one - true).norm() < 1.3 * (other - true).norm()


class Operations(TorchDispatchMode):
    """Those that launch something, by their names, and the bytes of what they make."""

    def __init__(self):
        super().__init__()
        self.count, self.bytes = Counter(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        made = list(operations.tensors_in(results))
        if made and operations.kind(function) != operations.VIEW:
            self.count[function.overloadpacket.__name__] += 1
            self.bytes += sum(one.numel() * one.element_size() for one in made)
        return results


# Beside the kernel's two calls: the merge, and the gradients of prompts and completions added to their own.
PLAIN = (
    {"_flash_attention_forward": 2, "sub": 1, "sigmoid": 1, "_to_copy": 1, "lerp_": 1, "logaddexp": 1},
    {"_flash_attention_backward": 2, "zeros": 2, "new_empty": 2, "clone": 1, "add_": 3},
)
# Keys and values of completions are gathered, and outputs joined; gradients are written into one tensor for each.
WINDOWED = (
    {"_flash_attention_forward": 2, "cat": 4},
    {"_flash_attention_backward": 2, "zeros": 2, "new_empty": 2, "clone": 2, "cat": 4, "empty_like": 3, "copy_": 6}
    | {"stack": 4, "sum": 4, "add_": 4},
)


@pytest.mark.parametrize(("window", "expected"), [(None, PLAIN), (5, WINDOWED)])
def test_a_layer_copies_nothing_that_is_in_order(window, expected):
    """Queries, keys and values as projections leave them are views, and outputs are as the next projection takes them.
    What the kernels know of the row is on the device before the first layer.
    """
    row = packed.pack(GROUPS)
    tokens = row.input_ids.shape[1]
    given = [torch.randn(1, tokens, heads, 8, dtype=torch.bfloat16).transpose(1, 2) for heads in (4, 2, 2)]
    leaves = [one.requires_grad_() for one in given]
    above = torch.randn(1, tokens, 4, 8, dtype=torch.bfloat16)
    with flash.emulated():
        metadata = attention.PackedAttention(row.spans)
        for _ in range(2):  # the first time kernels are compared
            with Operations() as forward:
                output = metadata.attend(0, *leaves, 0.3, window).transpose(1, 2)
            assert output.is_contiguous()
            with Operations() as backward:
                torch.autograd.grad(output, leaves, above)
    assert (forward.count, backward.count) == expected


def test_kernels_refuse_what_they_can_not_compute(said):
    with flash.emulated():
        query = torch.zeros(1, 4, 12, dtype=torch.bfloat16)
        assert "multiple of 8" in kernels.disagreement(kernels.KERNELS["cuda"], query, query)
        assert "fp16 and bf16" in kernels.disagreement(kernels.KERNELS["cuda"], query.float(), query.float())
        assert kernels.disagreement(kernels.KERNELS["cuda"], query[..., :8], query[:, :2, :8]) is None
