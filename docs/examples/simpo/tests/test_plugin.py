"""SimPO: its defaults, its loss by hand and against the formula, and the rules of every method."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from rlhf_method_simpo import SimPO, simpo_loss
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from rlhf_core import PairLogps, PairTrainer
from rlhf_core.catalog import Catalog
from rlhf_core.config import resolve
from rlhf_core.testing import check_method, tiny_model
from rlhf_core.training.run import train

T = torch.tensor
PAIRS = [  # of different lengths, so that means are taken over different numbers of tokens
    {"prompt_ids": [5, 9, 20], "chosen_ids": [7, 8, 11, 2], "rejected_ids": [12, 2]},
    {"prompt_ids": [6], "chosen_ids": [30, 2], "rejected_ids": [14, 15, 16, 17, 2]},
    {"prompt_ids": [40, 41, 42, 43, 44], "chosen_ids": [50], "rejected_ids": [51, 52, 2]},
]


def test_the_defaults_are_those_of_the_paper():
    options = SimPO.Options()
    assert (options.beta, options.gamma, options.learning_rate) == (2.0, 1.0, 1e-6)
    assert (options.lr_scheduler_type, options.warmup_steps, options.num_train_epochs) == ("cosine", 0.1, 1)


@pytest.mark.parametrize("bad", [{"beta": 0}, {"gamma": -1}, {"beta": float("nan")}])
def test_invalid_scales_and_margins_are_refused(bad):
    with pytest.raises(ValidationError):
        SimPO.Options(**bad)


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        (-1.0, -1.5, math.log(2)),  # 2 x 0.5 is the margin: an even chance
        (-1.0, -1.5 - math.log(3) / 2, math.log(4 / 3)),  # log 3 above it: 3 to 1
        (-1.0, -1.0, math.log(1 + math.e)),  # no difference: the margin alone
    ],
)
def test_the_loss_by_hand(chosen, rejected, expected):
    """beta 2, gamma 1: the loss is -log sigmoid(2 chosen - 2 rejected - 1)."""
    losses, metrics = simpo_loss(PairLogps(T([4 * chosen]), T([2 * rejected]), T([4.0]), T([2.0])), 2.0, 1.0)
    assert losses.item() == pytest.approx(expected)
    assert metrics["rewards/margins"].item() == pytest.approx(2 * (chosen - rejected))


@pytest.mark.parametrize(("chosen", "rejected"), [(0.0, -1e4), (-1e4, 0.0), (-1e4, -1e4)])
def test_extreme_probabilities_give_finite_losses_and_gradients(chosen, rejected):
    logps = [T([value], requires_grad=True) for value in (chosen, rejected)]
    losses, _ = simpo_loss(PairLogps(*logps, T([1.0]), T([1.0])), 2.0, 1.0)
    losses.sum().backward()
    assert all(torch.isfinite(value).all() for value in (losses, logps[0].grad, logps[1].grad))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def trainer(model_folder, tmp_path):
    """trainer(option=…) -> a trainer with SimPO's loss on the two-layer model."""

    def make(**options) -> PairTrainer:
        import datasets

        fixed = {"output_dir": str(tmp_path / "out"), "remove_unused_columns": False, "use_cpu": True, "report_to": []}
        data = datasets.Dataset.from_list(PAIRS)
        return PairTrainer(
            model=AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32),
            args=TrainingArguments(**fixed, **options),
            loss=lambda pairs: simpo_loss(pairs, beta=2.5, gamma=0.7),
            train_dataset=data,
            eval_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(model_folder),
        )

    return make


def papers_loss(model, pairs, beta: float, gamma: float) -> torch.Tensor:
    """The mean over pairs of equation 6, an answer and a token at a time, in float64."""

    def reward(prompt: list[int], answer: list[int]) -> torch.Tensor:
        probabilities = torch.softmax(model(T([prompt + answer])).logits[0].double(), dim=-1)
        places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        total = sum(torch.log(probabilities[i, token]) for i, token in zip(places, answer, strict=True))
        return beta / len(answer) * total

    losses = []
    for pair in pairs:
        chosen, rejected = (reward(pair["prompt_ids"], pair[side]) for side in ("chosen_ids", "rejected_ids"))
        losses.append(-torch.log(torch.sigmoid(chosen - rejected - gamma)))
    return sum(losses) / len(losses)


def test_loss_and_gradients_equal_those_of_the_paper(trainer):
    ours = trainer()
    model = ours.model.double()
    loss = ours.compute_loss(model, ours.data_collator(PAIRS))
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    expected = papers_loss(model, PAIRS, beta=2.5, gamma=0.7)
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=0)
    assert max(weight.grad.abs().max() for weight in model.parameters()) > 0.1
    for name, weight in model.named_parameters():
        torch.testing.assert_close(gradients[name], weight.grad, atol=1e-5, rtol=0, msg=name)


def test_a_step_is_the_mean_over_its_pairs_if_its_last_pass_is_smaller(trainer):
    values = {"max_steps": 1, "learning_rate": 1e-2, "max_grad_norm": 0, "optim": "sgd", "logging_steps": 1}
    ours = trainer(**values, per_device_train_batch_size=2, gradient_accumulation_steps=2, save_strategy="no")
    before = {name: weight.detach().clone() for name, weight in ours.model.named_parameters()}
    loss = papers_loss(ours.model, PAIRS, beta=2.5, gamma=0.7)
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in ours.model.named_parameters()}
    ours.model.zero_grad()
    ours.train()
    assert ours.state.log_history[0]["loss"] == pytest.approx(loss.item(), abs=1e-5)
    for name, weight in ours.model.named_parameters():
        torch.testing.assert_close(weight, before[name] - 1e-2 * gradients[name], atol=1e-6, rtol=0, msg=name)


def test_held_out_pairs_are_measured_in_passes_of_any_size(trainer):
    expected = papers_loss(trainer().model.eval(), PAIRS, beta=2.5, gamma=0.7).item()
    for size in (1, 2, 3):
        measured = trainer(per_device_eval_batch_size=size).evaluate()
        assert measured["eval_loss"] == pytest.approx(expected, abs=1e-5)
        gap = measured["eval_logps/chosen"] - measured["eval_logps/rejected"]
        assert measured["eval_rewards/margins"] == pytest.approx(2.5 * gap, abs=1e-5)


def test_a_run_learns_which_answer_is_preferred(tmp_path, model_folder):
    rows = [{"prompt": f"Symptom {i}?", "chosen": f"Rest, {i} times.", "rejected": "No idea."} for i in range(40)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {
        "method": "simpo",
        "model": str(model_folder),
        "data": str(tmp_path / "data.jsonl"),
        "output_dir": str(tmp_path / "run"),
        "max_steps": 6,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "logging_steps": 1,
        "num_eval_prompts": 4,
        "max_completion_length": 32,
    }
    config, method = resolve(values, Catalog())
    assert train(config, method, Catalog()) == 0
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["after"]["metrics"]["loss"] < evaluation["before"]["metrics"]["loss"]
    assert evaluation["after"]["metrics"]["rewards/accuracies"] == 1


def test_conforms():
    """The rules of every method: checkpoints, resuming, saving, and that a step changes what it should."""
    check_method("simpo")
