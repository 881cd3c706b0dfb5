"""A decoding step that is written out gives what the model's modules give, and is left where it would not."""

import copy
import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from rlhf_core.prefix import Sampling, decoding, few_rows, lean, rollout, share

SIZES = {
    "vocab_size": 192,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
SCALED = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FAMILIES = {
    "Qwen3": Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=False),
    "Qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "Llama, scaled and with biases": LlamaConfig(
        **SIZES,
        attention_bias=True,
        mlp_bias=True,
        hidden_act="gelu",
        rope_parameters=SCALED | {"original_max_position_embeddings": 16},
    ),
    "Mistral": MistralConfig(**SIZES, head_dim=32, sliding_window=None),
}
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [16, 17]]
SAMPLING = Sampling(40, eos_token_ids=range(12), seed=3, repetition_penalty=1.1)


def model_of(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():  # biases and norms too, so that each must be there
            weight.copy_(torch.randn(weight.shape) * 0.08 + (weight.dim() == 1))
    assert share(model) is None
    return model


@pytest.fixture
def written_out(monkeypatch):
    """How many rows each step had that was written out."""
    rows = []
    real = lean._Layers.logits
    monkeypatch.setattr(
        lean._Layers, "logits", lambda layers, ids, *rest: rows.append(len(ids)) or real(layers, ids, *rest)
    )
    return rows


def by_its_modules(model, monkeypatch, **options):
    with monkeypatch.context() as patch:
        patch.setattr(lean, "is_like_llama", lambda model: False)
        return rollout(model, PROMPTS, 3, SAMPLING, **options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("at_once", "small"), [(3, few_rows.SMALL), (256, 0)])
def test_the_same_completions(family, at_once, small, written_out, monkeypatch):
    """Rows leave and enter, with prompts and completions of unequal lengths; by the weights and by their copy."""
    monkeypatch.setattr(few_rows, "SMALL", small)
    monkeypatch.setattr(decoding, "ROWS_AT_ONCE", at_once)
    monkeypatch.setattr(decoding, "GROWTH", 3)
    model = model_of(FAMILIES[family])
    found = rollout(model, PROMPTS, 3, SAMPLING)
    used = len(written_out)
    expected = by_its_modules(model, monkeypatch)
    assert used > 10
    assert len(written_out) == used
    assert [one.completion for one in found] == [one.completion for one in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(one.logps), torch.tensor(other.logps), rtol=1e-4, atol=1e-4)
    assert len({len(one.completion) for one in found}) > 3


def test_an_adapter_that_is_part_of_the_weights(written_out, monkeypatch):
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(model_of(FAMILIES["Qwen3"]), lora).eval()
    found = rollout(model, PROMPTS, 3, SAMPLING)
    assert written_out
    with model.disable_adapter():
        without = rollout(model, PROMPTS, 3, SAMPLING)
    assert [one.completion for one in found] == [one.completion for one in by_its_modules(model, monkeypatch)]
    assert [one.completion for one in found] != [one.completion for one in without]


def hooked(model):
    model.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: output * 0.9)


def replaced(model):
    module = model.model.layers[1].mlp
    module.forward = lambda states, original=module.forward: original(states) * 0.9


def computed_in_another_precision(model):
    model.to(torch.bfloat16)


def of_a_family_that_is_not_known(model):
    model.config.model_type = "another"


@pytest.mark.parametrize("change", [hooked, replaced, computed_in_another_precision, of_a_family_that_is_not_known])
def test_what_is_left_to_the_modules(change, written_out, monkeypatch):
    model = model_of(FAMILIES["Qwen3"])
    change(model)
    found = rollout(model, PROMPTS, 3, SAMPLING)
    assert found == by_its_modules(model, monkeypatch)
    assert not written_out


@pytest.mark.parametrize("wrong", ["values", "names"])
def test_a_step_that_differs_is_said_once_and_left(wrong, monkeypatch, caplog):
    """As it would be if transformers changed what a layer computes."""
    model = model_of(FAMILIES["Qwen3"])
    expected = by_its_modules(model, monkeypatch)
    if wrong == "values":
        monkeypatch.setattr(lean, "_normal", lambda norm, states: states)
    else:
        monkeypatch.setattr(lean, "_normal", lambda norm, states: norm.gone)
    with caplog.at_level(logging.WARNING, "rlhf"):
        found = [rollout(model, PROMPTS, 3, SAMPLING) for _ in range(2)]
    assert found == [expected, expected]
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "tokens are sampled through the model's own modules, which takes longer"
    ]
