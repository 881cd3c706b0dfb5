"""GRPO with shared prompts is TRL's GRPO: the same answers given to both, losses, gradients and weights are the same."""

from __future__ import annotations

import inspect
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rlhf_method_grpo import trainer as trainer_module
from rlhf_method_grpo.trainer import SharedPrefixGRPOTrainer, grouped
from torch.overrides import TorchFunctionMode
from trl import GRPOTrainer
from trl.trainer import grpo_trainer

from rlhf_core.prefix import Group, sharing
from rlhf_core.training import launch

CASES = {
    "full": (False, {}),
    "LoRA": (True, {}),
    "full, with a reference": (False, {"beta": 0.1}),
    "LoRA, with a reference": (True, {"beta": 0.1}),
    "two passes over each batch": (False, {"num_iterations": 2}),
    "accumulation": (False, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}),
    "steps apart from batches": (False, {"gradient_accumulation_steps": 2, "steps_per_generation": 4}),
    "all of it": (True, {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "beta": 0.05, "num_iterations": 2}),
}  # fmt: skip


def passes_with_shared_prompts(setattr):
    """A list that grows with each of them: whether it had a gradient."""
    passes, real = [], trainer_module.completion_logps

    def counted(*args, **rest):
        passes.append(torch.is_grad_enabled())
        return real(*args, **rest)

    setattr(trainer_module, "completion_logps", counted)
    return passes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "way"), [*((case, "packed") for case in CASES), ("full", "two phases"), ("all of it", "two phases")]
)
def test_training_is_trls(train_both, same, monkeypatch, case, way):
    monkeypatch.setattr(sharing, "fits", lambda model, groups: way == "packed")
    passes = passes_with_shared_prompts(monkeypatch.setattr)
    lora, arguments = CASES[case]
    [(start, *theirs)] = train_both(lora, arguments, [GRPOTrainer])
    assert not passes
    [(_, *ours)] = train_both(lora, arguments, [SharedPrefixGRPOTrainer])
    assert sum(passes) == 4 * arguments.get("gradient_accumulation_steps", 1)  # every loss went this way
    same(start, theirs, ours, kl="beta" in arguments)


TWO = ["full, with a reference", "all of it"]


def one_of_two_processes(tiny_model, folder):
    """Both trainers, one after the other, in each of two processes; the first keeps what came of it."""
    from conftest import given_answers, make_trainer, trained, unshuffled  # the folder of this script is on the path

    torch.randperm = unshuffled
    passes = passes_with_shared_prompts(setattr)
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


@pytest.mark.slow
@pytest.mark.parametrize("case", TWO)
def test_training_in_two_processes_is_trls(two_processes, same, case):
    start, theirs, ours = torch.load(two_processes / case)
    start, their_weights, our_weights = (
        {name.removeprefix("module."): weight for name, weight in weights.items()}
        for weights in (start, theirs[1], ours[1])
    )
    same(start, (theirs[0], their_weights), (ours[0], our_weights), kl=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [{}, {"temperature": 0.7}, {"beta": 0.1}, {"pad_to_multiple_of": 8}, {"repetition_penalty": 1.3}]
)
def test_the_log_probabilities_of_sampling_are_those_that_trl_computes_again(trainer, monkeypatch, arguments):
    """They replace TRL's pass over the same answers; the weights have not changed since."""
    made = trainer(SharedPrefixGRPOTrainer, False, num_iterations=2, top_p=0.9, **arguments)
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
    for ours, theirs, mask in pairs:
        torch.testing.assert_close(ours[mask], theirs[mask], atol=1e-5, rtol=0)
    assert made.sampled_logps is None


def test_sampling_that_is_not_what_training_computes_gives_no_old_log_probabilities(trainer):
    made = trainer(SharedPrefixGRPOTrainer, False, num_iterations=2, bf16=True)
    assert not made._sampling_is_exact()
    assert trainer(SharedPrefixGRPOTrainer, False, num_iterations=2)._sampling_is_exact()


class Reads(TorchFunctionMode):
    """What waits for a device to read its numbers."""

    NAMES = ("tolist", "item", "__bool__", "nonzero", "cpu", "numpy", "masked_select")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        masked = (
            function.__name__ == "__getitem__" and isinstance(args[1], torch.Tensor) and args[1].dtype == torch.bool
        )
        if function.__name__ in self.NAMES or masked:
            self.seen.append(function.__name__)
        return function(*args, **(kwargs or {}))


def test_a_batch_is_read_once():
    ids, mask = torch.arange(24).view(4, 6), torch.ones(4, 6, dtype=torch.long)
    with Reads() as reads:
        grouped(ids, mask, 3)
    assert reads.seen == ["tolist", "tolist"]  # tokens, and the mask


def test_rows_are_grouped_by_their_prompt_and_empty_ones_left_out():
    ids = torch.tensor([[0, 1, 2, 3, 4, 0], [0, 1, 2, 3, 0, 0], [5, 6, 7, 8, 9, 9], [0, 1, 2, 7, 7, 7]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
    groups, rows = grouped(ids, mask, 3)
    assert groups == [Group((1, 2), [[3, 4], [7, 7, 7]]), Group((5, 6, 7), [[8, 9, 9]])]
    assert rows == [0, 3, 2]
    assert grouped(ids[1:2], mask[1:2], 3) == ([], [])


@pytest.mark.parametrize("left_out", [[], [1], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]])
def test_the_loss_of_hand_made_rows_is_trls(trainer, left_out):
    """Rows whose answer counts for nothing, one, a group, and all."""
    made = trainer(SharedPrefixGRPOTrainer, False)
    made.current_gradient_accumulation_steps = 1
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(6) < torch.tensor([1, 2, 3, 6, 6, 4, 5, 1])[:, None]).long()
    mask[left_out] = 0
    prompts = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]]).repeat_interleave(4, dim=0)
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": (prompts > 0).long(),
        "completion_ids": torch.randint(300, 2000, (8, 6), generator=generator),
        "completion_mask": mask,
        "advantages": torch.randn(8, generator=generator),
        "old_per_token_logps": -8 + torch.randn(8, 6, generator=generator) * 0.1,
        "num_items_in_batch": mask.sum().clamp(min=1),
    }
    found = []
    for way in (SharedPrefixGRPOTrainer, GRPOTrainer):
        made._get_per_token_logps_and_entropies = way._get_per_token_logps_and_entropies.__get__(made)
        made.model.zero_grad()
        loss = made._compute_loss(made.model, dict(inputs))
        loss.backward()
        found.append((loss.item(), [weight.grad.clone() for weight in made.model.parameters()]))
    (ours, our_gradients), (theirs, their_gradients) = found
    assert ours == pytest.approx(theirs, abs=1e-6)
    for one, other in zip(our_gradients, their_gradients, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm() + 1e-12
    assert any(gradient.any() for gradient in our_gradients) == (len(left_out) < 8)


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
    assert (made.temperature, made.top_p, made.repetition_penalty, made.max_completion_length) == (1.0, 1.0, 1.0, 12)
    assert not made._entropy_bonus_enabled
    assert not made._is_vlm
    assert not made.tools
    assert not made.top_k
    assert not made.min_p
    assert made.eos_token_ids
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert "self.args.gradient_accumulation_steps % generate_every != 0" in source  # see _old_logps_are_needed
    assert "shuffle_sequence_dict(generation_batch)" in inspect.getsource(grpo_trainer.GRPOTrainer._prepare_inputs)


if __name__ == "__main__":
    one_of_two_processes(*sys.argv[1:])
