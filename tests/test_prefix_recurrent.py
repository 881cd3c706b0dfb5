"""Layers that carry a state from token to token share prompts exactly: values and gradients of the packed and of the
two-phase way against rows alone in float64, in every family whose layers are known.
"""

from __future__ import annotations

import copy
import importlib
import inspect

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING

from rlhf_core.estimate.meter import Meter
from rlhf_core.estimate.weightless import Weightless, without_values
from rlhf_core.prefix import (
    Group,
    Sampling,
    completion_hidden,
    completion_logps,
    decoding,
    recurrent,
    rollout,
    rollouts,
    share,
    shares,
)
from rlhf_core.prefix import sharing as engine
from tests.test_prefix_families import SMALL, by_definition, exact, family

# Prompts and completions of one token, shorter and longer than the convolution, and too unequal for one batch.
GROUPS = [
    Group([5], [[8, 9], [10]]),
    Group(list(range(11, 30)), [list(range(31, 46)), [46, 47, 48], list(range(49, 62))]),
]
ROWS = [(group.prompt, completion) for group in GROUPS for completion in group.completions]
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
QWEN = SMALL | DELTA | {"layer_types": ["linear_attention", "full_attention"]}
MAMBA = {"mamba_chunk_size": 8, "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1}
CONV = {"layer_types": ["conv", "full_attention"]}
FAMILIES = {
    "qwen3_next": QWEN | EXPERTS | {"shared_expert_intermediate_size": 24},
    "qwen3_5_text": QWEN,
    "qwen3_5_moe_text": QWEN | EXPERTS | {"shared_expert_intermediate_size": 24},
    "olmo_hybrid": QWEN | {"linear_num_key_heads": 4},
    "lfm2": SMALL | CONV,
    "lfm2_moe": SMALL | CONV | EXPERTS | {"num_dense_layers": 1},
    "lfm3": SMALL | CONV,
    "bamba": SMALL | MAMBA | {"attn_layer_indices": [1]},
    "falcon_h1": SMALL | MAMBA | {"mamba_d_ssm": 64, "lm_head_multiplier": 0.25},
    "granitemoehybrid": SMALL
    | MAMBA
    | {"num_local_experts": 2, "layer_types": ["linear_attention", "full_attention"], "logits_scaling": 4.0},
    "nemotron_h": SMALL
    | {"layers_block_type": ["mamba", "attention", "mlp"], "n_groups": 1, "mamba_num_heads": 4}
    | {"mamba_head_dim": 16, "ssm_state_size": 8, "chunk_size": 8},
}


def built(name):
    if name not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {name}")
    if name in ("lfm2", "lfm2_moe"):
        module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
        if 'seq_idx=kwargs.get("seq_idx")' in inspect.getsource(module):
            pytest.skip("this transformers gives the convolution nothing of what the model is called with")
    return family(CONFIG_MAPPING[name](**FAMILIES[name]))


def gradients(model):
    return {name: weight.grad.double() for name, weight in model.named_parameters() if weight.grad is not None}


def weighted(logps, row):
    """A loss under which each token has a part of its own."""
    return (logps.double() * torch.linspace(0.5, 1.5, len(logps)).double()).sum() * (1 + row / 10)


def expected_of(plain):
    """(log-probabilities, gradients) of rows alone."""
    logps = [by_definition(plain, *row) for row in ROWS]
    sum(weighted(one, i) for i, one in enumerate(logps)).backward()
    return logps, gradients(plain)


def assert_same(model, logps, theirs, tolerance=1e-4):
    scored = completion_logps(model, GROUPS, hidden=True)
    found = [row[: len(other)] for row, other in zip(scored.logps, logps, strict=True)]
    for one, other in zip(found, logps, strict=True):
        torch.testing.assert_close(one.double(), other, atol=2e-5, rtol=1e-5)
    sum(weighted(one, i) for i, one in enumerate(found)).backward()
    ours, largest = gradients(model), max(gradient.norm() for gradient in theirs.values())
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() < tolerance * max(gradient.norm(), 1e-2 * largest), name
    return scored.hidden


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["falcon_h1", "nemotron_h"])
def test_what_mamba_2_keeps_for_its_backward_pass_is_about_what_is_estimated(name, dtype):
    """Without its kernel, by bytes that live after a layer."""
    model = built(name).to("meta", dtype)
    without_values(model)
    layer, tokens = recurrent.layers(model)[0], 256
    with Meter() as meter:
        states = Weightless(torch.empty(1, tokens, 32, dtype=dtype, device="meta")).requires_grad_()
        before = meter.total
        output = type(layer).forward(layer, states)
        kept = meter.total - before
    assert output.shape == states.shape
    assert kept == pytest.approx(tokens * dtype.itemsize * recurrent.numbers_for_backward(model), rel=0.2)
    assert engine._bytes_for_backward(model) > kept / tokens


# A state of each kind in both ways; the ways are the same for all.
CASES = [(name, "packed") for name in FAMILIES] + [
    (name, "two phases") for name in ("qwen3_5_text", "lfm2", "falcon_h1")
]


@pytest.mark.parametrize(("name", "way"), CASES)
def test_log_probabilities_states_and_gradients_are_those_of_rows_alone(name, way, monkeypatch):
    monkeypatch.setattr(engine, "fits", lambda *_: way == "packed")
    model = built(name)
    expected = expected_of(exact(model))
    assert share(model) is None
    assert shares(model, GROUPS)
    hidden = assert_same(model, *expected)
    with torch.no_grad():
        torch.testing.assert_close(completion_hidden(model, GROUPS).states, hidden, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("way", ["packed", "two phases"])
def test_adapters_under_gradient_checkpointing(way, monkeypatch):
    monkeypatch.setattr(engine, "fits", lambda *_: way == "packed")
    adapted = get_peft_model(built("qwen3_5_text"), LoraConfig(target_modules="all-linear", init_lora_weights=False))
    expected = expected_of(exact(adapted))
    assert share(adapted) is None
    assert shares(adapted, GROUPS)
    adapted.train()
    adapted.gradient_checkpointing_enable({"use_reentrant": False})
    adapted.enable_input_require_grads()
    assert_same(adapted, *expected)


def test_a_copy_of_a_model_that_shares_is_independent_of_it():
    model = built("qwen3_5_text")
    share(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    share(built("qwen3_5_text"))
    expected, _ = expected_of(exact(built("qwen3_5_text")))
    found = completion_logps(copied, GROUPS).logps
    for row, other in zip(found, expected, strict=True):
        torch.testing.assert_close(row[: len(other)].double(), other, atol=2e-5, rtol=1e-5)


def test_a_state_that_is_lost_is_noticed(monkeypatch):
    """Completions that begin with no state, and a layer that is not given the groups."""
    monkeypatch.setattr(recurrent, "_before", lambda batch, after: None)
    model = built("lfm2")
    assert share(model) is None
    assert not shares(model, GROUPS)
    monkeypatch.undo()
    model = built("lfm2")
    share(model)
    del recurrent.layers(model)[0].forward
    assert not shares(model, GROUPS)


def test_layers_of_the_same_kind_that_are_not_known_are_refused(monkeypatch):
    monkeypatch.setattr(recurrent, "LAYERS", {})
    assert (
        share(built("qwen3_5_text")) == "the model has layers that are not attention over all tokens (linear_attention)"
    )


@pytest.mark.parametrize("name", ["qwen3_5_text", "lfm2", "falcon_h1"])
def test_sampling_goes_on_from_the_states_of_prompts(name, monkeypatch):
    """Rows of prompts of unequal lengths, some of which come in when others have ended."""
    monkeypatch.setattr(decoding, "MAX_ROWS", 3)
    monkeypatch.delattr(rollouts, "_generate")  # nothing else samples
    model = built(name)
    plain = exact(model)
    share(model)
    sampled = rollout(model, [group.prompt for group in GROUPS] + [[70, 71, 72]], 2, Sampling(20, [2, 5, 8], seed=3))
    assert len({len(one.completion) for one in sampled}) > 1
    for one in sampled:
        logps = by_definition(plain, one.prompt, one.completion)
        torch.testing.assert_close(torch.tensor(one.logps).double(), logps, atol=1e-4, rtol=1e-5)


def recurrence(key, value, decay, beta, state):
    """The state that the gated delta rule leaves, token by token (Yang et al., 2024: https://arxiv.org/abs/2412.06464)."""
    for t in range(key.shape[1]):
        state = state * decay[:, t].exp()[..., None, None]
        seen = (state * key[:, t, ..., None]).sum(-2)
        state = state + key[:, t, ..., None] * ((value[:, t] - seen) * beta[:, t, :, None])[..., None, :]
    return state


def test_the_gradient_of_transformers_gated_delta_rule_by_its_initial_state():
    """It is what flows back into the prompt. In float64 by the recurrence itself."""
    rule = importlib.import_module("transformers.models.qwen3_5.modeling_qwen3_5").torch_chunk_gated_delta_rule
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 70, 3, 8) for _ in range(3))
    key = key / key.norm(dim=-1, keepdim=True)
    decay, beta, state = -torch.rand(2, 70, 3) / 10, torch.rand(2, 70, 3), torch.randn(2, 3, 8, 8)
    inputs = [tensor.clone().requires_grad_() for tensor in (key, value, decay, beta, state)]
    found = rule(query, *inputs[:4], initial_state=inputs[4], output_final_state=True)[1]
    exactly = [tensor.double().requires_grad_() for tensor in (key, value, decay, beta, state)]
    expected = recurrence(*exactly)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)
    factor = torch.randn(found.shape)
    (found * factor).sum().backward()
    (expected * factor.double()).sum().backward()
    for one, other in zip(inputs, exactly, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_layers_speak_the_interface_that_is_relied_on(name):
    """A class that transformers renames, or whose cache it asks for something else, is found here."""
    known = {type(layer).__name__: layer for layer in recurrent.layers(built(name))}
    assert known
    for layer in known.values():
        asked = set(inspect.signature(type(layer).forward).parameters)
        assert {"hidden_states", recurrent.LAYERS[type(layer).__name__], "attention_mask"} <= asked
        assert isinstance(layer.layer_idx, int)
