"""Gradient checkpointing of our own gives the gradients of transformers', and leaves out what sampling has computed."""

import copy
import gc
import logging
import weakref
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import silu
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf_core.prefix import (
    Group,
    SampledStates,
    Sampling,
    checkpointing,
    completion_logps,
    decoding,
    head,
    rollout,
    sampled,
    share,
)
from rlhf_core.prefix import shared as shared_module

SIZES = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
FAMILIES = {
    "Qwen3": Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=False),
    "Qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "Llama": LlamaConfig(**SIZES),
    "Llama with biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "Llama with another activation": LlamaConfig(**SIZES, hidden_act="gelu"),
    "Mistral": MistralConfig(**SIZES, head_dim=8, sliding_window=None),
}
GROUPS = [Group([5], [[8, 9], [10]]), Group([11, 12, 13, 14, 15], [[18, 19, 20, 21, 22], [18], [18, 40, 41]])]
PROMPTS = [[25, 26, 27], [28], [29, 30, 31, 32, 33, 34, 35]]
SAMPLING = Sampling(20, eos_token_ids=range(6), seed=3, temperature=0.8)


def model_of(config, lora=False):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.15 + (weight.dim() == 1))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.generation_config.pad_token_id = 0
    assert share(model) is None
    if lora:
        model.enable_input_require_grads()
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    return model.train()


@pytest.fixture
def model():
    return model_of(FAMILIES["Qwen3"])


def gradients(model, groups, **options):
    """(log-probabilities, gradient of each weight that learns) of a loss that tells all tokens apart."""
    model.zero_grad()
    scored = completion_logps(model, groups, temperature=0.8, **options)
    weights = torch.linspace(0.5, 1.5, scored.logps.numel()).view_as(scored.logps)
    (scored.logps * weights).sum().backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    return scored.logps.detach(), found


def by_transformers(model, groups, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shared_module, "applies", lambda model: False)
        return gradients(model, groups)


def assert_same(found, expected, rounding=1e-5):
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-5, check_dtype=False)
    assert found[1].keys() == expected[1].keys()
    for name, slope in expected[1].items():
        assert (found[1][name] - slope).norm() <= rounding * slope.norm(), name
    assert any(slope.norm() > 0 for slope in expected[1].values())


@pytest.fixture
def computed(monkeypatch):
    """`with gradient` of each time a layer is computed: False forward, True in the backward pass."""
    passes = []
    real = checkpointing._Checkpoint.__call__

    def call(checkpoint, compute, states):
        return real(checkpoint, lambda states: passes.append(torch.is_grad_enabled()) or compute(states), states)

    monkeypatch.setattr(checkpointing._Checkpoint, "__call__", call)
    return passes


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "LoRA"])
def test_the_same_gradients(family, lora, computed, monkeypatch):
    """As in float64, up to what transformers' own are apart from that as well."""
    monkeypatch.setattr(checkpointing, "TOKENS", 3)
    model = model_of(FAMILIES[family], lora)
    wide = copy.deepcopy(model).double()
    assert_same(gradients(model, GROUPS), by_transformers(wide, GROUPS, monkeypatch), rounding=2e-5)
    assert computed == [False] * 3 + [True] * 3


def test_some_weights_frozen(computed, monkeypatch):
    model = model_of(FAMILIES["Qwen3"])
    for name, weight in model.named_parameters():
        weight.requires_grad_("up_proj" in name or "1.mlp.down_proj" in name or "q_norm" in name)
    model.enable_input_require_grads()
    assert_same(gradients(model, GROUPS), by_transformers(model, GROUPS, monkeypatch))


@pytest.mark.parametrize("which", [range(10), [2, 5, 9], []])
def test_the_slopes_of_an_mlp(which, monkeypatch):
    """Against autograd of the formula, in float64, with slopes from above at `which` of ten tokens."""
    monkeypatch.setattr(checkpointing, "TOKENS", 4)
    given = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in ((1, 10, 6), (7, 6), (7, 6), (6, 7))]
    states, gate, up, down = given
    slope = torch.zeros(1, 10, 6, dtype=torch.float64)
    slope[0, list(which)] = torch.randn(len(which), 6, dtype=torch.float64)
    expected = torch.autograd.grad((silu(states @ gate.t()) * (states @ up.t())) @ down.t(), given, slope)
    monkeypatch.setattr(torch, "empty_like", lambda like: torch.full_like(like, torch.nan))
    value = checkpointing._MLP.apply(*given)
    assert not value.any()
    found = torch.autograd.grad(value, given, slope)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("learns", [True, False])
def test_the_slopes_of_a_norm(learns):
    """Against the formula, in float64."""
    given = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in ((2, 5, 3, 6), (6,))]
    states, weight = given
    given = given if learns else [states]
    weight.requires_grad_(learns)
    right = states / (states.pow(2).mean(-1, keepdim=True) + 0.1).sqrt() * weight
    slope = torch.randn(right.shape, dtype=torch.float64)
    value = checkpointing._Norm.apply(states, weight, 0.1)
    torch.testing.assert_close(value, right, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(right, given, slope)
    torch.testing.assert_close(torch.autograd.grad(value, given, slope), expected, rtol=1e-12, atol=1e-12)


def hooked(module):
    module.register_forward_hook(lambda module, inputs, output: output * 0.9)


def replaced(module):
    module.forward = lambda states, original=module.forward: original(states) * 0.9


def of_another_library(module):
    class AnotherRMSNorm(type(module)):
        def forward(self, states):
            return super().forward(states) * 0.9

    module.__class__ = AnotherRMSNorm


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (hooked, "mlp"),
        (replaced, "mlp.up_proj"),
        (hooked, "input_layernorm"),
        (replaced, "self_attn.q_norm"),
        (of_another_library, "post_attention_layernorm"),
    ],
)
def test_what_others_have_changed_is_computed_as_it_is(change, name, model, monkeypatch):
    change(model.model.layers[1].get_submodule(name))
    assert_same(gradients(model, GROUPS), by_transformers(model, GROUPS, monkeypatch))


def without_checkpointing(model):
    model.gradient_checkpointing_disable()


def with_dropout(model):
    model.drop = nn.Dropout(0.1)


def in_another_precision(model):
    model.to(torch.bfloat16)


def of_another_family(model):
    model.config.model_type = "another"


@pytest.mark.parametrize("change", [without_checkpointing, with_dropout, in_another_precision, of_another_family])
def test_what_is_left_to_transformers(change, model, computed):
    assert checkpointing.applies(model)
    change(model)
    assert not checkpointing.applies(model)
    gradients(model, GROUPS)
    assert not computed


def test_transformers_checkpointing_is_put_back(model):
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    usual = [layer._gradient_checkpointing_func for layer in layers]
    gradients(model, GROUPS)
    assert [layer._gradient_checkpointing_func for layer in layers] == usual
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("known", [True, False])
def test_what_layers_gave_goes_with_the_loss(known, model, monkeypatch):
    """And not when Python looks for circles: until then they would be most of what a step holds."""
    kept, groups = sampled_groups(model) if known else (None, GROUPS)
    given = []
    real = checkpointing._Checkpoint.__call__

    def call(checkpoint, compute, states):
        output = real(checkpoint, compute, states)
        given.extend(weakref.ref(tensor) for tensor in (output, checkpoint.output) if tensor is not None)
        return output

    monkeypatch.setattr(checkpointing._Checkpoint, "__call__", call)
    gc.disable()
    try:
        gradients(model, groups, sampled=kept)
        assert len(given) == (6 if known else 3)
        assert all(reference() is None for reference in given)
    finally:
        gc.enable()


# What sampling has computed


def sampled_groups(model, n=4, **options):
    kept = SampledStates()
    rollouts = rollout(model, PROMPTS, n, SAMPLING, sampled=kept, **options)
    each = [rollouts[i : i + n] for i in range(0, len(rollouts), n)]
    return kept, [Group(rows[0].prompt, [row.completion for row in rows]) for rows in each]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "LoRA"])
def test_a_forward_pass_without_layers(family, lora, computed, monkeypatch):
    model = model_of(FAMILIES[family], lora)
    gradients(model, sampled_groups(model)[1], sampled=sampled_groups(model)[0])  # the first is compared
    computed.clear()
    kept, groups = sampled_groups(model)
    assert len({len(completion) for group in groups for completion in group.completions}) > 2
    found = gradients(model, groups, sampled=kept)
    assert computed == [True] * 3
    assert_same(found, by_transformers(model, groups, monkeypatch), rounding=1e-4)


def test_log_probabilities_that_sampling_has_computed(model, monkeypatch):
    gradients(model, sampled_groups(model)[1], sampled=sampled_groups(model)[0])  # the first is compared
    kept, groups = sampled_groups(model)
    expected, calls, real = completion_logps(model, groups, temperature=0.8), [], head.linear
    monkeypatch.setattr(head, "linear", lambda *given: calls.append(given) or real(*given))
    found = completion_logps(model, groups, temperature=0.8, sampled=kept)
    assert not calls
    torch.testing.assert_close(found.logps, expected.logps, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.entropies, expected.entropies, rtol=0, atol=1e-5)


@pytest.mark.parametrize("asked", [{"temperature": 1.0}, {"repetition_penalty": 1.2}])
def test_log_probabilities_that_sampling_has_not_computed(asked, model, monkeypatch):
    """At another temperature, or where those of sampling have a penalty in them."""
    kept = SampledStates()
    rollouts = rollout(model, PROMPTS[:1], 4, replace(SAMPLING, **asked), sampled=kept)
    groups = [Group(PROMPTS[0], [row.completion for row in rollouts])]
    assert_same(gradients(model, groups, sampled=kept), by_transformers(model, groups, monkeypatch))


def test_groups_one_after_another(model, computed, monkeypatch):
    """As in gradient accumulation; what was used is forgotten, and a second time it is computed."""
    gradients(model, sampled_groups(model)[1], sampled=sampled_groups(model)[0])
    kept, groups = sampled_groups(model)
    for group in groups:
        computed.clear()
        assert_same(gradients(model, [group], sampled=kept), by_transformers(model, [group], monkeypatch))
        assert computed == [True] * 3
    assert not kept.prompts
    assert not kept.completions
    computed.clear()
    assert_same(gradients(model, groups, sampled=kept), by_transformers(model, groups, monkeypatch))
    assert computed == [False] * 3 + [True] * 3


def test_completions_that_are_the_same(model, monkeypatch):
    kept, groups = sampled_groups(model)
    doubled = [Group(group.prompt, [*group.completions, group.completions[0]]) for group in groups] + groups[:1]
    assert_same(gradients(model, doubled, sampled=kept), by_transformers(model, doubled, monkeypatch))
    assert not kept.completions


def test_completions_of_one_token(model, monkeypatch):
    kept = SampledStates()
    rollouts = rollout(model, [[7, 8]], 3, Sampling(1, eos_token_ids=[0], seed=1), sampled=kept)
    groups = [Group([7, 8], [row.completion for row in rollouts])]
    assert_same(gradients(model, groups, sampled=kept), by_transformers(model, groups, monkeypatch))


def test_completions_that_were_not_sampled(model, computed, monkeypatch):
    kept, groups = sampled_groups(model)
    other = [*groups[:2], Group(groups[2].prompt, [*groups[2].completions, [50, 51]])]
    assert_same(gradients(model, other, sampled=kept), by_transformers(model, other, monkeypatch))
    assert computed == [False] * 3 + [True] * 3
    assert len(kept.prompts) == 3


def test_hidden_states_are_computed(model, computed):
    """Those of a completion's last token are not among what sampling computes."""
    kept, groups = sampled_groups(model)
    completion_logps(model, groups, hidden=True, sampled=kept)
    assert computed == [False] * 3


@pytest.mark.parametrize("change", [without_checkpointing, with_dropout, in_another_precision, of_another_family])
def test_nothing_is_kept_that_would_not_be_used(change, model):
    change(model)
    kept, _ = sampled_groups(model)
    assert not kept.prompts
    assert not kept.completions


def test_sampling_that_nobody_trains_on_keeps_no_states(model, monkeypatch):
    """They would be gigabytes beside the prompts of a large model."""
    monkeypatch.setattr(decoding, "outputs_of_layers", lambda model: pytest.fail("keeps what layers give"))
    assert len(rollout(model, PROMPTS, 2, SAMPLING)) == 6


def test_wrong_states_are_said_once_and_left(model, computed, monkeypatch, caplog):
    for times in (1, 2):
        kept, groups = sampled_groups(model)
        for states in kept.prompts.values():
            states[1] *= 1.1
        with caplog.at_level(logging.WARNING, logger="rlhf"):
            found = gradients(model, groups, sampled=kept)
        assert_same(found, by_transformers(model, groups, monkeypatch))
        assert caplog.text.count("training computes again what sampling has computed") == 1, times


def test_each_model_is_compared_once(model, monkeypatch):
    asked = []
    real = sampled.are_right
    monkeypatch.setattr(
        shared_module, "are_right", lambda *given: asked.append(given[0] in sampled._agreed) or real(*given)
    )
    for _ in range(2):
        kept, groups = sampled_groups(model)
        gradients(model, groups, sampled=kept)
    assert asked == [False, True]
