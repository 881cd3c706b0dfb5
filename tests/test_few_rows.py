"""Linear layers on few rows give what they always give, and are left as they were."""

import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers import AutoModelForCausalLM

from rlhf_core.prefix import attention, few_rows
from rlhf_core.prefix.few_rows import on_few_rows

another_order = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN, whose order this is about"
)


class Model(nn.Sequential):
    device = torch.device("cpu")

    def __init__(self, hidden=1024):
        super().__init__(nn.Linear(hidden, 576), nn.Linear(576, 64, bias=False), nn.Linear(64, 65))

    @property
    def base_model(self):
        return self


def test_torch_has_the_operations():
    """Where it has oneDNN; if torch moves them, this says so."""
    if torch.backends.mkldnn.is_available():
        weight = torch.ops.mkldnn._reorder_linear_weight(torch.ones(512, 513), 8)
        result = torch.ops.mkldnn._linear_pointwise(torch.ones(2, 513), weight, None, "none", [], "")
        assert torch.equal(result, torch.full((2, 512), 513.0))


@pytest.mark.parametrize("rows", [(1,), (3,), (8, 1), (65, 1), (2, 3)])
@torch.no_grad()
def test_the_same_values(rows):
    torch.manual_seed(0)
    model, states = Model(), torch.randn(*rows, 1024)
    expected = model(states)
    with on_few_rows(model) as computed:
        assert list(computed) == list(model)
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
    assert within == [True, False, True]
    assert not any("forward" in vars(layer) for layer in model)


@torch.no_grad()
def test_another_precision_than_the_weights_goes_the_usual_way():
    model, states = Model(), torch.randn(3, 1024)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(states)
        with on_few_rows(model):
            assert torch.equal(model(states), expected)
    assert expected.dtype == torch.bfloat16


def test_a_forward_of_another_library_stays():
    model = Model()
    model[0].forward = theirs = lambda states: states
    with on_few_rows(model) as computed:
        assert model[0] not in computed
        assert model[0].forward is theirs
    assert model[0].forward is theirs


@pytest.mark.parametrize(("hidden", "threads"), [(128, 1), (1024, 2)])
def test_matrices_too_small_to_share_out_take_one_thread(hidden, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with on_few_rows(Model(hidden)):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@another_order
@torch.no_grad()
def test_weights_stand_in_one_order_at_a_time():
    model, states = Model(), torch.randn(3, 1024)
    before = [layer.weight.clone() for layer in model]
    memory = [layer.weight.untyped_storage() for layer in model]
    expected = model(states)

    def breaks():
        with on_few_rows(model):
            assert [storage.nbytes() for storage in memory] == [0, 0, 0]
            torch.testing.assert_close(model(states), expected, rtol=1e-5, atol=1e-6)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        breaks()
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(model, before, strict=True))
    assert torch.equal(model(states), expected)


@another_order
@torch.no_grad()
def test_weights_that_something_else_uses_stay_where_they_are():
    model, states = Model(), torch.randn(3, 1024)
    model.append(nn.Embedding(576, 1024))  # whose table is the first layer's weight
    model[3].weight = model[0].weight
    model[1].weight.data = torch.randn(2, 64, 576)[1]  # half of what its storage holds
    expected = [model[i](states[:, : model[i].in_features]) for i in range(3)]
    with on_few_rows(model):
        assert torch.equal(model[3](torch.tensor([5]))[0], model[0].weight[5])
        assert [model[i].weight.untyped_storage().nbytes() > 0 for i in range(3)] == [True, True, False]
        found = [model[i](states[:, : model[i].in_features]) for i in range(3)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@another_order
@torch.no_grad()
def test_weights_that_would_not_come_back_whole_stay(monkeypatch):
    monkeypatch.setattr(few_rows, "_seen", {})
    monkeypatch.setattr(torch, "equal", lambda packed, weight: packed.shape != (64, 576))
    model = Model()
    with on_few_rows(model):
        assert [layer.weight.untyped_storage().nbytes() > 0 for layer in model] == [False, True, False]


BYTES = 4 * (1024 * 576 + 576 * 64 + 64 * 65)


@pytest.mark.parametrize(("free", "copied"), [(4 * BYTES, True), (4 * BYTES - 1, False)])
@torch.no_grad()
def test_weights_are_copied_into_a_quarter_of_the_free_memory(free, copied, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": free}))
    monkeypatch.setattr(few_rows, "_packed_linear", lambda weight, bias, states: "from the copy")
    monkeypatch.setattr(few_rows, "_is_whole", lambda weight: False)
    model, states = Model(), torch.randn(3, 1024)
    with on_few_rows(model):
        found = model[0](states)
    assert found == "from the copy" if copied else torch.equal(found, model[0](states))


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


@pytest.fixture
def adapted(tiny_model):
    """A model with an adapter that does something, on every linear layer and on the head."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    targets = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False)).eval()


def linears(model):
    return [module for module in model.modules() if type(module) is LoraLinear]


@pytest.mark.parametrize("small", [few_rows.SMALL, 0])
@torch.no_grad()
def test_an_adapter_is_part_of_the_copy(adapted, small, monkeypatch):
    monkeypatch.setattr(few_rows, "SMALL", small)
    ids = torch.arange(300, 312)[None]
    before = {name: (weight, weight.clone()) for name, weight in adapted.named_parameters()}
    expected = adapted(ids).logits
    with on_few_rows(adapted.get_base_model()) as computed:
        assert set(linears(adapted)) == set(computed)
        found = adapted(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for name, weight in adapted.named_parameters():
        there, values = before[name]
        assert weight is there
        assert torch.equal(weight, values)
    assert torch.equal(adapted(ids).logits, expected)


@torch.no_grad()
def test_what_is_not_an_adapters_alone_goes_the_usual_way(adapted):
    layer, states = linears(adapted)[0], torch.randn(3, linears(adapted)[0].in_features)
    expected = layer(states, adapter_names=["__base__"] * 3)
    with on_few_rows(adapted.get_base_model()):
        assert torch.equal(layer(states, adapter_names=["__base__"] * 3), expected)


@pytest.mark.parametrize("why", ["switched off", "no room", "half precision"])
@torch.no_grad()
def test_adapters_that_stay_apart(adapted, why, monkeypatch):
    if why == "switched off":
        adapted.base_model.disable_adapter_layers()
    if why == "half precision":
        adapted.to(torch.bfloat16)
    if why == "no room":
        monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    expected = adapted(torch.arange(300, 312)[None]).logits
    with on_few_rows(adapted.get_base_model()) as computed:
        assert not set(linears(adapted)) & set(computed)
        found = adapted(torch.arange(300, 312)[None]).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
