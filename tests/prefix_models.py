"""Small models of random weights, and groups of tokens, for the tests of shared prompts."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

from rlhf_core.prefix import Group

GROUPS = [Group([5, 6, 7], [[8, 9], [10, 11, 12, 13]]), Group([20, 21, 22, 23, 24], [[30]])]
SIZES = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def random_model(config, dtype=torch.float64, spread=0.3):
    """With weights so large that attention and the distributions of tokens are far from uniform."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape) * spread + (weight.dim() == 1))
    return model.to(dtype)


def assert_same(ours, theirs, tolerance):
    """Every gradient exists, none is zero throughout, and each is as near as `tolerance` of its norm."""
    assert ours.keys() == theirs.keys()
    assert len(ours) > 3
    for name, one in ours.items():
        assert theirs[name].norm() > 0, name
        assert (one - theirs[name]).norm() <= tolerance * theirs[name].norm(), name
