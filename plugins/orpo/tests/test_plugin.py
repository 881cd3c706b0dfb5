"""ORPO: its loss by hand and against the formula, how steps are divided, and runs that train, stop and go on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from rlhf_method_orpo import NEAREST, ORPO, log_odds_of, orpo_loss
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from rlhf_core import PairLogps, PairTrainer
from rlhf_core.catalog import Catalog
from rlhf_core.config import resolve
from rlhf_core.training.run import train

T = torch.tensor
PAIRS = [  # of different lengths, so that both sides are padded
    {"prompt_ids": [5, 9, 20], "chosen_ids": [7, 8, 11, 2], "rejected_ids": [12, 2]},
    {"prompt_ids": [6], "chosen_ids": [30, 2], "rejected_ids": [14, 15, 16, 17, 2]},
    {"prompt_ids": [40, 41, 42, 43, 44], "chosen_ids": [50], "rejected_ids": [51, 52, 2]},
]


def test_the_defaults_are_those_of_the_guide():
    options = ORPO.Options()
    assert (options.num_train_epochs, options.learning_rate, options.lambda_orpo) == (3, 1e-5, 0.1)
    assert (options.max_prompt_length, options.max_completion_length) == (1024, 512)
    assert ORPO.Options(max_source_length=7).max_prompt_length == 7


# The loss


def pair(chosen: float, rejected: float, chosen_tokens: float = 1, rejected_tokens: float = 1) -> PairLogps:
    return PairLogps(*(T([float(value)]) for value in (chosen, rejected, chosen_tokens, rejected_tokens)))


def test_the_loss_by_hand():
    """Mean log-probabilities ln 0.5 (odds 1) and ln 0.2 (odds 0.25): the ratio is 4, and -log sigmoid(ln 4) = ln 1.25."""
    half, fifth = math.log(0.5), math.log(0.2)
    losses, metrics = orpo_loss(pair(2 * half, 3 * fifth, 2, 3), 0.1)
    assert losses.item() == pytest.approx(math.log(2) + 0.1 * math.log(1.25))
    expected = {"nll_loss": math.log(2), "log_odds_ratio": math.log(1.25), "log_odds_chosen": math.log(4)}
    expected |= {"logps/chosen": half, "logps/rejected": fifth, "rewards/margins": 0.1 * math.log(2.5)}
    expected |= {"rewards/chosen": 0.1 * half, "rewards/rejected": 0.1 * fifth, "rewards/accuracies": 1.0}
    for name, value in expected.items():
        assert metrics[name].item() == pytest.approx(value), name


def test_answers_that_are_alike_cost_ln_2():
    assert orpo_loss(pair(-1.5, -1.5), 1.0)[1]["log_odds_ratio"].item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("chosen", [0.0, -1e-30, -1e-9, -1e-7, -1e-3, -1.0, -50.0, -1e4, -1e30])
@pytest.mark.parametrize("rejected", [0.0, -1e-30, -1e-9, -1e-7, -1e-3, -1.0, -50.0, -1e4, -1e30])
def test_extreme_probabilities_give_finite_losses_and_gradients(chosen, rejected):
    logps = [T([value], requires_grad=True) for value in (chosen, rejected)]
    losses, metrics = orpo_loss(PairLogps(*logps, torch.ones(1), torch.ones(1)), 0.1)
    losses.sum().backward()
    assert all(torch.isfinite(value).all() for value in (losses, *metrics.values()))
    assert all(torch.isfinite(value.grad).all() for value in logps)


@pytest.mark.parametrize("logp", [-1e-7, -1e-6, -1e-4, -0.01, -0.5, -0.7, -5.0, -20.0, -100.0])
def test_log_odds_in_float32_are_those_in_float64(logp):
    exact = logp - math.log(-math.expm1(logp))
    assert log_odds_of(T(logp)).item() == pytest.approx(exact, rel=1e-6)


def test_sure_and_surer_answers_have_the_same_odds():
    assert log_odds_of(T([0.0, NEAREST])).diff().item() == 0


@pytest.fixture
def trainer(tiny_model, tmp_path):
    """trainer(rows, option=…) -> a trainer with ORPO's loss on the two-layer model without dropout."""

    def make(rows=PAIRS, **options) -> PairTrainer:
        import datasets

        values = {"max_steps": 1, "learning_rate": 1e-2, "max_grad_norm": 0, "optim": "sgd", "logging_steps": 1}
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "out"), remove_unused_columns=False, use_cpu=True, report_to=[], disable_tqdm=True,
            save_strategy="no", **{**values, **options},
        )  # fmt: skip
        data = datasets.Dataset.from_list(rows)
        return PairTrainer(
            model=AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32),
            args=arguments,
            loss=lambda pairs: orpo_loss(pairs, 0.5),
            train_dataset=data,
            eval_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(tiny_model),
        )

    return make


def papers_loss(model, pairs, lam: float) -> torch.Tensor:
    """The mean over pairs of equation 6, an answer at a time, with probabilities as they are written there."""

    def logp(prompt: list[int], answer: list[int]) -> torch.Tensor:
        logits = model(torch.tensor([prompt + answer])).logits[0]
        probabilities = torch.softmax(logits.double(), dim=-1)
        at = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        return sum(torch.log(probabilities[i, token]) for i, token in zip(at, answer, strict=True)) / len(answer)

    total = 0
    for pair in pairs:
        chosen = logp(pair["prompt_ids"], pair["chosen_ids"])
        rejected = logp(pair["prompt_ids"], pair["rejected_ids"])
        odds = [torch.exp(value) / (1 - torch.exp(value)) for value in (chosen, rejected)]
        total = total - chosen - lam * torch.log(torch.sigmoid(torch.log(odds[0] / odds[1])))
    return total / len(pairs)


def test_loss_and_gradients_equal_those_of_the_paper(trainer):
    ours = trainer()
    model = ours.model.double()
    loss = ours.compute_loss(model, ours.data_collator(PAIRS))
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    expected = papers_loss(model, PAIRS, lam=0.5)
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=0)
    assert max(weight.grad.abs().max() for weight in model.parameters()) > 0.1
    for name, weight in model.named_parameters():
        torch.testing.assert_close(gradients[name], weight.grad, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize(("size", "passes"), [(3, 1), (2, 2), (1, 3)])
def test_a_step_is_the_mean_over_its_pairs_however_it_is_divided(trainer, size, passes):
    """Also where its last forward pass is smaller, as with passes of two pairs of three."""
    ours = trainer(per_device_train_batch_size=size, gradient_accumulation_steps=passes)
    before = {name: weight.detach().clone() for name, weight in ours.model.named_parameters()}
    loss = papers_loss(ours.model, PAIRS, lam=0.5)
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in ours.model.named_parameters()}
    ours.model.zero_grad()
    ours.train()
    logged = ours.state.log_history[0]
    assert logged["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert logged["loss"] == pytest.approx(logged["nll_loss"] + 0.5 * logged["log_odds_ratio"], abs=1e-5)
    for name, weight in ours.model.named_parameters():
        torch.testing.assert_close(weight, before[name] - 1e-2 * gradients[name], atol=1e-6, rtol=0, msg=name)


def test_held_out_pairs_are_measured_exactly_in_passes_of_any_size(trainer):
    expected = papers_loss(trainer().model.eval(), PAIRS, lam=0.5).item()
    for size in (1, 2, 3, 8):
        measured = trainer(per_device_eval_batch_size=size).evaluate()
        assert measured["eval_loss"] == pytest.approx(expected, abs=1e-5)
        gap = measured["eval_logps/chosen"] - measured["eval_logps/rejected"]
        assert measured["eval_rewards/margins"] == pytest.approx(0.5 * gap, abs=1e-6)
        assert measured["eval_rewards/accuracies"] in (0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1)
        assert math.isfinite(measured["eval_log_odds_chosen"])


# Runs


@pytest.fixture
def run(tmp_path, tiny_model, monkeypatch):
    """run("name", max_steps=3) -> the run's folder; resume=True to go on. Of 40 pairs some are held out."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "prompt": f"What helps against symptom {i}?",
            "chosen": f"Rest, {i} times.",
            "rejected": "No idea. " * (i % 3 + 1),
        }
        for i in range(40)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def go(name: str, resume: bool = False, **values) -> Path:
        shared = {
            "method": "orpo",
            "model": str(tiny_model),
            "data": "data.jsonl",
            "output_dir": name,
            "max_steps": 3,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_completion_length": 32,
            "logging_steps": 1,
            "num_eval_prompts": 2,
            "gradient_checkpointing": False,
        }
        config, method = resolve({**shared, **values}, Catalog())
        assert train(config, method, Catalog(), resume=resume) == 0
        return Path(name)

    return go


def metrics(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_a_run_trains_logs_and_measures(run, tiny_model):
    folder = run("out")
    weights, before = load_file(folder / "model" / "model.safetensors"), load_file(tiny_model / "model.safetensors")
    assert any(not torch.equal(weights[name], before[name]) for name in weights)
    logged = metrics(folder)
    assert [line["step"] for line in logged] == [1, 2, 3]
    wanted = {"loss", "nll_loss", "log_odds_ratio", "log_odds_chosen", "rewards/accuracies", "rewards/margins"}
    assert wanted | {"logps/chosen", "logps/rejected", "grad_norm"} <= logged[0].keys()
    for line in logged:
        assert line["loss"] == pytest.approx(line["nll_loss"] + 0.1 * line["log_odds_ratio"], abs=1e-5)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    for when in ("before", "after"):
        assert evaluation[when]["metrics"].keys() == {
            "loss",
            "rewards/accuracies",
            "rewards/margins",
            "log_odds_chosen",
        }
    assert evaluation["after"]["metrics"]["loss"] < evaluation["before"]["metrics"]["loss"]


def test_lora_with_gradient_checkpointing_trains_the_adapter(run):
    folder = run("out", lora=True, gradient_checkpointing=True)
    adapter = load_file(folder / "model" / "adapter_model.safetensors")
    assert any(weight.any() for name, weight in adapter.items() if "lora_B" in name)
    assert not (folder / "model" / "model.safetensors").exists()


def test_the_loss_has_the_end_token_once_and_no_token_of_the_prompt(run, monkeypatch):
    seen = []
    original = PairTrainer.losses

    def losses(self, model, pairs):
        seen.extend(pair.group for pair in pairs)
        return original(self, model, pairs)

    monkeypatch.setattr(PairTrainer, "losses", losses)
    folder = run("out")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    for group in seen:
        for answer in group.completions:
            assert [token == tokenizer.eos_token_id for token in answer] == [False] * (len(answer) - 1) + [True]
        text = tokenizer.decode(group.completions[0])
        assert text.startswith("Rest, ")
        assert text.endswith(" times." + tokenizer.eos_token)
