"""A rate at which all weights learn, and an adapter hardly does, is said with the rate to try."""

from __future__ import annotations

import pytest

from rlhf_core.catalog import Catalog
from rlhf_core.config import resolve
from rlhf_core.training.rates import low_for_adapter

REWARD = {"reward": ["length"]}
ROWS = [
    {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "Yes."}]} for i in range(4)
]
VALUES = {"learning_rate": 2e-5}


@pytest.mark.parametrize(
    ("method", "rate", "lora", "tried"),
    [
        ("sft", None, True, "0.0002"),  # the guide's 2e-5 is TRL's for all weights
        ("sft", None, False, None),
        ("sft", 2.1e-5, True, None),
        ("dpo", None, True, None),
        ("dpo", 5e-7, True, "5e-06"),
        ("orpo", None, True, None),
        ("orpo", 8e-6, True, "8e-05"),
        ("reward_model", None, True, None),
        ("reward_model", 1e-5, True, "0.0001"),
        ("ppo", None, True, None),
        ("ppo", 1e-6, True, "1e-05"),
        ("ppo", None, False, None),
        ("grpo", None, True, None),
        ("grpo", 1e-6, True, "1e-05"),
        ("grpo", 5e-7, True, "1e-05"),
        ("grpo", 1e-6, False, None),
    ],
)
def test_a_rate_of_full_fine_tuning_is_said_to_be_low_for_an_adapter(method, rate, lora, tried):
    values = {"method": method, "model": "m", "data": ["d.jsonl"], **(REWARD if method in ("grpo", "ppo") else {})}
    config, made = resolve({**values, **({"learning_rate": rate} if rate else {})}, Catalog())
    options = made.resolve_options(config.options.model_copy(update={"lora": lora}), lora=lora)
    found = low_for_adapter(config, made, options)
    assert [text.rpartition("--learning-rate ")[2] for text in found] == ([tried] if tried else [])
    assert all(f"is {made.full_rate:g} in {method}" in text for text in found)


@pytest.mark.parametrize("rate", [None, 1e-6])
def test_the_rate_of_a_preset_is_not_judged_and_one_that_is_given_is(rate):
    given = {"method": "grpo", **REWARD, **({"learning_rate": rate} if rate else {})}
    config, method = resolve(given, Catalog())
    options = config.options.model_copy(update={"lora": True})
    low = options.model_copy(update={"learning_rate": 1e-7})
    assert len(low_for_adapter(config, method, low)) == (0 if rate is None else 1)


def test_a_run_says_so_before_weights_load(made_run):
    found = [made_run(method="sft", lora=lora).plan.data.warnings for lora in (True, False)]
    assert [sum("--learning-rate" in text for text in texts) for texts in found] == [1, 0]
