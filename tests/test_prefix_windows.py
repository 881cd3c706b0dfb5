"""Layers with a sliding window, shorter than a prompt with its completion: values and gradients of the packed and the
two-phase way against one unpadded sequence at a time, through transformers' own attention and masks.
"""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from transformers import (
    AfmoeConfig,
    Cohere2Config,
    CwmConfig,
    Exaone4Config,
    Gemma2Config,
    Gemma3TextConfig,
    Llama4TextConfig,
    MinistralConfig,
    MistralConfig,
    MixtralConfig,
    Olmo3Config,
    Phi3Config,
    PhimoeConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    Starcoder2Config,
)

from rlhf_core.prefix import Group, Sampling, completion_logps, decoding, rollout, share, shares, sharing
from rlhf_core.prefix.self_check import windows_disagree
from tests.prefix_models import SIZES, assert_same, random_model

# Windows end in a prompt, at its start, and in a completion.
GROUPS = [
    Group(list(range(3, 14)), [[20], [21, 22, 23, 24], list(range(25, 36))]),
    Group([50, 51], [list(range(52, 60)), [61]]),
    Group([62, 63, 64, 65, 66], [[3, 4, 5]]),
]
ROWS = [(group.prompt, completion) for group in GROUPS for completion in group.completions]
SMALL = SIZES | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
EVERY_OTHER = {"layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2}
QWEN = {"use_sliding_window": True, "max_window_layers": 1}
FAMILIES = {
    "afmoe": AfmoeConfig(**SMALL, **EVERY_OTHER, sliding_window=5, num_experts=2, num_dense_layers=2),
    "cohere2": Cohere2Config(**SMALL, **EVERY_OTHER, sliding_window=5),
    "cwm": CwmConfig(**SMALL, **EVERY_OTHER, sliding_window=5),
    "exaone4": Exaone4Config(**SMALL, **EVERY_OTHER, sliding_window=5),
    "gemma3_text": Gemma3TextConfig(**SMALL, **EVERY_OTHER, sliding_window=5),
    "ministral": MinistralConfig(**SMALL, **EVERY_OTHER, sliding_window=5),
    "mistral": MistralConfig(**SMALL, sliding_window=5),
    "mistral, two tokens": MistralConfig(**SMALL, sliding_window=2),
    "mixtral": MixtralConfig(**SMALL, **EXPERTS, sliding_window=9),
    "olmo3": Olmo3Config(**SMALL, **EVERY_OTHER, sliding_window=5),
    "phi3": Phi3Config(**SMALL, sliding_window=12),
    "qwen2": Qwen2Config(**SMALL, **QWEN, sliding_window=5),
    "qwen3": Qwen3Config(**SMALL, **QWEN, sliding_window=16),
    "smollm3": SmolLM3Config(**SMALL, **EVERY_OTHER, use_sliding_window=True, sliding_window=5),
    "starcoder2": Starcoder2Config(**SMALL, sliding_window=5),
}
REFUSED = {
    "phimoe": (PhimoeConfig(**SMALL, **EXPERTS, sliding_window=5), "no layer tells its attention that it has a window"),
    "gemma2": (Gemma2Config(**SMALL, sliding_window=5), "attn_logit_softcapping"),
    "llama4, in chunks": (Llama4TextConfig(**SMALL, attention_chunk_size=5, num_local_experts=2), "chunked_attention"),
}


def by_definition(model, prompt, completion):
    logits = model(torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1)[range(len(completion)), completion]


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_exact(model, plain):
    scored = completion_logps(model, GROUPS)
    expected = [by_definition(plain, *row) for row in ROWS]
    for ours, theirs in zip(scored.logps, expected, strict=True):
        torch.testing.assert_close(ours[: len(theirs)].double(), theirs, atol=1e-5, rtol=1e-6)
    weights = torch.sin(torch.arange(scored.logps.numel())).view_as(scored.logps)
    loss = sum((row * factors[: len(row)]).sum() for row, factors in zip(expected, weights, strict=True))
    return gradients(model, (scored.logps * weights).sum()), gradients(plain, loss)


def family(config):
    """(a model, the same)."""
    model = random_model(config)
    with contextlib.suppress(ValueError):
        model.set_experts_implementation("eager")  # the grouped kernel knows no float64
    return model, copy.deepcopy(model)


WAYS = [(name, True) for name in FAMILIES] + [(name, False) for name in ("mistral", "gemma3_text")]


@pytest.mark.parametrize(("name", "fits"), WAYS)
def test_values_and_gradients_in_rows_longer_than_the_window(said, monkeypatch, name, fits):
    monkeypatch.setattr(sharing, "fits", lambda *args: fits)
    model, plain = family(FAMILIES[name])
    assert share(model) is None
    assert shares(model, GROUPS)
    assert said() == []
    assert_same(*assert_exact(model, plain), 1e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_told_is_refused_with_the_reason(said, name):
    config, reason = REFUSED[name]
    model, plain = family(config)
    share(model)
    assert not shares(model, GROUPS)
    assert reason in said()[0]
    assert_exact(model, plain)


def test_rows_within_the_window_are_shared_where_longer_ones_are_not():
    model, _ = family(REFUSED["phimoe"][0])
    assert share(model) is None
    assert not shares(model, GROUPS)
    assert shares(model, [Group([5, 6, 7], [[8, 9]])])


@pytest.mark.parametrize("window", [5, 4096])
def test_a_layer_with_another_window_is_seen_whatever_its_size(window):
    model = random_model(Gemma3TextConfig(**SMALL, **EVERY_OTHER, sliding_window=window))
    share(model)
    layers = [layer.self_attn for layer in model.model.layers]
    assert windows_disagree(model, None) is None
    assert [model.config.sliding_window, *(layer.sliding_window for layer in layers)] == [window, window, None]
    layers[1].sliding_window = window
    assert "results differ" in windows_disagree(model, None)
    layers[0].sliding_window = None
    assert "results differ" in windows_disagree(model, None)


@pytest.mark.parametrize("name", ["mistral", "gemma3_text"])
def test_greedy_answers_longer_than_the_window(monkeypatch, name):
    model, plain = (one.float() for one in family(FAMILIES[name]))
    share(model)
    calls, real = [], decoding.rollout
    monkeypatch.setattr(decoding, "rollout", lambda *args: calls.append(args) or real(*args))
    for one in rollout(model, [group.prompt for group in GROUPS], 2, Sampling(12, [2], greedy=True)):
        logps = by_definition(plain, one.prompt, one.completion)
        torch.testing.assert_close(torch.tensor(one.logps).double(), logps, atol=1e-4, rtol=1e-5)
        ids = torch.tensor([[*one.prompt, *one.completion]])
        assert one.completion == plain(ids, use_cache=False).logits[0, len(one.prompt) - 1 : -1].argmax(-1).tolist()
    assert len(calls) == 1
