"""A training pass never waits for the device: nothing is read there, and nothing is copied there by layers.

The device here is torch's meta device, which has no numbers: whatever reads some raises. What is copied from a tensor of
the host is counted. A run reads the device at these places, each once for a forward pass or less:

- GRPO: tokens and mask of a batch (`grouped`), the advantages of a batch of answers; PPO: what it recorded, when it logs;
  pairs (DPO, ORPO, reward models): sums of metrics, when they are logged. `watch.py`: the loss of a step, after it.
- TRL's GRPOTrainer: metrics and prompts of each batch, `.item()` of a dozen means; transformers' Trainer: the norm of the
  gradient and the loss, when it logs, and whether the loss is a number (`logging_nan_inf_filter`), on the device.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, MistralConfig, Qwen3Config, Qwen3NextConfig

from rlhf_core.prefix import (
    Group,
    completion_logps,
    head,
    kernels,
    layout,
    logits,
    on_device,
    share,
    sharing,
    two_phase,
)
from tests.prefix_models import SIZES

GROUPS = [
    Group(list(range(3, 33)), [[34] * 7, list(range(20, 39))]),
    Group([40, 41, 42], [[50, 51, 52]]),
]
COMPLETIONS = sum(len(group.completions) for group in GROUPS)


class Copies(TorchDispatchMode):
    """Tensors of the host that go to the device: within layers, and elsewhere. `inside`: how many layers run now."""

    def __init__(self):
        super().__init__()
        self.inside, self.count = 0, Counter()

    def watch(self, model):
        for layer in model.base_model.layers:
            layer.register_forward_pre_hook(lambda *_: setattr(self, "inside", self.inside + 1))
            layer.register_forward_hook(lambda *_: setattr(self, "inside", self.inside - 1))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        there = isinstance(results, torch.Tensor) and results.is_meta
        if there and any(isinstance(one, torch.Tensor) and one.dim() and not one.is_meta for one in args):
            assert (kwargs or {}).get("non_blocking"), f"{function} waits for a copy"
            self.count["layers" if self.inside else "elsewhere"] += 1
        return results


class Made(TorchFunctionMode):
    """Tensors made of Python's numbers on the device at once, which waits for the copy; no dispatch sees it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.tensor, torch.as_tensor) and (kwargs or {}).get("device") is not None:
            raise AssertionError(f"{function.__name__} on a device waits")
        return function(*args, **(kwargs or {}))


@pytest.fixture
def device(monkeypatch):
    """The meta device as a GPU. It knows no autocast."""
    monkeypatch.setattr(layout, "kernel_for", lambda *_: kernels.KERNELS["cuda"])
    monkeypatch.setattr(head, "_gpu_memory", lambda _: 24 * 2**30)
    monkeypatch.setattr(sharing, "checked", lambda *_: None)
    monkeypatch.setattr(logits, "measured", logits.usual)  # which the check asks for first
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    for module in (head, two_phase):
        monkeypatch.setattr(module, "precision", lambda _: ("cpu", torch.bfloat16, False))
    return torch.device("meta")


LAYERS = {"layer_types": ["linear_attention", "full_attention"], "num_experts": 0}
LINEAR = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 2}
MODELS = {
    "full": Qwen3Config(**SIZES),
    "windowed": MistralConfig(**SIZES, sliding_window=9),
    "linear": Qwen3NextConfig(**SIZES, **LAYERS, **LINEAR),
}
# A packed row, the starts for its kernels, and where results stand; a recurrent layer's rows. In two phases the first
# two for each prompt and completion, there and back.
EACH = len(GROUPS) + COMPLETIONS
ALLOWED = {
    ("full", True): 3,
    ("windowed", True): 3,
    ("linear", True): 4,
    ("windowed", False): 1 + 2 * 2 * EACH,
}


@pytest.mark.parametrize(("name", "fits"), ALLOWED)
def test_a_training_step_reads_nothing_and_layers_copy_nothing(monkeypatch, device, name, fits):
    monkeypatch.setattr(sharing, "fits", lambda *_: fits)
    model = AutoModelForCausalLM.from_config(MODELS[name], dtype=torch.bfloat16).to(device)
    assert share(model) is None
    with Copies() as copies, Made():
        copies.watch(model)
        scored = completion_logps(model, GROUPS, temperature=0.7, hidden=True)
        weights = scored.logps.detach()
        (scored.logps * weights * scored.mask + scored.hidden.sum()).sum().backward()
    assert copies.count == {"elsewhere": ALLOWED[name, fits]}
    assert all(weight.grad is not None for weight in model.parameters())


def test_numbers_come_from_memory_that_a_gpu_reads_by_itself(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: seen.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, non_blocking: seen.append((device.type, non_blocking)))
    on_device([1, 2, 3], torch.device("cuda"))
    on_device([1, 2, 3], torch.device("cpu"))
    assert seen == ["pinned", ("cuda", True), ("cpu", True)]
