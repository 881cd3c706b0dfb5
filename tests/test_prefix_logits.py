"""Models that scale or cap their logits share prompts: what they do is found, and every number is as without sharing."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import CONFIG_MAPPING, GraniteConfig, LlamaForCausalLM
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

from rlhf_core.estimate import stand_ins
from rlhf_core.estimate.hardware import Device
from rlhf_core.estimate.meter import Meter
from rlhf_core.estimate.weightless import without_values
from rlhf_core.prefix import Sampling, completion_logps, decoding, head, rollout, rollouts, share, shares, sharing
from rlhf_core.prefix.llama_step import LlamaStep
from rlhf_core.prefix.logits import LogitScaling, scaling_of, usual
from tests.prefix_models import SIZES, random_model
from tests.test_prefix_families import exact
from tests.test_prefix_recurrent import GROUPS, ROWS, assert_same, expected_of

DONE = {
    "gemma3_text": LogitScaling(),
    "gemma4_text, capped logits": LogitScaling(cap=30.0),
    "nanochat": LogitScaling(cap=15.0),
    "cohere2": LogitScaling(scale=1 / 16),
    "granite, scaled logits": LogitScaling(scale=1 / 8),
    "hyperclovax, scaled logits": LogitScaling(scale=1 / 4),
    "minicpm3": LogitScaling(before=8.0),
}
CAP, SCALE = LogitScaling(cap=2.0, scale=0.7), LogitScaling(scale=0.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", DONE)
def test_what_a_model_does_to_its_logits_is_seen_in_its_forward_pass(name, dtype, families_models):
    model = families_models.build(*families_models.VARIANTS.get(name, (name, {}))).to(dtype)
    if type(model).__name__.startswith("MiniCPM3"):
        assert model.config.logits_scaling == 1 / 8  # of states 32 wide
    assert scaling_of(model) == DONE[name]
    assert usual(model).cap == DONE[name].cap


class Clamped(LlamaForCausalLM):
    def forward(self, *args, **settings):
        output = super().forward(*args, **settings)
        output.logits = output.logits.clamp(max=50)  # far above what these weights give
        return output


def test_a_change_that_is_not_known_is_refused_with_the_reason(said):
    torch.manual_seed(0)
    model = Clamped(CONFIG_MAPPING["llama"](**SIZES)).eval()
    plain = exact(model)
    assert share(model) is None
    assert not shares(model, GROUPS)
    assert_same(model, *expected_of(plain))
    assert said() == [
        "prompts are not shared in this model, each completion has its own: the model changes its logits after its "
        "head in a way that is not known"
    ]


@pytest.mark.parametrize("way", ["packed", "two phases"])
def test_gemma_4_whose_last_layers_take_keys_of_others(way, families_models, monkeypatch):
    monkeypatch.setattr(sharing, "fits", lambda *_: way == "packed")
    monkeypatch.setitem(families_models.SMALL, "num_hidden_layers", 4)
    model = families_models.build(*families_models.VARIANTS["gemma4_text, keys of other layers"])
    expected = expected_of(exact(model))
    assert share(model) is None
    assert shares(model, GROUPS)
    assert_same(model, *expected)


@pytest.mark.parametrize("layer", ["frozen", "trained", "other"])
@pytest.mark.parametrize("scaling", [CAP, SCALE], ids=["cap", "scale"])
def test_gradients_are_those_of_autograd(scaling, layer, monkeypatch):
    """In chunks of the head and in blocks of a chunk."""
    monkeypatch.setattr(head, "chunk_rows", lambda *args: 40)
    monkeypatch.setattr(head, "BLOCK_BYTES", 1)
    torch.manual_seed(0)
    linear = torch.nn.Linear(8, 30, dtype=torch.float64).requires_grad_(layer != "frozen")
    states = torch.randn(50, 8, dtype=torch.float64).mul(3).requires_grad_()
    tokens, factors = torch.randint(30, (50,)), torch.randn(50, dtype=torch.float64)
    given = torch.nn.Sequential(linear) if layer == "other" else linear
    given.out_features = 30
    inputs = [states] if layer == "frozen" else [states, linear.weight, linear.bias]

    output = linear(states) * scaling.scale
    logits = output if scaling.cap is None else torch.tanh(output / scaling.cap) * scaling.cap
    distribution = (logits / 0.7).log_softmax(-1)
    logps = distribution.gather(-1, tokens[:, None])[:, 0]
    found, entropies = head.token_logps(given, states, tokens, 0.7, scaling)
    torch.testing.assert_close(found, logps, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(entropies, -(distribution.exp() * distribution).sum(-1), atol=1e-12, rtol=1e-12)
    ours, theirs = (torch.autograd.grad((one * factors).sum(), inputs) for one in (found, logps))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


def granite():
    """Made like Llama but for its logits."""
    plain = {"embedding_multiplier": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 8**-0.5}
    return random_model(GraniteConfig(**SIZES, **plain, logits_scaling=4.0), torch.float32)


@pytest.mark.parametrize(
    "settings",
    [{"greedy": True}, {"temperature": 1.3, "top_k": 9, "top_p": 0.8, "min_p": 0.02}],
)
@pytest.mark.parametrize("which", ["gemma4", "granite"])
def test_answers_are_sampled_from_the_models_own_distribution(which, settings, families_models, monkeypatch):
    """Token for token as where all is computed again by the model for each, with the same random numbers."""
    model = granite() if which == "granite" else families_models.build("gemma4_text", {"final_logit_softcapping": 3.0})
    plain = copy.deepcopy(model)
    share(model)
    assert isinstance(decoding.step_of(model, 40), LlamaStep) == (which == "granite")
    prompts = [list(group.prompt) for group in GROUPS for _ in range(2)]
    sampling = Sampling(8, (2,), seed=3, **settings)
    with monkeypatch.context() as patch:
        patch.delattr(rollouts, "_generate")
        found = rollout(model, [group.prompt for group in GROUPS], 2, sampling)
    with torch.no_grad():
        theirs = rollouts._recomputed(plain, prompts, sampling)
    assert sorted(one.completion for one in found) == sorted(theirs)
    for one in found:
        ids = torch.tensor([[*one.prompt, *one.completion]])
        logits = plain(input_ids=ids).logits[:, len(one.prompt) - 1 : -1] / sampling.temperature
        expected = selective_log_softmax(logits, torch.tensor([one.completion]))[0]
        torch.testing.assert_close(torch.tensor(one.logps), expected, atol=1e-4, rtol=1e-4)


def test_log_probabilities_and_entropies_are_those_of_trl(families_models):
    model = families_models.build("gemma4_text", {"final_logit_softcapping": 3.0})
    plain = copy.deepcopy(model)
    share(model)
    assert shares(model, GROUPS)
    scored = completion_logps(model, GROUPS, temperature=0.7)
    for logps, entropies, (prompt, completion) in zip(scored.logps, scored.entropies, ROWS, strict=True):
        logits = plain(input_ids=torch.tensor([[*prompt, *completion]])).logits[:, len(prompt) - 1 : -1] / 0.7
        theirs = selective_log_softmax(logits, torch.tensor([completion]))[0]
        torch.testing.assert_close(logps[: len(completion)], theirs, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(entropies[: len(completion)], entropy_from_logits(logits)[0], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["gemma4_text, capped logits", "minicpm3"])
def test_an_estimate_takes_the_configurations_word(name, families_models):
    """Without values nothing is seen in a forward pass."""
    model = families_models.build(*families_models.VARIANTS.get(name, (name, {})))
    without_values(model.to("meta"))
    meter = Meter(vocabulary=97)
    with stand_ins.installed(meter, Device("a CPU", 64 * 10**9, is_gpu=False, bfloat16=False)), meter:
        share(model)
        assert shares(model, GROUPS)
        completion_logps(model, GROUPS).logps.sum().backward()
    assert scaling_of(model) == usual(model)
