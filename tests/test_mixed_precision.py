"""Every method as on a GPU: bfloat16 by autocast, and an attention kernel that takes half precision alone. Nothing may
fall back to slower code, and every weight must learn from the first step on.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlhf_core.models import precision
from rlhf_core.prefix import kernels, sharing
from rlhf_core.testing import check_method

ROWS = [
    {"prompt": f"Symptom {i}?", "chosen": "Rest and drink. " * (i % 5 + 1), "rejected": f"Run {i} miles."}
    for i in range(24)
]
VALUES = {"max_completion_length": 32, "max_steps": 1, "num_eval_prompts": 4, "max_grad_norm": 0}
ONLINE = {"reward": ["spread.py:spread"]}
REWARD = """
def spread(completions, **_):
    return [len(str(one)) % 7 / 7 for one in completions]
"""
METHODS = {
    "sft": {},
    "dpo": {},
    "orpo": {},
    "reward_model": {},
    "grpo": {**ONLINE, "num_generations": 4, "beta": 0.1},
    "ppo": ONLINE,
}


@pytest.fixture(autouse=True)
def like_a_gpu(monkeypatch):
    monkeypatch.setattr(precision, "gpu_has_bfloat16", lambda: True)
    forward, backward = kernels.KERNELS["cpu"]

    def half_precision(query, *arguments):
        if query.dtype not in (torch.float16, torch.bfloat16):
            raise RuntimeError("FlashAttention only supports fp16 and bf16")
        return forward(query, *arguments)

    monkeypatch.setitem(kernels.KERNELS, "cpu", kernels.Kernel(half_precision, backward))
    monkeypatch.setattr(kernels, "_checked", {})


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_prompts_are_shared_and_all_weights_learn(go, said, monkeypatch, method, lora, checkpointing):
    Path("spread.py").write_text(REWARD)
    padded = []
    for name in ("completion_logps", "completion_hidden"):
        monkeypatch.setattr(sharing.padded, name, spy(getattr(sharing.padded, name), padded))
    code, _ = go(method=method, lora=lora, gradient_checkpointing=checkpointing, **METHODS[method])
    assert code == 0
    assert not [line for line in said() if "plain arithmetic" in line or "its own" in line]
    # In each self-check: as the model came, and rounded. A separate reference is checked, too.
    assert len(padded) in (2, 4)
    frozen = {weight.dtype for weight in go.trainers[-1].model.parameters() if not weight.requires_grad}
    assert frozen == ({torch.bfloat16} if lora else set())
    for name, weight in go.trainers[-1].model.named_parameters():
        if weight.requires_grad and "lora_A" not in name:  # which has no gradient while B is 0
            assert weight.dtype == torch.float32
            assert go.trainers[-1].optimizer.state[weight]["exp_avg"].any(), name


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_method_keeps_the_rules_of_the_kit(method):
    check_method(method)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_scores_are_computed_in_float32(go, lora):
    """By a model in bfloat16, which has 256 numbers from one power of two to the next."""
    from rlhf_method_reward_model import RewardModelScore

    code, folder = go(method="reward_model", lora=lora)
    assert code == 0
    rewards = RewardModelScore(path=str(folder / "model"))
    answers = [[{"role": "user", "content": row["prompt"]}] for row in ROWS], [row["chosen"] for row in ROWS]
    scores = torch.tensor(rewards(*answers))
    assert rewards.model.dtype == torch.bfloat16
    assert (scores != scores.bfloat16()).sum() > len(ROWS) // 2
    rewards.model.float()
    torch.testing.assert_close(scores, torch.tensor(rewards(*answers)), rtol=0.02, atol=0.02)


def spy(function, calls):
    def called(*arguments, **keywords):
        calls.append(function.__name__)
        return function(*arguments, **keywords)

    return called
