"""The self-check refuses every model that computes something else with shared prompts, and no other, in each precision."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, Qwen3Config

from rlhf_core.errors import RunStopped
from rlhf_core.prefix import Group, Sampling, attention, rollout, share, shares, sharing
from rlhf_core.prefix.layout import Layout
from rlhf_core.prefix.self_check import distinct_groups
from tests.prefix_models import GROUPS, SIZES, random_model


@pytest.fixture
def model():
    return random_model(Qwen3Config(**SIZES))


def blind(metadata, layer, query, key, value, scale, window=None):
    """Completions do not see their prompts."""
    metadata.layout = Layout([(tokens, ()) for tokens in metadata.layout.own.queries])
    return ATTEND(metadata, layer, query, key, value, scale)


def short_sighted(metadata, layer, query, key, value, scale, window=None):
    """In a layer the last tokens of the longest completion do not see the first ones of their prompt."""
    return ATTEND(metadata, layer, query, key, value, scale, metadata.layout.longest - 12 if layer == 0 else None)


def scaled(metadata, layer, query, key, value, scale, window=None):
    return ATTEND(metadata, layer, query, key, value, 1.3 * (scale or query.shape[-1] ** -0.5))


def with_sinks(metadata, layer, query, key, value, scale, window=None):
    """As if a part of the attention went to a token that is not there, as in gpt-oss."""
    return 0.8 * ATTEND(metadata, layer, query, key, value, scale)


ATTEND = attention.PackedAttention.attend
PRECISIONS = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("wrong", [blind, short_sighted, scaled, with_sinks])
def test_a_model_with_another_attention_is_refused(said, monkeypatch, wrong, dtype):
    """SFT passes a single token, for which all kinds of attention compute the same."""
    model = random_model(Qwen3Config(**SIZES), dtype)
    plain = copy.deepcopy(model)
    monkeypatch.setattr(attention.PackedAttention, "attend", wrong)
    assert share(model) is None
    assert not shares(model, [Group([5], [[5]])])
    (message,) = said()
    assert "results differ by" in message
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("dtype", [torch.float64, *PRECISIONS])
@pytest.mark.parametrize("spread", [0.02, 0.1, 0.3])
def test_a_supported_model_is_shared_in_every_precision(said, dtype, spread):
    for config in (Qwen3Config(**SIZES | {"num_hidden_layers": 12}), LlamaConfig(**SIZES)):
        model = random_model(config, dtype, spread)
        share(model)
        assert shares(model, GROUPS)
    assert said() == []


def test_each_precision_is_checked(said, monkeypatch):
    """Autocast computes something else than the weights' type."""
    model = random_model(Qwen3Config(**SIZES), torch.float32)
    share(model)
    checks, real = [], sharing.sharing_disagrees
    monkeypatch.setattr(sharing, "sharing_disagrees", lambda *args: checks.append(args) or real(*args))
    for _ in range(2):
        assert shares(model, GROUPS)
        with torch.autocast("cpu", torch.bfloat16):
            assert shares(model, GROUPS)
    assert len(checks) == 2
    assert said() == []


def test_a_model_without_numbers_is_not_blamed_for_sharing(said, model):
    """Sampling says what is wrong."""
    torch.nn.init.constant_(model.model.norm.weight, torch.nan)
    share(model)
    for engine in ("shared", "transformers"):
        with pytest.raises(RunStopped, match="not numbers"):
            rollout(model, [[5, 6, 7], [8]], 2, Sampling(4, [1]), engine)
    assert said() == []


def test_tokens_without_numbers_do_not_keep_the_others_from_being_compared(said, monkeypatch, model):
    monkeypatch.setattr(attention.PackedAttention, "attend", blind)
    with torch.no_grad():
        model.get_input_embeddings().weight[distinct_groups(SIZES["vocab_size"], 48)[0].completions[1][-1]] = torch.nan
    share(model)
    assert not shares(model, GROUPS)
    (message,) = said()
    assert "results differ by" in message


def test_the_groups_of_the_check_have_distinct_tokens():
    for longest in (1, 2, 6, 48):
        groups = distinct_groups(997, longest)
        rows = [row for group in groups for row in (group.prompt, *group.completions)]
        tokens = [token for row in rows for token in row]
        assert len(set(tokens)) == len(tokens)
        assert max(len(group.prompt) + len(row) for group in groups for row in group.completions) <= max(2, longest)
    assert all(len(group.completions) == 2 for group in groups)
    assert all(len(group.completions[1]) > 3 * len(group.completions[0]) for group in groups)


@pytest.mark.parametrize("training", [True, False])
def test_the_check_leaves_mode_and_random_numbers_unchanged(model, training):
    share(model)
    learned = get_peft_model(model, LoraConfig(target_modules="all-linear", lora_dropout=0.5)).train(training)
    before = torch.get_rng_state()
    assert shares(learned, GROUPS)
    assert learned.training == training
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_without_a_head_is_checked_by_its_states(said):
    """Completions of unequal length: differences after the end of a completion do not count."""
    model = random_model(Qwen3Config(**SIZES)).model
    share(model)
    assert shares(model, GROUPS)
    assert said() == []
