"""Log-probabilities, hidden states and rollouts against the definition, one unpadded sequence at a time, in float64."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import DataParallel
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from rlhf_core.estimate.meter import Meter
from rlhf_core.estimate.weightless import without_values
from rlhf_core.prefix import Group, Sampling, completion_hidden, completion_logps, rollout, share, shares, sharing

GROUPS = [Group([5, 6, 7], [[8, 9], [10, 11, 12, 13]]), Group([20, 21, 22, 23, 24], [[30]])]
ROWS = [(group.prompt, completion) for group in GROUPS for completion in group.completions]


@pytest.fixture(scope="module")
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64).eval()


def by_definition(model, prompt, completion, temperature):
    """(log-probabilities, entropies, hidden states) of one completion."""
    output = model(torch.tensor([[*prompt, *completion]]), output_hidden_states=True)
    distribution = (output.logits[0, len(prompt) - 1 : -1] / temperature).log_softmax(-1)
    entropies = -(distribution.exp() * distribution).sum(-1)
    logps = distribution[range(len(completion)), completion]
    return logps, entropies, output.hidden_states[-1][0, len(prompt) - 1 :]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_completion_logps(model, temperature):
    result = completion_logps(model, GROUPS, temperature=temperature, hidden=True)
    assert result.mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    for i, (prompt, completion) in enumerate(ROWS):
        logps, entropies, hidden = by_definition(model, prompt, completion, temperature)
        size = len(completion)
        torch.testing.assert_close(result.logps[i, :size].double(), logps, atol=1e-6, rtol=0)
        torch.testing.assert_close(result.entropies[i, :size].double(), entropies, atol=1e-5, rtol=0)
        torch.testing.assert_close(result.hidden[i, : size + 1], hidden, atol=1e-9, rtol=0)
        assert not result.logps[i, size:].any()


def test_gradients_of_completion_logps(model):
    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    ours = gradients(completion_logps(model, GROUPS).logps.double().sum())
    theirs = gradients(sum(by_definition(model, *row, 1.0)[0].sum() for row in ROWS))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_completion_hidden(model):
    result = completion_hidden(model, GROUPS)
    for i, (prompt, completion) in enumerate(ROWS):
        hidden = by_definition(model, prompt, completion, 1.0)[2]
        torch.testing.assert_close(result.states[i, : len(completion) + 1], hidden, atol=1e-9, rtol=0)


def test_a_model_in_deepspeeds_engine_shares_its_prompts(tiny_model):
    """Its engine has the model as `module`, and as its `config` a dictionary of its own."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert share(model) is None

    class Engine(nn.Module):
        config: ClassVar = {"zero_optimization": {"stage": 2}}

        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, **inputs):
            return self.module(**inputs)

    adapted = get_peft_model(model, LoraConfig(target_modules=["o_proj"], init_lora_weights=False))
    for inner in (model, adapted):
        engine = Engine(DataParallel(inner))
        assert shares(engine, GROUPS)
        found, wanted = completion_logps(engine, GROUPS).logps, completion_logps(inner, GROUPS).logps
        torch.testing.assert_close(found, wanted, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("lora", "rows", "length", "steps", "way"),
    [
        (False, 2, 4, 1, "packed"),
        (False, 2, 6, 2, "packed"),  # the gradients of the first step are there
        (False, 6, 24, 1, "two_phase"),
        (True, 4, 16, 1, "two_phase"),
    ],
)
def test_the_way_that_takes_less_memory_is_taken_where_neither_fits(monkeypatch, lora, rows, length, steps, way):
    """Two phases keep fewer activations, and gradients of all trained weights beside those that accumulate."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = Qwen3ForCausalLM(Qwen3Config(**sizes, num_hidden_layers=2, head_dim=16, vocab_size=256))
    assert share(model) is None
    model = get_peft_model(model, LoraConfig(target_modules="all-linear")) if lora else model
    groups = [Group([5, 6, 7], [[8] * length] * rows)]
    assert shares(model, groups)  # it is compared with rows alone while it has numbers
    monkeypatch.setattr(sharing, "free_bytes", lambda device: 0)
    peaks, fits = {}, sharing.fits
    with Meter() as meter:
        without_values(model)
        for each in ("packed", "two_phase"):
            monkeypatch.setattr(sharing, "fits", lambda model, groups, each=each: each == "packed")
            model.zero_grad()
            for step in range(steps):
                chosen = "packed" if fits(model, groups) else "two_phase"
                with meter.during(f"{each} {step}"):
                    completion_logps(model, groups).logps.sum().backward()
            peaks[each] = meter.phases[f"{each} {steps - 1}"].peak
    assert min(peaks, key=peaks.get) == chosen == way


def test_an_empty_prompt_or_completion_is_refused():
    for prompt, completions in (([], [[1]]), ([1], [[]]), ([1], [[2], []])):
        with pytest.raises(ValueError, match="no empty"):
            Group(prompt, completions)


def test_greedy_rollouts_equal_those_of_generate(model):
    prompts = [list(group.prompt) for group in GROUPS]
    rollouts = rollout(model, prompts, 2, Sampling(6, [2], greedy=True))
    assert [one.prompt for one in rollouts] == [prompts[0], prompts[0], prompts[1], prompts[1]]
    for one in rollouts:
        plain = model.generate(torch.tensor([one.prompt]), max_new_tokens=6, do_sample=False, eos_token_id=2)
        assert one.completion == plain[0, len(one.prompt) :].tolist()


def test_rollouts_end_with_the_first_end_token_and_have_their_log_probabilities(model):
    torch.manual_seed(0)
    ends = list(range(0, 2048, 9))
    rollouts = rollout(model, [list(group.prompt) for group in GROUPS], 8, Sampling(12, ends, 0.8, top_p=0.9))
    assert {one.finished for one in rollouts} == {True, False}
    for one in rollouts:
        assert not set(one.completion[:-1]) & set(ends)
        assert one.finished == (one.completion[-1] in ends)
        assert one.finished or len(one.completion) == 12
        logps = by_definition(model, one.prompt, one.completion, 0.8)[0]
        torch.testing.assert_close(torch.tensor(one.logps).double(), logps, atol=1e-5, rtol=0)
