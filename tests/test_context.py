"""Rows that are longer than a model can read, with the answers that it is to write, are found before weights load."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from rlhf_core.errors import UserError

ROWS = [{"prompt": f"Symptom {i}?", "chosen": "Rest and drink. " * (i % 5 + 1), "rejected": "Run."} for i in range(8)]
VALUES = {"max_completion_length": 32}
REWARD = {"reward": ["ones.py:ones"]}


@pytest.fixture(scope="module")
def short_model(tiny_model, tmp_path_factory) -> str:
    """A model with positions for 36 tokens."""
    folder = tmp_path_factory.mktemp("short")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=36, n_embd=8, n_layer=1, n_head=1, **ends)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "grpo", **REWARD}, r"the model can read 36 tokens, and the longest row.*--max-completion-length"),
        ({"method": "ppo", **REWARD}, r"the model can read 36 tokens, and the longest row.*--max-completion-length"),
        ({"method": "dpo"}, r"the model can read 36 tokens, and the longest row.*--max-completion-length"),
        ({"method": "sft"}, "the model can read 36 tokens, and the longest row.*--max-length: at most 36"),
        ({"method": "sft", "max_length": 32, "eval_data": "data.jsonl", "num_eval_prompts": 2}, "the longest held-out"),
    ],
)
def test_rows_beyond_a_models_positions_are_refused(made_run, short_model, values, message):
    Path("ones.py").write_text("def ones(completions, **_): return [1.0] * len(completions)")
    with pytest.raises(UserError, match=message):
        made_run(model=short_model, **values)


@pytest.mark.parametrize(
    "values",
    [
        {"method": "grpo", **REWARD, "max_completion_length": 8},
        {"method": "dpo", "max_completion_length": 16, "overlong_completions": "truncate"},
        {"method": "sft", "max_length": 32, "overlong_completions": "truncate"},
    ],
)
def test_rows_that_fit_are_not(made_run, short_model, values):
    Path("ones.py").write_text("def ones(completions, **_): return [1.0] * len(completions)")
    made_run(model=short_model, **values)


def test_rows_beyond_what_rotary_positions_were_made_for_are_told(made_run, tiny_model):
    run = made_run(method="sft")
    assert not any("was made to read" in text for text in run.plan.data.warnings)
    Path("ones.py").write_text("def ones(completions, **_): return [1.0] * len(completions)")
    run = made_run(method="grpo", **REWARD, max_completion_length=2040)
    assert any("the model was made to read 2,048 tokens" in text for text in run.plan.data.warnings)
    with pytest.raises(UserError, match="--max-completion-length 1048577: at most 1048576 tokens are sampled"):
        made_run(method="grpo", **REWARD, max_completion_length=1_048_577)
