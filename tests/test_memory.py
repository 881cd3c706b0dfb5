"""Gradients in one place, and what glibc is told."""

import copy
import sys

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rlhf_core.training import memory


def test_gradients_are_the_same_and_in_one_place(monkeypatch):
    monkeypatch.setattr(memory, "SMALL", 0)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2, dtype=torch.bfloat16))
    settled = copy.deepcopy(plain)
    settled[0].bias.requires_grad_(False)
    memory.settle(settled, samples=False)
    for _ in range(2):
        rows = torch.randn(5, 3)
        for model in (plain, settled):
            model.zero_grad()
            model[2](model[:2](rows).bfloat16()).square().sum().backward()
        for name, weight in settled.named_parameters():
            if weight.requires_grad:
                assert torch.equal(weight.grad, plain.get_parameter(name).grad)
                assert weight.grad.any()
        assert settled[0].bias.grad is None
        assert one_place(settled[0].weight, settled[1].weight, settled[1].bias)
        assert one_place(settled[2].weight, settled[2].bias)
        assert settled[0].weight.grad.data_ptr() % 64 == 0  # as torch's own tensors


def one_place(*weights):
    return len({weight.grad.untyped_storage().data_ptr() for weight in weights}) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads what the process holds as Linux tells it")
def test_gradients_that_are_zero_take_no_memory(monkeypatch):
    monkeypatch.setattr(memory, "SMALL", 0)
    model = nn.Linear(4096, 8192, bias=False)  # 134 MB
    memory.settle(model, samples=False)
    before = psutil.Process().memory_info().rss
    model.weight.grad += 1
    held = psutil.Process().memory_info().rss
    model.zero_grad()
    assert held - before > 120e6
    assert held - psutil.Process().memory_info().rss > 120e6
    assert not model.weight.grad.any()


def test_weights_in_a_file_get_a_place_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "SMALL", 0)
    save_file({"weight": torch.ones(4, 3)}, tmp_path / "model.safetensors")
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False))
    model[0].weight.data = load_file(tmp_path / "model.safetensors")["weight"]
    model[1].weight = tied = model[0].weight
    assert not tied.untyped_storage().resizable()
    memory.settle(model, samples=False)
    assert model[0].weight is model[1].weight is tied
    assert tied.untyped_storage().resizable()
    assert torch.equal(tied, torch.ones(4, 3))


def test_a_small_model_is_left_alone():
    model = nn.Linear(3, 4)
    memory.settle(model, samples=False)
    assert model.weight.grad is None


@pytest.mark.parametrize(
    ("samples", "frozen", "threshold"),
    [(False, False, memory.LARGE), (True, False, memory.SMALLER), (False, True, memory.SMALLER)],
)
def test_which_tensors_go_back_to_the_system(samples, frozen, threshold, monkeypatch):
    """The threshold is glibc's own matter; here only which one is chosen."""
    monkeypatch.setattr(memory, "SMALL", 0)
    asked = []
    libc = type("Libc", (), {"mallopt": lambda self, *values: asked.append(values)})
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: libc())
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("glibc", "2.36"))
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(not frozen)
    memory.settle(model, samples=samples)
    assert asked == [(-3, threshold)]
