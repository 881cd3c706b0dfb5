"""Gradients in one place that stays."""

import torch
from torch import nn

from rlhf_core.training import memory


def test_gradients_are_the_same_and_stay_where_they_are(monkeypatch):
    monkeypatch.setattr(memory, "SMALL", 0)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    settled = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    settled.load_state_dict(plain.state_dict())
    settled[0].bias.requires_grad_(False)
    memory.settle(settled)
    places = [weight.grad.data_ptr() for weight in settled.parameters() if weight.requires_grad]
    for _ in range(2):
        rows = torch.randn(5, 3)
        for model in (plain, settled):
            model.zero_grad()
            model(rows).square().sum().backward()
        for name, weight in settled.named_parameters():
            if weight.requires_grad:
                assert torch.equal(weight.grad, plain.get_parameter(name).grad)
    assert settled[0].bias.grad is None
    assert [weight.grad.data_ptr() for weight in settled.parameters() if weight.requires_grad] == places
    assert len({weight.untyped_storage().data_ptr() for weight in (settled[0].weight.grad, settled[1].bias.grad)}) == 1


def test_a_small_model_is_left_alone():
    model = nn.Linear(3, 4)
    memory.settle(model)
    assert model.weight.grad is None


def test_where_most_weights_are_frozen_smaller_tensors_go_back_to_the_system(monkeypatch):
    """The threshold is glibc's own matter; here only which one is chosen."""
    monkeypatch.setattr(memory, "SMALL", 0)
    asked = []
    libc = type("Libc", (), {"mallopt": lambda self, *values: asked.append(values)})
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: libc())
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("glibc", "2.36"))
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    memory.settle(model)
    model[0].requires_grad_(False)
    memory.settle(model)
    assert asked == [(-3, memory.LARGE), (-3, memory.LARGE_BESIDE_AN_ADAPTER)]
