"""TRL's trainer and ours side by side: the same rows, the same answers, a two-layer model."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from rlhf_method_grpo.trainer import SharedPrefixGRPOTrainer
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from rlhf_core.prefix import share

ROWS = [
    {"prompt": [{"role": "user", "content": letter * length}]}
    for length, letter in enumerate("abcdefghijklmnopqrst", 1)
]
LONGEST = 12


def reward(completions, **_):
    return [len(completion[0]["content"]) % 7 / 7 for completion in completions]


def unshuffled(n, _randperm=torch.randperm, **rest):
    """Answers stay in the order they were sampled in: TRL shuffles single answers, we shuffle full groups."""
    return _randperm(n, **rest) if rest else torch.arange(n)


def make_trainer(kind, lora, *, tiny_model, folder, rewards=(reward,), dtype=torch.float32, dropout=0.0, **arguments):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=dtype)
    if kind is SharedPrefixGRPOTrainer:
        assert share(model) is None
    settings = {
        "output_dir": str(folder),
        "report_to": [],
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": LONGEST,
        "max_steps": 4,
        "logging_steps": 1,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        **arguments,
    }
    adapter = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "lora_dropout": dropout}
    torch.manual_seed(0)
    made = kind(
        model=model,
        args=GRPOConfig(**settings),
        reward_funcs=list(rewards),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
        peft_config=LoraConfig(**adapter, task_type="CAUSAL_LM") if lora else None,
    )
    if kind is SharedPrefixGRPOTrainer and made.ref_model is not None:
        share(made.accelerator.unwrap_model(made.ref_model))
    return made


def given_answers(made, seed=5, *, with_logps=False):
    """Answers of 1 to LONGEST tokens from a generator, whatever the model; some end, some are cut.

    `with_logps`: and log-probabilities beside them, as vLLM returns them, near those of a random model.
    """
    generator = torch.Generator().manual_seed(seed)

    def answers(prompt_ids, *args, **rest):
        sizes = torch.randint(1, LONGEST + 1, (len(prompt_ids),), generator=generator).tolist()
        drawn = [torch.randint(300, 2000, (size,), generator=generator).tolist() for size in sizes]
        ids = [ids if len(ids) == LONGEST else [*ids[:-1], made.eos_token_ids[0]] for ids in drawn]
        uniform = -torch.tensor(float(made.model.config.vocab_size)).log()
        near = [(uniform + 0.3 * torch.randn(size, generator=generator)).tolist() for size in sizes]
        return ids, near if with_logps else None

    made._generate_single_turn = answers


def trained(made):
    """(logged steps, trained weights)"""
    made.train()
    steps = [entry for entry in made.state.log_history if "loss" in entry]
    return steps, {
        name: weight.detach().clone() for name, weight in made.model.named_parameters() if weight.requires_grad
    }


def assert_same(start, theirs, ours, kl, rel=1e-5):
    """Of (logged steps, weights) of TRL and ours. `rel`: of a gradient's norm; 100 times float32's precision or so."""
    (their_steps, their_weights), (our_steps, our_weights) = theirs, ours
    for step, other in zip(our_steps, their_steps, strict=True):
        assert step["loss"] == pytest.approx(other["loss"], rel=rel, abs=rel / 10)
        assert step["grad_norm"] == pytest.approx(other["grad_norm"], rel=rel)
        assert step["entropy"] == pytest.approx(other["entropy"], abs=rel)
        if kl:
            assert step["kl"] == pytest.approx(other["kl"], rel=rel, abs=rel / 10)
    moved = max((weight - start[name]).abs().max().item() for name, weight in their_weights.items())
    apart = max((weight - our_weights[name]).abs().max().item() for name, weight in their_weights.items())
    assert any(step["grad_norm"] > 1e-3 for step in their_steps)
    assert apart < 10 * rel * moved


@pytest.fixture
def trainer(tmp_path, tiny_model):
    """trainer(class, lora, **training arguments)"""
    return partial(make_trainer, tiny_model=tiny_model, folder=tmp_path)


@pytest.fixture
def train_both(trainer, monkeypatch):
    """train_both(lora, arguments, sides) -> for each side the weights at the start, and the result of `trained`."""

    def train(lora, arguments, sides=(GRPOTrainer, SharedPrefixGRPOTrainer), *, vllm=False):
        monkeypatch.setattr(torch, "randperm", unshuffled)
        results = []
        for kind in sides:
            made = trainer(kind, lora, **arguments)
            made.use_vllm = vllm  # without an engine: the answers are given, with log-probabilities
            given_answers(made, with_logps=vllm)
            start = {name: weight.detach().clone() for name, weight in made.model.named_parameters()}
            results.append((start, *trained(made)))
        return results

    return train


@pytest.fixture
def same():
    return assert_same
