"""PPO against TRL's trainer, the last one there was (1.12): same weights, same answers, same scores, two optimizer steps.

`trl_ppo.json` holds what TRL's own variables held, in float64; `python -m benchmarks.ppo_vs_trl fixture` makes it.
Where ours differs, a test below says in what, and that it is nothing else. Besides: TRL averages over the tokens of each
forward pass and then over passes, ours over all tokens of a step; TRL does not clip gradients; TRL steps its optimizer
once per `gradient_accumulation_steps` passes, so `num_mini_batches` splits forward passes there and steps here.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rlhf_method_ppo import PPO, losses
from rlhf_method_ppo import trainer as module
from rlhf_method_ppo.policy import PolicyWithValue
from rlhf_method_ppo.trainer import PPOTrainer
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification, TrainingArguments

from rlhf_core.prefix import Rollout, share

TRL = json.loads((Path(__file__).parent / "trl_ppo.json").read_text(encoding="utf-8"))
FULL, WHITENED, ENDED = TRL["cases"]
T = torch.tensor


def fill(model, seed: float):
    """The fixture's weights, by its formula."""
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            waves = torch.sin(torch.arange(parameter.numel(), dtype=torch.float64) * (1.7 + seed) + i + seed)
            parameter.copy_((0.5 * waves + (1.0 if parameter.ndim == 1 else 0.0)).view_as(parameter))
    return model.double().eval()


def gradients(model) -> dict[str, list[float]]:
    """(length, sum against fixed waves) of each gradient, by the fixture's formula."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradient = parameter.grad.flatten()
            waves = torch.cos(torch.arange(len(gradient), dtype=gradient.dtype) * 0.7)
            found[name] = [gradient.norm().item(), (gradient * waves).sum().item()]
    return found


def completions(case) -> list[list[int]]:
    """TRL's rows, without the tokens after the end token."""
    return [row[: row.index(TRL["end"]) + 1] if TRL["end"] in row else row for row in case["responses"]]


def near(ours, theirs) -> None:
    torch.testing.assert_close(T(ours).double(), T(theirs).double(), atol=2e-5, rtol=2e-5)


@pytest.fixture(params=[True, False], ids=["shared", "padded"])
def made(request, tmp_path, monkeypatch):
    """made(case) -> (trainer, what it computed of the case's answers), in one forward pass."""

    def make(case):
        shape, end = TRL["shape"], TRL["end"]
        policy = fill(Qwen3ForCausalLM(Qwen3Config(**shape)), 0.0)
        reference = fill(Qwen3ForCausalLM(Qwen3Config(**shape)), 0.02)
        value_model = fill(Qwen3ForSequenceClassification(Qwen3Config(**shape, num_labels=1, pad_token_id=0)), 0.5)
        policy.generation_config.eos_token_id = end
        model = PolicyWithValue(policy, separate=True).double()
        model.value_model.model.load_state_dict(value_model.model.state_dict())
        model.value_head.weight.data.copy_(value_model.score.weight)
        if request.param:
            assert [share(one) for one in (policy, model.value_model, reference)] == [None] * 3

        given = completions(case)
        copies = len(given) // len(TRL["prompts"])
        prompt_of = dict(zip(map(tuple, completions_in_order(case)), TRL["prompts"], strict=True))
        prompts = [prompt_of[tuple(answer)] for answer in given]
        rollouts = [Rollout(p, c, [0.0] * len(c), c[-1] == end) for p, c in zip(prompts, given, strict=True)]
        monkeypatch.setattr(module, "rollout", lambda *_: rollouts)
        cut = [TRL["options"]["missing_eos_penalty"] * (not one.finished) for one in rollouts]
        scores = [score + penalty for score, penalty in zip(case["scores"], cut, strict=True)]

        @contextmanager
        def as_found():
            yield reference

        options = PPO.Options(
            **TRL["options"], kl_estimator=case["kl_estimator"], whiten_rewards=case["whiten_rewards"],
            value_model="separate", per_device_train_batch_size=4 * copies, gradient_accumulation_steps=1,
        )  # fmt: skip
        trainer = PPOTrainer(
            model=model,
            args=TrainingArguments(str(tmp_path), per_device_train_batch_size=4 * copies, use_cpu=True, report_to=[]),
            options=options,
            reference=as_found,
            rewards=SimpleNamespace(
                batch=lambda *asked: asked, score=lambda batch: scores, samples=SimpleNamespace(advantages=list)
            ),
            train_dataset=[{"prompt": prompt} for prompt in prompts],
            template=SimpleNamespace(prompt_ids=lambda prompt, tools=None: list(prompt)),
            processing_class=SimpleNamespace(eos_token_id=end),
        )
        return trainer, trainer._rollout(trainer.train_dataset)

    return make


def completions_in_order(case) -> list[list[int]]:
    """Of the fixture's prompts: TRL shuffles rows, so each answer is found by what only it begins with."""
    unique = {tuple(answer): None for answer in completions(case)}
    first = {3: 0, 5: 1, 10: 2, 4: 3}
    return [list(answer) for answer in sorted(unique, key=lambda answer: first[answer[0]])]


@pytest.mark.parametrize("case", [FULL, WHITENED], ids=["k1", "k3 and whitened rewards"])
def test_what_is_computed_of_the_answers_equals_trl(made, case):
    """Score, KL penalty, missing end token, values, returns, whitened advantages."""
    _, experience = made(case)
    near(experience.logps.tolist(), case["logprobs"])
    near(experience.values.tolist(), case["values"])
    near(experience.returns.tolist(), case["returns"])
    near(experience.advantages.tolist(), case["whitened"])


@pytest.mark.parametrize("case", [FULL, WHITENED], ids=["k1", "k3 and whitened rewards"])
def test_loss_and_gradients_equal_trl_in_two_steps_of_which_the_second_is_clipped(made, case):
    trainer, experience = made(case)
    experience.tokens = experience.mask.sum().float()
    for step in case["steps"]:
        trainer.metrics.clear()
        loss = trainer.compute_loss(trainer.model, experience)
        loss.backward()
        near(trainer.metrics["loss/policy_avg"], [step["policy_loss"]])
        near(trainer.metrics["loss/value_avg"], [step["value_loss"]])
        near(loss.item(), step["loss"])
        tokens = experience.mask.sum().item()
        near(trainer.metrics["policy/clipfrac_avg"], [step["ratios_clipped"] / tokens])
        near(trainer.metrics["val/clipfrac_avg"], [step["values_clipped"] / tokens])
        ours, head = gradients(trainer.model.policy), gradients(trainer.model.value_head)["weight"]
        values = {**gradients(trainer.model.value_model), "score.weight": head}
        assert ours.keys() == step["policy_gradients"].keys()
        for name, expected in step["policy_gradients"].items():
            near(ours[name], expected)
        for name, expected in step["value_gradients"].items():
            near(values[name], expected)
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if name != "value_head.bias":  # TRL's head has none
                    parameter -= TRL["learning_rate"] * parameter.grad
                parameter.grad = None
    assert case["steps"][1]["ratios_clipped"]
    assert case["steps"][1]["values_clipped"]


def test_an_answer_that_ended_gets_its_score_at_another_token_than_in_trl(made):
    """TRL adds the score one token after the end token, at a position with a value of its own, unless the end token is
    the last that fits. Ours always adds it at the end token. With TRL's mask and position, ours equals TRL's.
    """
    trainer, experience = made(ENDED)
    mask = T([[1.0] * len(answer) + [0.0] * (5 - len(answer)) for answer in completions(ENDED)])
    near((experience.logps * mask).tolist(), (T(ENDED["logprobs"]) * mask).tolist())
    near((experience.values * mask).tolist(), (T(ENDED["values"]) * mask).tolist())

    one_more = T([[1.0] * min(5, len(a) + 1) + [0.0] * max(0, 4 - len(a)) for a in completions(ENDED)])
    kl = losses.kl_penalty(T(ENDED["logprobs"]), T(ENDED["ref_logprobs"])) * mask
    rewards = losses.token_rewards(T(ENDED["scores"]), kl, one_more, TRL["options"]["kl_coef"])
    near(rewards.tolist(), ENDED["rewards"])
    gamma, lam = TRL["options"]["gamma"], TRL["options"]["lam"]
    advantages, returns = losses.gae(rewards, T(ENDED["values"]), one_more, gamma, lam)
    near(advantages.tolist(), ENDED["advantages"])
    near((returns * one_more).tolist(), (T(ENDED["returns"]) * one_more).tolist())
    whitened = losses.whiten(advantages, mask, *trainer._moments(advantages, mask))
    near(whitened.tolist(), ENDED["whitened"])


def test_without_discount_the_position_of_the_score_does_not_matter():
    """With gamma and lambda of 1 the value of the state after the end token cancels out."""
    mask = T([[1.0] * len(answer) + [0.0] * (5 - len(answer)) for answer in completions(ENDED)])
    kl = losses.kl_penalty(T(ENDED["logprobs"]), T(ENDED["ref_logprobs"])) * mask
    ours = losses.token_rewards(T(ENDED["scores"]), kl, mask, TRL["options"]["kl_coef"])
    values, everywhere = T(ENDED["values"]), torch.ones(4, 5)
    here = losses.gae(ours, values, mask, 1.0, 1.0)[0]
    behind = losses.gae(T(ENDED["rewards"]), values, everywhere, 1.0, 1.0)[0]
    near((here * mask).tolist(), (behind * mask).tolist())
