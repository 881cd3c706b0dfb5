"""A shared prompt changes nothing: values and gradients of the packed and the two-phase way, in every supported kind of
model, against the definition, which is one unpadded sequence at a time through transformers' own attention.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from rlhf_core.prefix import Group, completion_hidden, completion_logps, kernels, packed, share, shares, two_phase
from rlhf_core.prefix import sharing as engine
from tests.prefix_models import assert_same

WORDS = 67  # a prime, so that no size is confused with another
# A prompt of one token, a completion of one token, a group of one, a group of four.
GROUPS = [
    Group([5], [[8, 9], [10]]),
    Group([11, 12, 13, 14, 15, 16, 17], [[18, 19, 20, 21, 22]]),
    Group([23, 24, 25, 26], [[27, 28, 29], [30], [31, 32, 33, 34, 35, 36], [27, 28, 40]]),
]
ROWS = [(group.prompt, completion) for group in GROUPS for completion in group.completions]
SIZES = {"vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
FAMILIES = {
    "Qwen3": Qwen3Config(**SIZES, num_attention_heads=4, num_key_value_heads=2),
    "Llama": LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=4),
    "Qwen2.5, with biases": Qwen2Config(**SIZES, num_attention_heads=4, num_key_value_heads=4),
    "SmolLM2, with tied embeddings": LlamaConfig(
        **SIZES, num_attention_heads=8, num_key_value_heads=2, tie_word_embeddings=True
    ),
    "Mistral, whose window is longer": MistralConfig(
        **SIZES, num_attention_heads=4, num_key_value_heads=1, sliding_window=64
    ),
    "Mistral, whose window is the longest sequence": MistralConfig(
        **SIZES, num_attention_heads=4, num_key_value_heads=2, sliding_window=12
    ),
}
WAYS = {"packed": packed, "two phases": two_phase}


def random_model(config, dtype=torch.float64, kind=AutoModelForCausalLM):
    """Weights so large that attention and the distributions of tokens are far from uniform."""
    torch.manual_seed(0)
    model = kind.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.3 + (weight.dim() == 1))
    return model


def twins(config, **values):
    """(a model, the same model with shared prompts)."""
    plain = random_model(config, **values)
    sharing = copy.deepcopy(plain)
    assert share(sharing) is None
    return plain, sharing


@pytest.fixture
def way(request, monkeypatch):
    """The way that `completion_logps` goes, when a gradient is asked for."""
    calls = []
    for name, module in WAYS.items():

        def counted(*args, real=module.completion_logps, name=name, **rest):
            calls.append(name)
            return real(*args, **rest)

        monkeypatch.setattr(module, "completion_logps", counted)
    monkeypatch.setattr(engine, "fits", lambda model, groups: request.param == "packed")
    yield request.param
    assert calls[-1] == request.param


def every_way(function):
    return pytest.mark.parametrize("way", WAYS, indirect=True)(function)


def by_definition(model, prompt, completion, temperature=1.0):
    """(log-probabilities, entropies, last hidden states) of one completion."""
    ids = torch.tensor([[*prompt, *completion]])
    output = model(ids, output_hidden_states=True, use_cache=False)
    hidden = output.hidden_states[-1][0, len(prompt) - 1 :]
    distribution = (output.logits[0, len(prompt) - 1 : -1].double() / temperature).log_softmax(-1)
    entropies = -(distribution.exp() * distribution).sum(-1)
    return distribution[range(len(completion)), completion], entropies, hidden


def grad_output(*shape):
    """The gradient of a loss with respect to the outputs. The numbers are exact in float32 and float64 alike."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def gradients_by_definition(model, temperature, hidden):
    loss = 0
    for i, row in enumerate(ROWS):
        logps, _, states = by_definition(model, *row, temperature)
        loss = loss + (logps * grad_output(len(ROWS), 6)[i, : len(logps)]).sum()
        if hidden:
            loss = loss + (states * grad_output(len(ROWS), 7, 32)[i, : len(states)]).sum()
    return gradients(model, loss)


def gradients_by_sharing(model, temperature=1.0, hidden=False):
    scored = completion_logps(model, GROUPS, temperature=temperature, hidden=hidden)
    loss = (scored.logps * grad_output(len(ROWS), 6)).sum()
    if hidden:
        loss = loss + (scored.hidden * grad_output(len(ROWS), 7, 32)).sum()
    return gradients(model, loss)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@every_way
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_of_logps_entropies_and_states(way, family):
    temperature = 0.6
    plain, sharing = twins(FAMILIES[family])
    scored = completion_logps(sharing, GROUPS, temperature=temperature, hidden=True)
    assert scored.mask.sum(1).tolist() == [len(completion) for _, completion in ROWS]
    assert not scored.entropies.requires_grad
    for i, row in enumerate(ROWS):
        logps, entropies, states = by_definition(plain, *row, temperature)
        size = len(logps)
        torch.testing.assert_close(scored.logps[i, :size].double(), logps, atol=1e-5, rtol=1e-6)
        torch.testing.assert_close(scored.entropies[i, :size].double(), entropies, atol=1e-5, rtol=1e-6)
        torch.testing.assert_close(scored.hidden[i, : size + 1], states, atol=1e-5, rtol=1e-6)
        assert not scored.logps[i, size:].any()
        assert not scored.entropies[i, size:].any()
        assert not scored.hidden[i, size + 1 :].any()
    ours = gradients_by_sharing(sharing, temperature, hidden=True)
    assert_same(ours, gradients_by_definition(plain, temperature, hidden=True), 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_values_without_gradient_in_rows_of_few_groups(monkeypatch, family):
    monkeypatch.setattr(engine, "TOKEN_BUDGET", 13)
    plain, sharing = twins(FAMILIES[family])
    with torch.no_grad():
        scored = completion_logps(sharing, GROUPS, temperature=0.6)
        for i, row in enumerate(ROWS):
            expected = by_definition(plain, *row, 0.6)[0]
            torch.testing.assert_close(scored.logps[i, : len(expected)].double(), expected, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("kind", [AutoModelForCausalLM, AutoModel])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_of_states(family, kind):
    """Also of a model without a head, as reward models have."""
    plain, sharing = twins(FAMILIES[family], kind=kind)
    result = completion_hidden(sharing, GROUPS)
    weights = grad_output(len(ROWS), 7, 32)
    ours = gradients(sharing, (result.states * weights).sum())
    loss = 0
    for i, (prompt, completion) in enumerate(ROWS):
        output = plain(torch.tensor([[*prompt, *completion]]), output_hidden_states=True, use_cache=False)
        states = output.hidden_states[-1][0, len(prompt) - 1 :]
        torch.testing.assert_close(result.states[i, : len(states)], states, atol=1e-5, rtol=1e-6)
        assert not result.states[i, len(states) :].any()
        loss = loss + (states * weights[i, : len(states)]).sum()
    assert_same(ours, gradients(plain, loss), 1e-6)


@every_way
def test_each_prompt_goes_through_the_model_once(way):
    """Tokens that the embedding sees: all prompts and completions once in each pass, forward and replay."""
    _, sharing = twins(FAMILIES["Qwen3"])
    seen = []
    sharing.get_input_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
    assert shares(sharing, GROUPS)
    seen.clear()
    gradients_by_sharing(sharing)
    tokens = sum(len(group.prompt) + sum(map(len, group.completions)) for group in GROUPS)
    assert sum(seen) == tokens * (2 if way == "two phases" else 1)
    assert max(seen) == (tokens if way == "packed" else 7)


@every_way
def test_unused_weights_have_no_gradient(way):
    """None instead of zero, with which AdamW would decay them."""
    _, sharing = twins(FAMILIES["Qwen3"])
    sharing.unused = nn.Linear(2, 2, dtype=torch.float64)
    gradients_by_sharing(sharing)
    without = {name for name, weight in sharing.named_parameters() if weight.grad is None}
    assert without == {"unused.weight", "unused.bias"}


@every_way
def test_zero_gradients_have_no_effect(way):
    """A loss that depends on one completion only, as a clipped one does."""
    plain, sharing = twins(FAMILIES["Qwen3"])
    ours = gradients(sharing, completion_logps(sharing, GROUPS).logps[3].sum())
    assert_same(ours, gradients(plain, by_definition(plain, *ROWS[3])[0].sum()), 1e-6)


@every_way
def test_single_precision(way):
    plain, sharing = twins(FAMILIES["Qwen3"], dtype=torch.float32)
    exact = plain.double()
    scored = completion_logps(sharing, GROUPS)
    for i, row in enumerate(ROWS):
        expected = by_definition(exact, *row)[0]
        torch.testing.assert_close(scored.logps[i, : len(expected)].double(), expected, atol=5e-5, rtol=1e-5)
    assert_same(gradients_by_sharing(sharing), gradients_by_definition(exact, 1.0, hidden=False), 1e-4)


@every_way
def test_half_precision_is_as_exact_as_the_padded_pass(way):
    """Against the definition in float64, bfloat16 costs both ways alike."""
    plain, sharing = twins(FAMILIES["Llama"], dtype=torch.bfloat16)
    padded, exact = copy.deepcopy(plain), plain.double()
    expected = gradients_by_definition(exact, 1.0, hidden=False)

    def error(model):
        found = gradients_by_sharing(model)
        return {name: ((found[name] - expected[name]).norm() / expected[name].norm()).item() for name in expected}

    theirs = error(padded)
    ours = error(sharing)
    assert max(ours.values()) < 0.2
    assert sum(ours.values()) < 1.5 * sum(theirs.values())


@every_way
def test_gradient_checkpointing(way):
    plain, sharing = twins(FAMILIES["Qwen3"])
    sharing.gradient_checkpointing_enable({"use_reentrant": False})
    sharing.train()
    layers = []
    sharing.base_model.layers[0].input_layernorm.register_forward_hook(
        lambda *_: layers.append(torch.is_grad_enabled())
    )
    assert shares(sharing, GROUPS)
    layers.clear()
    kernels._checked.clear()  # that it is checked within a layer changes nothing about what the layer saves
    ours = gradients_by_sharing(sharing, hidden=True)
    once = 1 if way == "packed" else len(ROWS) + len(GROUPS)
    assert layers.count(True) > once  # some were computed again
    assert_same(ours, gradients_by_definition(plain, 1.0, hidden=True), 1e-6)


def with_biased_head(model):
    torch.manual_seed(3)
    head = nn.Linear(32, WORDS, dtype=torch.float64)
    nn.init.normal_(head.bias)
    model.set_output_embeddings(head)
    return model


@every_way
@pytest.mark.parametrize("trainable", [True, False])
def test_a_head_with_a_bias(way, trainable):
    plain, sharing = (with_biased_head(model) for model in twins(FAMILIES["Qwen3"]))
    for model in (plain, sharing):
        model.get_output_embeddings().requires_grad_(trainable)
    theirs = gradients_by_definition(plain, 0.6, hidden=False)
    assert ("lm_head.bias" in theirs) == trainable
    assert_same(gradients_by_sharing(sharing, 0.6), theirs, 1e-6)


def test_two_phases_replay_in_the_precision_of_their_forward_pass():
    """The backward pass runs after autocast has ended."""
    _, model = twins(FAMILIES["Llama"], dtype=torch.float32)
    results = []
    for module in WAYS.values():
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            scored = module.completion_logps(model, GROUPS)
        scored.logps.sum().backward()
        results.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    packed, phased = results
    assert (packed - phased).norm() < 0.03 * packed.norm()  # 0.045 in float32
