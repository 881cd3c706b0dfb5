"""GRPO with shared prompts is TRL's GRPO: the same answers given to both, losses, gradients and weights are the same."""

from __future__ import annotations

import inspect
import itertools
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from rlhf_method_grpo.trainer import SharedPrefixGRPOTrainer, grouped
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import grpo_trainer

from rlhf_core.prefix import Group, packed, share, sharing, two_phase
from rlhf_core.training import launch

ROWS = [
    {"prompt": [{"role": "user", "content": letter * length}]}
    for length, letter in enumerate("abcdefghijklmnopqrst", 1)
]
LONGEST = 12


def reward(completions, **_):
    return [len(completion[0]["content"]) % 7 / 7 for completion in completions]


def unshuffled(n, _randperm=torch.randperm, **rest):
    """Answers stay in the order they were sampled in: TRL shuffles single ones, we shuffle whole groups."""
    return _randperm(n, **rest) if rest else torch.arange(n)


def make_trainer(kind, lora, *, tiny_model, folder, **arguments):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
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
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    torch.manual_seed(0)
    made = kind(
        model=model,
        args=GRPOConfig(**settings),
        reward_funcs=[reward],
        train_dataset=Dataset.from_list(ROWS),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
        peft_config=adapter,
    )
    if kind is SharedPrefixGRPOTrainer and made.ref_model is not None:
        share(made.accelerator.unwrap_model(made.ref_model))
    return made


@pytest.fixture
def trainer(tmp_path, tiny_model):
    """trainer(class, lora, **training arguments)"""
    return partial(make_trainer, tiny_model=tiny_model, folder=tmp_path)


def given_answers(made, seed=5):
    """Answers of 1 to LONGEST tokens from a generator, whatever the model; some end, some are cut."""
    generator = torch.Generator().manual_seed(seed)

    def answers(prompt_ids, *args, **rest):
        sizes = torch.randint(1, LONGEST + 1, (len(prompt_ids),), generator=generator).tolist()
        drawn = [torch.randint(300, 2000, (size,), generator=generator).tolist() for size in sizes]
        return [ids if len(ids) == LONGEST else [*ids[:-1], made.eos_token_ids[0]] for ids in drawn], None

    made._generate_single_turn = answers


def trained(made):
    made.train()
    steps = [entry for entry in made.state.log_history if "loss" in entry]
    return steps, {
        name: weight.detach().clone() for name, weight in made.model.named_parameters() if weight.requires_grad
    }


def assert_same(start, theirs, ours, kl):
    """Of (logged steps, weights) of TRL and ours."""
    (their_steps, their_weights), (our_steps, our_weights) = theirs, ours
    assert len(our_steps) == 4
    for step, other in zip(our_steps, their_steps, strict=True):
        assert step["loss"] == pytest.approx(other["loss"], abs=1e-6)
        assert step["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
        assert step["entropy"] == pytest.approx(other["entropy"], abs=1e-5)
        if kl:
            assert step["kl"] == pytest.approx(other["kl"], abs=1e-6)
    moved = max((weight - start[name]).abs().max().item() for name, weight in their_weights.items())
    apart = max((weight - our_weights[name]).abs().max().item() for name, weight in their_weights.items())
    assert any(step["grad_norm"] > 1e-3 for step in their_steps)
    assert apart < 1e-4 * moved


CASES = {
    "full": (False, {}),
    "LoRA": (True, {}),
    "full, with a reference": (False, {"beta": 0.1}),
    "LoRA, with a reference": (True, {"beta": 0.1}),
    "two passes over each batch": (False, {"num_iterations": 2}),
    "accumulation": (False, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}),
    "steps apart from batches": (False, {"gradient_accumulation_steps": 2, "steps_per_generation": 4}),
    "all of it": (True, {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "beta": 0.05, "num_iterations": 2}),
    "loss grpo": (False, {"loss_type": "grpo", "gradient_accumulation_steps": 2}),
    "loss dr_grpo": (False, {"loss_type": "dr_grpo", "gradient_accumulation_steps": 2}),
    "loss bnpo": (False, {"loss_type": "bnpo", "gradient_accumulation_steps": 2}),
    "cut answers left out": (False, {"mask_truncated_completions": True, "num_iterations": 2}),
    "temperature": (False, {"temperature": 0.7, "gradient_checkpointing": True}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("case", "way"), [*((case, "packed") for case in CASES), ("full", "two phases"), ("all of it", "two phases")]
)
def test_training_is_trls(trainer, monkeypatch, case, way):
    monkeypatch.setattr(torch, "randperm", unshuffled)
    monkeypatch.setattr(sharing, "fits", lambda model, groups: way == "packed")
    passes, module = [], packed if way == "packed" else two_phase
    real = module.completion_logps
    counted = lambda *args, **rest: passes.append(torch.is_grad_enabled()) or real(*args, **rest)  # noqa: E731
    monkeypatch.setattr(module, "completion_logps", counted)
    lora, arguments = CASES[case]
    results = []
    for kind in (GRPOTrainer, SharedPrefixGRPOTrainer):
        made = trainer(kind, lora, **arguments)
        start = {name: weight.detach().clone() for name, weight in made.model.named_parameters()}
        given_answers(made)
        assert not passes
        results.append(trained(made))
    assert sum(passes) == 4 * arguments.get("gradient_accumulation_steps", 1)  # every loss went this way
    assert_same(start, *results, kl="beta" in arguments)


TWO = ["full, with a reference", "all of it"]


def one_of_two_processes(tiny_model, folder):
    """Both trainers, one after the other, in each of two processes; the first keeps what came of it."""
    torch.randperm = unshuffled
    real, passes = packed.completion_logps, []
    packed.completion_logps = lambda *args, **rest: passes.append(torch.is_grad_enabled()) or real(*args, **rest)
    for case in TWO:
        lora, arguments = CASES[case]
        found = []
        passes.clear()
        for kind in (GRPOTrainer, SharedPrefixGRPOTrainer):
            made = make_trainer(kind, lora, tiny_model=tiny_model, folder=folder, **arguments)
            assert made.accelerator.num_processes == 2
            start = {name: weight.detach().clone() for name, weight in made.model.named_parameters()}
            given_answers(made, seed=5 + made.accelerator.process_index)
            found.append(trained(made))
        assert sum(passes) == 4 * arguments.get("gradient_accumulation_steps", 1)  # as every loss of ours went
        if made.accelerator.is_main_process:
            torch.save((start, *found), Path(folder, case))
    launch.end_process(0)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, tiny_model):
    """The folder with what two processes found."""
    folder = tmp_path_factory.mktemp("two")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    command = [*launcher, __file__, str(tiny_model), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("case", TWO)
def test_training_in_two_processes_is_trls(two_processes, case):
    start, theirs, ours = torch.load(two_processes / case)
    start, their_weights, our_weights = (
        {name.removeprefix("module."): weight for name, weight in weights.items()}
        for weights in (start, theirs[1], ours[1])
    )
    assert_same(start, (theirs[0], their_weights), (ours[0], our_weights), kl=True)


@pytest.mark.parametrize("case", ["LoRA, with a reference", "two passes over each batch", "steps apart from batches"])
def test_training_on_what_was_sampled_is_trls(trainer, monkeypatch, case):
    """The log-probabilities of sampling stand in for old ones; TRL is given the same answers and computes them."""
    monkeypatch.setattr(torch, "randperm", unshuffled)
    lora, arguments = CASES[case]
    arguments = {**arguments, "gradient_checkpointing": True, "learning_rate": 0.01}
    ours = trainer(SharedPrefixGRPOTrainer, lora, **arguments)
    start = {name: weight.detach().clone() for name, weight in ours.model.named_parameters()}
    answers, generate = [], ours._generate_single_turn
    monkeypatch.setattr(
        ours, "_generate_single_turn", lambda *args: answers.append(generate(*args)[0]) or (answers[-1], None)
    )
    found = trained(ours)
    theirs = trainer(GRPOTrainer, lora, **arguments)
    given = iter(answers)
    monkeypatch.setattr(theirs, "_generate_single_turn", lambda *args: (next(given), None))
    assert_same(start, trained(theirs), found, kl="beta" in arguments)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_log_probabilities_of_sampling_are_those_that_trl_computes_again(trainer, monkeypatch, temperature):
    """They stand in for TRL's pass over the same answers, with weights that have not moved since."""
    made = trainer(SharedPrefixGRPOTrainer, False, num_iterations=2, temperature=temperature, top_p=0.9)
    real, pairs = made._get_per_token_logps_and_entropies, []

    def both(model, ids, mask, width, *args, **rest):
        saved, first = made.sampled_logps, real(model, ids, mask, width, *args, **rest)
        if saved is not None and not torch.is_grad_enabled():
            theirs = GRPOTrainer._get_per_token_logps_and_entropies(made, model, ids, mask, width)[0]
            pairs.append((first[0], theirs, mask[:, -width:].bool()))
        return first

    monkeypatch.setattr(made, "_get_per_token_logps_and_entropies", both)
    made.train()
    assert len(pairs) == 2  # four steps, two on each batch
    for ours, theirs, there in pairs:
        torch.testing.assert_close(ours[there], theirs[there], atol=1e-5, rtol=0)
    assert made.sampled_logps is None


@pytest.mark.parametrize(
    "arguments", [{"bf16": True}, {"repetition_penalty": 1.1}], ids=["half precision", "repetition penalty"]
)
def test_sampling_that_is_not_what_training_computes_gives_no_old_log_probabilities(trainer, arguments):
    made = trainer(SharedPrefixGRPOTrainer, False, num_iterations=2, **arguments)
    assert not made._sampling_is_exact()
    assert trainer(SharedPrefixGRPOTrainer, False, num_iterations=2)._sampling_is_exact()


def test_rows_are_grouped_by_their_prompt_and_empty_ones_left_out():
    ids = torch.tensor([[0, 1, 2, 3, 4, 0], [0, 1, 2, 3, 0, 0], [5, 6, 7, 8, 9, 9], [0, 1, 2, 7, 7, 7]])
    there = torch.tensor([[0, 1, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
    groups, rows = grouped(ids, there, 3)
    assert groups == [Group((1, 2), [[3, 4], [7, 7, 7]]), Group((5, 6, 7), [[8, 9, 9]])]
    assert rows == [0, 3, 2]
    assert grouped(ids[1:2], there[1:2], 3) == ([], [])


@pytest.mark.parametrize("left_out", [[], [1], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]])
def test_the_loss_of_hand_made_rows_is_trls(trainer, left_out):
    """Rows whose answer counts for nothing, one, a group, and all."""
    made = trainer(SharedPrefixGRPOTrainer, False)
    made.current_gradient_accumulation_steps = 1
    generator = torch.Generator().manual_seed(0)
    there = (torch.arange(6) < torch.tensor([1, 2, 3, 6, 6, 4, 5, 1])[:, None]).long()
    there[left_out] = 0
    prompts = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]]).repeat_interleave(4, dim=0)
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": (prompts > 0).long(),
        "completion_ids": torch.randint(300, 2000, (8, 6), generator=generator),
        "completion_mask": there,
        "advantages": torch.randn(8, generator=generator),
        "old_per_token_logps": -8 + torch.randn(8, 6, generator=generator) * 0.1,
        "num_items_in_batch": there.sum().clamp(min=1),
    }
    found = []
    for way in (SharedPrefixGRPOTrainer, GRPOTrainer):
        made._get_per_token_logps_and_entropies = way._get_per_token_logps_and_entropies.__get__(made)
        made.model.zero_grad()
        loss = made._compute_loss(made.model, dict(inputs))
        loss.backward()
        found.append((loss.item(), [weight.grad.clone() for weight in made.model.parameters()]))
    (ours, our_slopes), (theirs, their_slopes) = found
    assert ours == pytest.approx(theirs, abs=1e-6)
    for one, other in zip(our_slopes, their_slopes, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm() + 1e-12
    assert any(slope.any() for slope in our_slopes) == (len(left_out) < 8)


PRIVATE = {
    "_generate_single_turn": "prompt_ids images multimodal_fields num_generations has_tool_images",
    "_prepare_inputs": "generation_batch",
    "_generate_and_score_completions": "inputs",
    "_compute_loss": "model inputs",
    "_get_train_sampler": "dataset",
}
FIRST = ["model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy", "compute_aux_loss"]


@pytest.mark.parametrize("name", PRIVATE)
def test_private_methods_of_trl_take_what_we_expect(name):
    for kind in (GRPOTrainer, SharedPrefixGRPOTrainer):
        assert list(inspect.signature(getattr(kind, name)).parameters)[1:] == PRIVATE[name].split()


def test_the_log_probabilities_of_trl_take_what_we_expect():
    """What follows the first seven belongs to images, and is passed on by name."""
    real = inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters
    assert list(real)[1:8] == FIRST
    assert list(inspect.signature(SharedPrefixGRPOTrainer._get_per_token_logps_and_entropies).parameters)[1:8] == FIRST
    assert all(parameter.default is None for parameter in itertools.islice(real.values(), 8, None))


def test_attributes_of_trl_that_we_read_are_there(trainer):
    made = trainer(GRPOTrainer, False, steps_per_generation=2, num_iterations=3)
    assert (made._step, made._buffered_inputs, made.num_iterations, made.num_generations) == (0, None, 3, 4)
    assert made.args.steps_per_generation == 2
    assert (made.temperature, made.top_p, made.repetition_penalty, made.max_completion_length) == (
        1.0,
        1.0,
        1.0,
        LONGEST,
    )
    assert not made._entropy_bonus_enabled
    assert not made.top_k
    assert not made.min_p
    assert made.eos_token_ids
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert "self.args.gradient_accumulation_steps % generate_every != 0" in source  # see _old_logps_are_needed
    assert "shuffle_sequence_dict(generation_batch)" in inspect.getsource(grpo_trainer.GRPOTrainer._prepare_inputs)


if __name__ == "__main__":
    one_of_two_processes(*sys.argv[1:])
