"""Linear layers on few rows give what they always give, and are left as they were."""

import pytest
import torch
from torch import nn

from rlhf_core.prefix import attention
from rlhf_core.prefix.few_rows import ROWS, on_few_rows


class Model(nn.Sequential):
    device = torch.device("cpu")

    def __init__(self, hidden=128):
        super().__init__(nn.Linear(hidden, 192), nn.Linear(192, 64, bias=False), nn.Linear(64, 65))

    @property
    def base_model(self):
        return self


@pytest.mark.parametrize("rows", [(1,), (3,), (8, 1), (ROWS, 1), (ROWS + 1, 1), (2, 3)])
@torch.no_grad()
def test_the_same_values(rows):
    torch.manual_seed(0)
    model, states = Model(), torch.randn(*rows, 128)
    expected = model(states)
    with on_few_rows(model):
        found = model(states)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert found.shape == expected.shape


def test_only_what_gains_is_changed_and_only_within():
    model = Model()
    model[1].to(torch.float64)
    within = []

    def breaks():
        with on_few_rows(model):
            within.extend("forward" in vars(layer) for layer in model)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        breaks()
    assert within == [True, False, False]
    assert not any("forward" in vars(layer) for layer in model)


def test_a_forward_of_another_library_stays():
    model = Model()
    model[0].forward = theirs = lambda states: states
    with on_few_rows(model):
        assert model[0].forward is theirs
    assert model[0].forward is theirs


@pytest.mark.parametrize(("hidden", "threads"), [(128, 1), (2048, 2)])
def test_matrices_too_small_to_share_out_take_one_thread(hidden, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with on_few_rows(Model(hidden)):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("sizes", [None, [5, 1, 9]])
def test_attention_of_new_tokens_is_the_same_with_and_without_the_kernel(sizes, monkeypatch):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 16), torch.randn(3, 2, 9, 16), torch.randn(3, 2, 9, 16)
    mask = None
    if sizes:
        mask = torch.where(torch.arange(9) < torch.tensor(sizes)[:, None], 0.0, -torch.inf)[:, None, None]
    fast = attention.attend(query, key, value, mask, 0.25)
    monkeypatch.setattr(attention, "kernel_for", lambda *tensors: attention.DENSE)
    for one, other in zip(fast, attention.attend(query, key, value, mask, 0.25), strict=True):
        torch.testing.assert_close(one, other)
