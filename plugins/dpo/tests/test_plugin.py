"""DPO: the loss is the papers', and the reference is the model that the run starts from."""

from __future__ import annotations

import json
import math

import pytest
import torch
from pydantic import ValidationError
from rlhf_method_dpo import DPO, dpo_loss
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from rlhf_core import PairLogps
from rlhf_core.models.loading import load

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


ROWS = [
    {"prompt": f"Symptom {i}?", "chosen": "Rest and drink. " * (i % 3 + 1), "rejected": f"Run {i} miles."}
    for i in range(24)
]
VALUES = {"method": "dpo", "max_completion_length": 32}


def log_probability(model, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """log pi(answer | prompt): the sum over the answer's tokens, each given all before it."""
    ids_T = torch.tensor(prompt + answer)
    log_probs_TV = model(input_ids=ids_T[None]).logits[0].log_softmax(-1)
    return sum(log_probs_TV[len(prompt) + i - 1, token] for i, token in enumerate(answer))


def papers_loss(policy, reference, rows, beta: float) -> torch.Tensor:
    """Equation 7 of the paper, the mean over the rows."""
    losses = []
    for row in rows:
        with torch.no_grad():
            chosen_ref, rejected_ref = (log_probability(reference, row["prompt_ids"], row[k]) for k in ANSWERS)
        chosen, rejected = (log_probability(policy, row["prompt_ids"], row[k]) for k in ANSWERS)
        losses.append(-logsigmoid(beta * (chosen - chosen_ref) - beta * (rejected - rejected_ref)))
    return torch.stack(losses).mean()


ANSWERS = ("chosen_ids", "rejected_ids")


def disturb(model) -> None:
    """Move the trained weights, so that policy and reference are not the same."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data = parameter.data.double() + 0.02 * noise


def loss_and_gradients(trainer) -> tuple[torch.Tensor, dict[str, torch.Tensor], list[dict]]:
    """The trainer's loss on its first four rows, collated as in training, log-probabilities in float32."""
    rows = [trainer.train_dataset[i] for i in range(4)]
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    loss.backward()
    gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, rows


def agree(trainer, policy, reference, beta: float) -> None:
    loss, gradients, rows = loss_and_gradients(trainer)
    trainer.model.zero_grad()
    expected = papers_loss(policy, reference, rows, beta)
    expected.backward()
    assert abs(loss - torch.tensor(2.0).log()) > 1e-4  # the policy is not the reference any more
    torch.testing.assert_close(loss.double(), expected.detach(), **CLOSE)
    wanted = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    assert len(gradients) == len(wanted) > 0
    for gradient, other in zip(gradients.values(), wanted.values(), strict=True):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, other, **CLOSE)


def test_the_defaults():
    options = DPO.Options()
    assert (options.beta, options.learning_rate, options.loss_type) == (0.1, 5e-6, "sigmoid")
    assert (options.max_prompt_length, options.max_completion_length) == (1024, 512)


def test_options_without_effect_are_refused():
    """These losses have no label smoothing."""
    for loss_type in ("ipo", "hinge"):
        with pytest.raises(ValidationError, match=f"not for {loss_type}"):
            DPO.Options(loss_type=loss_type, label_smoothing=0.1)
        assert DPO.Options(loss_type=loss_type).label_smoothing == 0
    for loss_type in ("sigmoid", "robust"):
        assert DPO.Options(loss_type=loss_type, label_smoothing=0.1).label_smoothing == 0.1


def test_the_older_name_of_sft_weight():
    assert DPO.Options(rpo_alpha=0.5).sft_weight == 0.5


def pair(chosen: float, rejected: float) -> PairLogps:
    """One pair with these log-ratios of policy and reference; the chosen answer has 4 tokens, the rejected one 2."""
    values = (chosen - 8.0, rejected - 6.0, 4.0, 2.0, -8.0, -6.0)
    return PairLogps(*(torch.tensor([value], dtype=torch.float64) for value in values))


@pytest.mark.parametrize(
    ("options", "expected"),
    [  # log-ratios 2 and -1, beta ln 3 / 3: the margin is ln 3, its sigmoid 3/4
        ({}, math.log(4 / 3)),
        ({"label_smoothing": 0.25}, 0.75 * math.log(4 / 3) + 0.25 * math.log(4)),
        ({"loss_type": "robust", "label_smoothing": 0.25}, (0.75 * math.log(4 / 3) - 0.25 * math.log(4)) / 0.5),
        ({"loss_type": "hinge"}, 0.0),  # the margin is above 1
        ({"loss_type": "ipo"}, (2 / 4 + 1 / 2 - 3 / (2 * math.log(3))) ** 2),
        ({"sft_weight": 0.5}, math.log(4 / 3) + 0.5 * 6 / 4),  # six nats over four tokens
    ],
)
def test_the_losses_by_hand(options, expected):
    losses, metrics = dpo_loss(pair(2.0, -1.0), math.log(3) / 3, **options)
    assert losses.item() == pytest.approx(expected)
    assert metrics["rewards/margins"].item() == pytest.approx(math.log(3))
    assert metrics["rewards/accuracies"].item() == 1
    assert dpo_loss(pair(2.0, 1.0), 0.1, **options)[1]["rewards/accuracies"].item() == 1  # by a margin of 0.1
    assert dpo_loss(pair(1.0, 1.0), 0.1, **options)[1]["rewards/accuracies"].item() == 0


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "hinge", "robust"])
def test_extreme_log_ratios_give_finite_losses_and_gradients(loss_type):
    for ratios in ((1e4, -1e4), (-1e4, 1e4), (0.0, 0.0)):
        chosen, rejected = (torch.tensor([value], requires_grad=True) for value in ratios)
        one, nothing = torch.ones(1), torch.zeros(1)
        losses, _ = dpo_loss(PairLogps(chosen, rejected, one, one, nothing, nothing), 0.1, loss_type)
        losses.sum().backward()
        assert all(torch.isfinite(value).all() for value in (losses, chosen.grad, rejected.grad))


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_loss_and_gradients_equal_those_of_the_paper(made_run, tiny_model, beta):
    trainer = DPO().trainer(made_run(beta=beta))
    disturb(trainer.model)
    trainer.reference.copy.double()
    policy = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    policy.load_state_dict(trainer.model.state_dict())
    reference = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    agree(trainer, policy, reference, beta)


def test_with_lora_the_reference_is_the_model_with_the_adapter_off(made_run, tiny_model):
    trainer = DPO().trainer(made_run(lora=True))
    assert trainer.reference.copy is None
    trainer.model.double()
    disturb(trainer.model)
    reference = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    agree(trainer, trainer.model, reference, 0.1)


def trained_adapter(go) -> str:
    """The folder of a trained adapter."""
    code, folder = go(lora=True, output_dir="adapter", max_steps=2, learning_rate=1e-2)
    assert code == 0
    return str(folder / "model")


def test_the_reference_of_an_adapter_is_a_frozen_copy_of_it(go, made_run):
    start = trained_adapter(go)
    prepared = made_run(model=start)
    reference = load(prepared.info, prepared.options.model_copy(update={"lora": False})).double()
    trainer = DPO().trainer(prepared)
    assert trainer.reference.copy is None
    trainer.model.double()
    disturb(trainer.model)
    agree(trainer, trainer.model, reference, 0.1)


def test_the_reference_of_a_merged_adapter_is_merged_too(go, made_run):
    prepared = made_run(model=trained_adapter(go), lora=False)
    policy, reference = (load(prepared.info, prepared.options).double() for _ in range(2))
    trainer = DPO().trainer(prepared)
    disturb(trainer.model)
    trainer.reference.copy.double()
    policy.load_state_dict(trainer.model.state_dict())
    agree(trainer, policy, reference, 0.1)


def test_each_answer_ends_with_one_end_token(made_run):
    trainer = DPO().trainer(made_run(num_eval_prompts=2))
    end = trainer.processing_class.eos_token_id
    for row in [*trainer.train_dataset, *trainer.eval_dataset]:
        for name in ANSWERS:
            assert row[name][-1] == end
            assert row[name].count(end) == 1


def test_held_out_pairs_have_the_metrics_of_training(go):
    code, folder = go(num_eval_prompts=2, max_steps=2, sft_weight=0.5)
    assert code == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured = {name for line in lines for name in line if name.startswith(("rewards/", "logps/", "nll_loss"))}
    assert measured == {
        *("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"),
        *("logps/chosen", "logps/rejected", "nll_loss"),
    }
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert {one["step"] for one in samples} == {1, 2}
    assert measured | {"loss", "entropy"} == samples[0]["metrics"].keys()
    margins = [one["metrics"]["rewards/chosen"] - one["metrics"]["rewards/rejected"] for one in samples]
    assert margins == pytest.approx([one["metrics"]["rewards/margins"] for one in samples], abs=1e-5)
    assert all(one["chosen"] != one["rejected"] and one["prompt"] for one in samples)
    held_out = go.trainers[-1].evaluate()
    assert {f"eval_{name}" for name in measured} <= held_out.keys()
    gap = held_out["eval_rewards/chosen"] - held_out["eval_rewards/rejected"]
    assert held_out["eval_rewards/margins"] == pytest.approx(gap, abs=1e-5)
