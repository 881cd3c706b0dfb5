"""Families of models: each shares its prompts exactly, or is refused with the reason, and is as exact.

More recurrent ones are in test_prefix_recurrent.py, multimodal ones in test_multimodal.py, and others that are refused
in test_prefix_families.py; benchmarks/families.py tries all.
"""

from __future__ import annotations

import pytest

from rlhf_core.prefix import share, shares
from tests.test_prefix_families import exact
from tests.test_prefix_recurrent import GROUPS, assert_same, expected_of

FAMILIES = {
    "qwen3_moe": None,
    "mixtral": None,
    "deepseek_v3": None,
    "kimi_linear": None,
    "bailing_hybrid": None,
    "glm4": None,
    "gemma3_text": None,
    "smollm3": None,
    "olmo2": None,
    "phi3": None,
    "gpt_neox": None,
    "hunyuan_v1_dense": None,
    "cohere2": None,
    "granite, scaled logits": None,
    "gemma3n_text": None,
    "gemma4_text, capped logits": None,
    "minicpm3": None,
    "gemma2": "the model caps the scores of its attention (attn_logit_softcapping)",
    "falcon": "its layers have attention of their own, in the place of which no other can be set",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_shares_exactly_or_is_refused_with_the_reason(name, families_models):
    model = families_models.build(*families_models.VARIANTS.get(name, (name, {})))
    expected = expected_of(exact(model))
    assert share(model) == FAMILIES[name]
    assert shares(model, GROUPS) == (FAMILIES[name] is None)
    assert_same(model, *expected)
