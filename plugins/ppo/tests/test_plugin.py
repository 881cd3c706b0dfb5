"""PPO: its arithmetic by hand, its loss against the formula, and that an interrupted run resumes exactly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from rlhf_method_ppo import PPO, _steps, losses
from rlhf_method_ppo.batches import Experience, PromptBatches
from rlhf_method_ppo.policy import PolicyWithValue
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlhf_core.catalog import Catalog
from rlhf_core.config import resolve
from rlhf_core.errors import UserError
from rlhf_core.prefix import Group, stacked
from rlhf_core.training.run import prepare, train

T = torch.tensor


# The arithmetic


def test_a_tokens_kl():
    logps, reference = T([-1.0, -2.0]), T([-1.5, -1.0])
    assert losses.kl_penalty(logps, reference).tolist() == [0.5, -1.0]
    k3 = losses.kl_penalty(logps, reference, "k3")
    torch.testing.assert_close(k3, T([math.exp(-0.5) - 1 + 0.5, math.exp(1.0) - 1 - 1.0]))


def test_the_last_token_gets_the_score_and_every_token_a_kl_penalty():
    mask = T([[1, 1, 1], [1, 0, 0]])
    rewards = losses.token_rewards(T([2.0, -1.0]), T([[0.5, 0.0, 1.0], [2.0, 9.0, 9.0]]), mask, kl_coef=0.1)
    torch.testing.assert_close(rewards, T([[-0.05, 0.0, 1.9], [-1.2, 0.0, 0.0]]))


def test_gae_by_hand():
    """gamma 0.9, lambda 0.5. First row: deltas 0.5 + 0.9*1 - 0.2 = 1.2, then 1 + 0.9*0.4 - 1 = 0.36, then 2 - 0.4 = 1.6;
    advantages 1.6, 0.36 + 0.45*1.6 = 1.08, 1.2 + 0.45*1.08 = 1.686. Second row: one token, 3 - 1 = 2."""
    rewards, values = T([[0.5, 1.0, 2.0], [3.0, 0.0, 0.0]]), T([[0.2, 1.0, 0.4], [1.0, 7.0, 7.0]])
    mask = T([[1, 1, 1], [1, 0, 0]])
    advantages, returns = losses.gae(rewards, values, mask, gamma=0.9, lam=0.5)
    torch.testing.assert_close(advantages, T([[1.686, 1.08, 1.6], [2.0, 0.0, 0.0]]))
    torch.testing.assert_close(returns, T([[1.886, 2.08, 2.0], [3.0, 0.0, 0.0]]))


def test_gae_with_lambda_one_is_the_return_minus_the_value():
    torch.manual_seed(0)
    rewards, values, mask = torch.randn(3, 6), torch.randn(3, 6), torch.ones(3, 6)
    advantages, returns = losses.gae(rewards, values, mask, gamma=1.0, lam=1.0)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, to_go)
    torch.testing.assert_close(advantages, to_go - values)


def test_a_batch_whose_longest_completion_is_one_token():
    rewards, values, mask = T([[2.0], [1.0]]), T([[0.5], [3.0]]), T([[1], [0]])
    advantages, returns = losses.gae(rewards, values, mask, gamma=0.9, lam=0.5)
    assert (advantages.tolist(), returns.tolist()) == ([[1.5], [0.0]], [[2.0], [0.0]])


def test_explained_variance():
    """Returns 1, 3, 8 around their mean 4: the squares' sum is 26. Errors 1, 0, -1: 2."""
    returns, mask = T([[1.0, 3.0], [8.0, 99.0]]), T([[1, 1], [1, 0]])
    assert losses.explained_variance(returns - 5, returns, mask).item() == 1
    assert losses.explained_variance(torch.full((2, 2), 4.0), returns, mask).item() == 0
    near = losses.explained_variance(T([[0.0, 3.0], [9.0, 0.0]]), returns, mask)
    assert near.item() == pytest.approx(1 - 2 / 26)
    small = losses.explained_variance(T([[0.0, 3.0], [9.0, 0.0]]) / 100, returns / 100, mask)
    assert small.item() == pytest.approx(1 - 2 / 26)
    two = T([[1, 1], [0, 0]])
    assert losses.explained_variance(returns, returns, two).item() == 1
    assert losses.explained_variance(returns, returns, T([[1, 0], [0, 0]])).shape == (0,)  # one has no variance


def test_whitening():
    values, mask = T([[1.0, 3.0], [5.0, 100.0]]), T([[1, 1], [1, 0]])
    whitened = losses.whiten(values, mask, T(3.0), T(4.0))
    torch.testing.assert_close(whitened, T([[-1.0, 0.0], [1.0, 0.0]]))
    torch.testing.assert_close(
        losses.whiten(values, mask, T(3.0), T(4.0), shift_mean=False), T([[2.0, 3.0], [4.0, 0.0]])
    )


def test_policy_loss_by_hand():
    """Ratios 1.5, 0.5, 1.5, 0.5 with advantages 1, 1, -1, -1 and a clip range of 0.2."""
    ratios, advantages = T([[1.5, 0.5, 1.5, 0.5]]), T([[1.0, 1.0, -1.0, -1.0]])
    loss, clipped = losses.policy_loss(ratios.log(), torch.zeros(1, 4), advantages, 0.2)
    torch.testing.assert_close(loss, T([[-1.2, -0.5, 1.5, 0.8]]))
    assert clipped.tolist() == [[1, 0, 0, 1]]


def test_value_loss_by_hand():
    """Old value 0, clip range 0.2: 1 towards a return of 2 counts from 0.2, 1 beyond a return of 0 counts as it is."""
    loss, clipped = losses.value_loss(T([[1.0, 1.0]]), T([[0.0, 0.0]]), T([[2.0, 0.0]]), 0.2)
    torch.testing.assert_close(loss, T([[0.5 * 1.8**2, 0.5]]))
    assert clipped.tolist() == [[1, 0]]


@pytest.mark.parametrize(("kl", "expected"), [(6.0, 0.1), (6.6, 0.1 * 1.01), (60.0, 0.1 * 1.02), (0.0, 0.1 * 0.98)])
def test_the_kl_coefficient_follows_the_kl(kl, expected):
    assert losses.adapted_kl_coef(0.1, kl, target=6.0, completions=100, horizon=1000) == pytest.approx(expected)


# Data


def test_processes_take_turns_in_one_order():
    def read(rank: int, world: int, size: int) -> list[list[int]]:
        return list(PromptBatches(10, size, repeats=2, passes=10, seed=3, rank=rank, world=world))

    alone = read(0, 1, 4)
    assert len(alone) == 10
    assert alone[0::2] == alone[1::2]
    assert sorted((alone[0] + alone[2] + alone[4])[:10]) == list(range(10))
    assert [a + b for a, b in zip(read(0, 2, 2), read(1, 2, 2), strict=True)] == alone


@pytest.mark.parametrize(
    ("values", "processes", "steps"),
    [
        ({"max_steps": 7}, 1, 7),
        ({"total_episodes": 64, "num_ppo_epochs": 1}, 1, 4),
        ({"total_episodes": 65, "num_ppo_epochs": 1}, 1, 5),
        ({"total_episodes": 64, "num_ppo_epochs": 3, "num_mini_batches": 2}, 1, 12),
        ({"total_episodes": 64, "num_ppo_epochs": 1}, 2, 2),
        ({"num_ppo_epochs": 1}, 1, 3),  # 40 prompts once, 16 at a time
        ({"num_ppo_epochs": 1, "num_train_epochs": 2.0}, 1, 5),
        ({"num_ppo_epochs": 2, "num_train_epochs": 0.5}, 2, 2),
    ],
)
def test_steps_are_computed_from_episodes_or_epochs(values, processes, steps):
    assert _steps(PPO.Options(**values), processes, prompts=40) == steps


def test_episodes_and_epochs_exclude_each_other():
    with pytest.raises(ValidationError, match="total_episodes and num_train_epochs"):
        PPO.Options(total_episodes=64, num_train_epochs=2.0)


def test_the_defaults():
    options = PPO.Options()
    assert (options.gradient_accumulation_steps, options.per_device_train_batch_size) == (16, 1)
    assert (options.max_prompt_length, options.max_completion_length) == (1024, 256)
    assert PPO.Options(max_source_length=5, max_target_length=6).max_completion_length == 6
    rates = [PPO().resolve_options(options, lora=lora).learning_rate for lora in (True, False)]
    assert rates == [1e-5, 1e-6]
    assert PPO().resolve_options(PPO.Options(learning_rate=3e-6), lora=True).learning_rate == 3e-6


# The trainer


@pytest.fixture
def settings(tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text(
        "def length(completions, **_): return [min(1.0, len(c[0]['content']) / 50) for c in completions]\n"
        "def some(completions, **_): return [None if i % 2 else 1.0 for i in range(len(completions))]\n"
        "def none(completions, **_): return [None for _ in completions]\n"
    )
    rows = [{"question": f"What helps against symptom {i}?", "answer": str(i)} for i in range(12)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "method": "ppo",
        "reward": ["./rewards.py:length"],
        "model": str(tiny_model),
        "data": "data.jsonl",
        "output_dir": "out",
        "max_steps": 4,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_ppo_epochs": 2,
        "max_completion_length": 8,
        "logging_steps": 1,
        "save_steps": 2,
        "num_eval_prompts": 0,
        "gradient_checkpointing": False,
    }


@pytest.fixture
def trainer(settings):
    """trainer(option=…) -> a PPOTrainer."""

    def make(**values):
        config, method = resolve({"output_dir": "out", **settings, **values}, Catalog())
        return method.trainer(prepare(config, method, Catalog()))

    return make


@pytest.fixture
def go(settings):
    """go("folder", option=…) -> exit code."""

    def run(name: str, resume: bool = False, **values):
        config, method = resolve({**settings, "output_dir": name, **values}, Catalog())
        return train(config, method, Catalog(), resume=resume, allow_changed=["reward"] if resume else [])

    return run


def metrics(folder: str) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def weights(folder: str, file: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model" / file)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("weights", [None, [[0.25, 0.0, 2.5], [1.75]]], ids=["", "sampled by vLLM"])
def test_loss_and_gradients_equal_those_of_the_formula(trainer, tiny_model, weights):
    """One unpadded completion at a time, in float64, from the papers' equations. Weights are of the policy loss alone."""
    made = trainer(vf_coef=0.3)
    made.model.double()
    made.model.value_head.weight.data.normal_(std=0.1)
    groups = [Group([5, 6, 7], [[8, 9, 10]]), Group([20, 21], [[30]])]
    rows = {
        "logps": [[-7.0, -8.0, -7.5], [-7.9]],
        "values": [[0.1, -0.2, 0.3], [0.0]],
        "advantages": [[1.0, -0.5, 2.0], [-1.5]],
        "returns": [[0.5, 0.4, 0.3], [-1.0]],
    }
    inputs = Experience(groups, T([[1, 1, 1], [1, 0, 0]]), **{k: stacked(v, 0.0).double() for k, v in rows.items()})
    inputs.tokens = T(4.0)
    inputs.weights = None if weights is None else stacked(weights, 0.0).double()
    ours = made.compute_loss(made.model, inputs)
    ours.backward()
    gradients = {name: p.grad.clone() for name, p in made.model.named_parameters()}
    made.model.zero_grad()

    total = 0.0
    for i, group in enumerate(groups):
        ids = [*group.prompt, *group.completions[0]]
        output = made.model.policy(torch.tensor([ids]), output_hidden_states=True)
        start = len(group.prompt) - 1
        logps = output.logits[0, start:-1].log_softmax(-1)[range(len(ids) - start - 1), group.completions[0]]
        values = made.model.value_head(output.hidden_states[-1][0, start:-1])[:, 0]
        for t in range(len(logps)):
            ratio, advantage = (logps[t] - rows["logps"][i][t]).exp(), rows["advantages"][i][t]
            policy = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            policy = policy if weights is None else weights[i][t] * policy
            old, target = rows["values"][i][t], rows["returns"][i][t]
            near = values[t].clamp(old - 0.2, old + 0.2)
            total = total + policy + 0.3 * 0.5 * torch.maximum((values[t] - target) ** 2, (near - target) ** 2)
    expected = total / 4 * made.args.gradient_accumulation_steps
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    expected.backward()
    for name, parameter in made.model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-5)


def test_advantages_come_from_scores_penalties_and_kl(trainer):
    """What `_rollout` returns is the pure functions applied to what was sampled; against a reference that differs."""
    made = trainer(kl_coef=0.3, missing_eos_penalty=0.7)
    with torch.no_grad():
        for parameter in made.reference.copy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    rows = [made.train_dataset[i] for i in range(4)]
    torch.manual_seed(0)
    experience = made._rollout(rows)
    scores = [reward["rewards"]["length"] for reward in made.rewards.samples.last]
    logps, values, ref = (torch.zeros_like(experience.logps) for _ in range(3))
    ended = []
    for i, group in enumerate(experience.groups):
        ids, start = [*group.prompt, *group.completions[0]], len(group.prompt) - 1
        size = len(group.completions[0])
        ended.append(group.completions[0][-1] == made.processing_class.eos_token_id)
        with torch.no_grad():
            for model, into in ((made.model.policy, logps), (made.reference.copy, ref)):
                chosen = model(torch.tensor([ids])).logits[0, start:-1].log_softmax(-1)
                into[i, :size] = chosen[range(size), group.completions[0]]
    assert not all(ended)
    total = T(scores) - 0.7 * (~T(ended)).float()
    rewards = losses.token_rewards(total, losses.kl_penalty(logps, ref), experience.mask, 0.3)
    advantages, returns = losses.gae(rewards, values, experience.mask, 1.0, 0.95)
    chosen = advantages[experience.mask.bool()]
    expected = losses.whiten(advantages, experience.mask, chosen.mean(), chosen.var())
    torch.testing.assert_close(experience.returns, returns, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(experience.advantages, expected, atol=1e-3, rtol=1e-3)


def test_the_first_ratio_is_1_although_the_model_and_its_adapter_have_dropout(trainer, tmp_path):
    """Of the answers as they were sampled: dropout in the pass that is trained would be noise in the ratio."""
    made = trainer(lora=True)
    config = made.model.policy.peft_config["default"]
    config.lora_dropout = 0.5
    made.model.policy.save_pretrained(tmp_path / "adapter")
    made = trainer(model=str(tmp_path / "adapter"))
    made.model.train()
    experience = made._rollout([made.train_dataset[i] for i in range(4)])
    logps, _, _ = made.model(experience.groups, 1.0)
    torch.testing.assert_close((logps - experience.logps).exp(), torch.ones_like(logps), atol=1e-5, rtol=0)


def test_dropout_of_a_new_adapter_is_refused(trainer):
    with pytest.raises(UserError, match="--lora-dropout 0.1: PPO compares probabilities"):
        trainer(lora=True, lora_dropout=0.1)


def test_moments_keep_their_digits(trainer):
    """With mean 1000 and deviation 1, the difference of two sums of squares would be off by 12 % in float32."""
    values = 1000 + torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(256) < torch.arange(64)[:, None] + 100).float()
    mean, variance = trainer()._moments(values, mask)
    chosen = values.double()[mask.bool()]
    assert mean.item() == pytest.approx(chosen.mean().item(), abs=1e-4)
    assert variance.item() == pytest.approx(chosen.var().item(), rel=1e-6)


def test_each_process_samples_with_its_own_random_numbers(trainer, monkeypatch):
    monkeypatch.setattr("accelerate.utils.random.AcceleratorState", lambda: SimpleNamespace(process_index=3))
    trainer(seed=42)
    assert torch.initial_seed() == 45


@pytest.mark.parametrize("reward", ["some", "none"])
def test_rows_without_a_reward_are_not_in_the_loss(trainer, reward):
    made = trainer(reward=[f"./rewards.py:{reward}"])
    experience = made._rollout([made.train_dataset[i] for i in range(4)])
    there = experience.mask.any(1).tolist()
    assert there == ([True, False] * 2 if reward == "some" else [False] * 4)
    made.minibatches = made._divide(experience)
    for part in made.minibatches[0]:
        assert math.isfinite(made.compute_loss(made.model, part).item())


def test_truncated_answers_can_be_left_out(trainer):
    made = trainer(mask_truncated_completions=True)
    experience = made._rollout([made.train_dataset[i] for i in range(4)])
    end = made.processing_class.eos_token_id
    assert experience.mask.any(1).tolist() == [group.completions[0][-1] == end for group in experience.groups]


def test_every_epoch_trains_on_every_answer_once(trainer):
    made = trainer(num_mini_batches=2, num_ppo_epochs=3)
    experience = made._rollout([made.train_dataset[i] for i in range(8)])
    steps = made._divide(experience)
    assert (len(steps), {len(parts) for parts in steps}) == (6, {2})
    for epoch in range(3):
        prompts = [id(g) for parts in steps[2 * epoch : 2 * epoch + 2] for part in parts for g in part.groups]
        assert sorted(prompts) == sorted(map(id, experience.groups))
    assert all(part.tokens == sum(p.mask.sum() for p in parts) for parts in steps for part in parts)


def test_a_run_writes_a_model_and_the_metrics_of_the_paper(go, tiny_model):
    assert go("out", num_eval_prompts=1, target_kl=1.0) == 0
    before, after = load_file(tiny_model / "model.safetensors"), weights("out")
    assert before.keys() == after.keys()
    assert not same(before, after)
    AutoModelForCausalLM.from_pretrained("out/model")
    logged = [row for row in metrics("out") if "objective/kl" in row or "loss/policy_avg" in row]
    assert len(logged) == 4
    everything = set().union(*logged)
    for name in (
        *(
            "objective/kl",
            "objective/entropy",
            "objective/non_score_reward",
            "objective/rlhf_reward",
            "objective/scores",
        ),
        *("policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg", "loss/value_avg"),
        *("val/clipfrac_avg", "val/ratio", "val/ratio_var", "val/num_eos_tokens", "episode", "objective/kl_coef"),
        *("reward", "rewards/length/mean", "completions/mean_length"),
    ):
        assert name in everything, name
    assert logged[0]["val/ratio"] == pytest.approx(1.0, abs=1e-4)
    assert len((Path("out") / "samples.jsonl").read_text().splitlines()) == 2 * 4


ADAPTER = {"lora": True, "lora_r": 4, "lora_alpha": 8}


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"num_mini_batches": 2, "target_kl": 1.0},
        {"value_model": "separate"},
        ADAPTER,
        {**ADAPTER, "value_model": "separate"},
    ],
    ids=["full", "minibatches and controller", "separate value model", "lora", "lora and separate value model"],
)
def test_a_resumed_run_equals_one_that_was_never_stopped(go, values):
    """Two epochs over the data, so that the order of the second one is resumed too."""
    every = 4 if "num_mini_batches" in values else 2
    values = {**values, "save_steps": every, "max_steps": 4 * every}
    assert go("full", **values) == 0
    _stop_after(go, values, every)
    assert go("stopped", resume=True, **values) == 0
    file = "adapter_model.safetensors" if values.get("lora") else "model.safetensors"
    assert same(weights("full", file), weights("stopped", file))
    assert same(weights("full", "value_head.safetensors"), weights("stopped", "value_head.safetensors"))
    names = ("reward", "loss", "objective/kl", "objective/kl_coef", "episode")
    assert [[row.get(k) for k in names] for row in metrics("full") if "loss" in row] == [
        [row.get(k) for k in names] for row in metrics("stopped") if "loss" in row
    ]


def _stop_after(go, values, every):
    """A run that is interrupted while it samples its second batch of answers."""
    Path("stop.py").write_text(
        "import os, signal\n"
        "def length(completions, trainer_state, **_):\n"
        f"    if trainer_state.global_step == {every}: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return [min(1.0, len(c[0]['content']) / 50) for c in completions]\n"
    )
    assert go("stopped", **{**values, "reward": ["./stop.py:length"]}) == 130


@pytest.mark.slow
def test_a_run_that_starts_from_an_adapter_keeps_it_as_the_reference(go, trainer):
    assert go("first", **ADAPTER) == 0
    made = trainer(model="first/model", **ADAPTER)
    groups = [Group([5, 6, 7], [[8, 9, 10]])]
    before = made.model(groups, 1.0)[0].detach()
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if ".default." in name:
                parameter.add_(0.1)
    from rlhf_core.prefix import completion_logps

    with made.reference() as reference:
        after = completion_logps(reference, groups).logps
    torch.testing.assert_close(after, before)
    assert not torch.allclose(made.model(groups, 1.0)[0], before)
    assert {name for name, p in made.model.named_parameters() if p.requires_grad and ".ref." in name} == set()
    assert go("second", model="first/model", **ADAPTER) == 0
    assert not (Path("second") / "model" / "ref").exists()


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_quantized(go, bits):
    pytest.importorskip("bitsandbytes")
    assert go("out", **{bits: True}, max_steps=2) == 0
    assert (Path("out") / "model" / "adapter_model.safetensors").is_file()


def test_values_are_zero_at_first_and_belong_to_the_state_before_the_token(tiny_model):
    policy = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    model = PolicyWithValue(policy, separate=False)
    groups = [Group([5, 6, 7], [[8, 9, 10]])]
    assert not model(groups, 1.0)[2].any()
    torch.nn.init.normal_(model.value_head.weight)
    values = model(groups, 1.0)[2][0]
    changed = model([Group([5, 6, 7], [[8, 9, 99]])], 1.0)[2][0]
    torch.testing.assert_close(values, changed)  # the last token's value knows nothing of the token


def test_it_is_found_by_its_entry_point():
    assert Catalog().load("methods", "ppo")[0] is PPO


def test_an_exception_in_a_rollout_leaves_the_model_in_training_mode(trainer, monkeypatch):
    made = trainer()
    made.model.train()

    def fails(*args, **rest):
        assert not made.model.training
        raise RuntimeError("out of memory")

    monkeypatch.setattr(made, "reference", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        made._rollout([made.train_dataset[i] for i in range(4)])
    assert all(module.training for module in made.model.modules())
