"""Answers to the held-out prompts: by one process, or, where parameters are split between several, by all of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

from rlhf_core.data.encoding import tools_of
from rlhf_core.data.projecting import prompt_of
from rlhf_core.method import SAMPLING, Method
from rlhf_core.prefix import Rollout, Sampling, eos_token_ids, rollout
from rlhf_core.unused import SPLIT

if TYPE_CHECKING:
    from rlhf_core.training.run import Run


def asked(run: Run) -> list[dict[str, Any]]:
    """The held-out rows that have a prompt: plain text has none."""
    return [row for row in run.held_out if prompt_of(row)]


def answers(trainer: Any, method: Method, run: Run) -> list[Rollout]:
    """One answer to each prompt, by the model as it is now."""
    sharded = run.config.distributed in SPLIT
    with trainer.accelerator.autocast(), _whole(trainer) if sharded else nullcontext():
        model = method.policy(trainer)
        if sharded:
            return sample_together(model, run, trainer.args.process_index, trainer.args.world_size)
        return sample(model, run)


def sample(model: Any, run: Run) -> list[Rollout]:
    """One answer to each prompt. The random state is restored, so that the evaluation does not change the run."""
    options = run.options
    prompts = _batches(run, options.per_device_train_batch_size * options.gradient_accumulation_steps)
    return [answer for batch in _sampled(model, run, prompts, [options.seed]) for answer in batch]


def sample_together(model: Any, run: Run, rank: int, processes: int) -> list[Rollout]:
    """The same by all of several processes, which take part in each other's passes: each samples as many of the
    batches, where there are too few the first one again. A batch has random numbers of its own, so that answers don't
    depend on who samples it.
    """
    batches = _batches(run, run.options.per_device_train_batch_size)  # or its passes may not fit into memory
    mine = range(rank, -(-len(batches) // processes) * processes, processes)
    prompts = [batches[number if number < len(batches) else 0] for number in mine]
    sampled = gather_object([_sampled(model, run, prompts, [run.options.seed + number for number in mine])])
    return [answer for number in range(len(batches)) for answer in sampled[number % processes][number // processes]]


def _batches(run: Run, size: int) -> list[list[list[int]]]:
    """The prompts' token ids, so many at a time."""
    ids = [run.template.prompt_ids(prompt_of(row), tools_of(row)) for row in asked(run)]
    return [ids[start : start + size] for start in range(0, len(ids), size)]


@torch.no_grad()
def _sampled(model: Any, run: Run, batches: Sequence[list[list[int]]], seeds: Sequence[int]) -> list[list[Rollout]]:
    """The answers of each batch. `seeds`: of the first batches."""
    settings = run.options.model_dump(include=set(SAMPLING))
    sampling = Sampling(run.options.max_completion_length, eos_token_ids(model, run.tokenizer), **settings)
    found = []
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        for number, prompts in enumerate(batches):
            if number < len(seeds):
                torch.manual_seed(seeds[number])
            found.append(rollout(model, prompts, 1, sampling))
    return found


def _whole(trainer: Any) -> AbstractContextManager[Any]:
    """Within, the model can answer: what DeepSpeed holds in parts is gathered; FSDP does that for each layer."""
    from trl.models import unwrap_model_for_generation

    settings = {"gradient_checkpointing_kwargs": trainer.args.gradient_checkpointing_kwargs}
    return unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator, **settings)
