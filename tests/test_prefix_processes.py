"""Two processes. With DistributedDataParallel, their gradients are those of one process with both halves of the batch;
with FSDP, they answer held-out prompts together, as one process does.
"""

from __future__ import annotations

import copy
import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from rlhf_core.catalog import Catalog
from rlhf_core.config import resolve
from rlhf_core.prefix import Group, completion_logps, padded, share, shares, sharing
from rlhf_core.training import answering, evaluation, launch
from rlhf_core.training.run import prepare
from rlhf_core.ui.screen import Screen

pytestmark = pytest.mark.slow

BATCHES = [  # of each process two, of which the first's gradient waits for the second's
    [[Group([5, 6, 7], [[8, 9], [10, 11, 12, 13]])], [Group([20, 21], [[30], [31, 32, 33]]), Group([22], [[23, 24]])]],
    [[Group([40, 41, 42, 43, 44, 45], [[8], [9, 10, 11, 12, 13]])], [Group([50], [[14, 15], [16]])]],
]


def one_of_two(folder: Path, model: Path, run: dict) -> None:
    """Both comparisons, in each of two processes, each of which writes what it found."""
    distributed.init_process_group("gloo", timeout=timedelta(seconds=100))
    rank = distributed.get_rank()
    cases = [(what, way) for what in ("model", "adapter") for way in ("packed", "two_phase")]
    gradients = [[rank, *case, *gradients_apart(rank, str(model), *case)] for case in cases]
    found = gradients, *with_shared_parameters(rank, model, run)
    (folder / f"results-{rank}").write_text(json.dumps(found))
    distributed.barrier()
    launch.end_process(0)


def gradients_apart(rank: int, folder: str, what: str, way: str) -> tuple[float, int]:
    """How far the gradients are from those of one process, relative to their norm, and how many there are."""

    def loss(model, groups):
        return completion_logps(model, groups, temperature=0.7).logps.sum()

    sharing.fits = lambda model, groups: way == "packed"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    assert share(model) is None
    if what == "adapter":
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    alone = copy.deepcopy(model)
    (sum(loss(alone, groups) for mine in BATCHES for groups in mine) / 2).backward()
    wrapped = DistributedDataParallel(model)
    assert all(shares(wrapped, groups) for groups in BATCHES[rank])
    for _ in range(2):  # the second step goes well only if the first came to its end
        wrapped.zero_grad()
        with wrapped.no_sync():
            loss(wrapped, BATCHES[rank][0]).backward()
        loss(wrapped, BATCHES[rank][1]).backward()
    pairs = [(a.grad, b.grad) for a, b in zip(model.parameters(), alone.parameters(), strict=True) if a.requires_grad]
    apart = [((one - other).norm() / other.norm()).item() for one, other in pairs]
    return max(apart), len(apart)


def with_shared_parameters(rank: int, folder: Path, values: dict) -> tuple[list, float]:
    """What held-out prompts are answered, and how far log-probabilities are from those of one process."""
    config, method = resolve(values, Catalog())
    run = prepare(config, method, Catalog())
    run.folder = Path(values["output_dir"]).parent
    asked, evaluate = [], run.rewards.evaluate
    run.rewards.evaluate = lambda batch: (asked.append(len(batch)), evaluate(batch))[1]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    alone = [one.completion for one in answering.sample_together(model, run, 0, 1)]
    groups = BATCHES[rank][0] * (1 if rank == 0 else 3)
    plain = completion_logps(model, groups).logps
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    arguments = TrainingArguments(str(run.folder), use_cpu=True, report_to=[])
    trainer = Trainer(model=model, args=arguments, processing_class=run.tokenizer)
    held_out = evaluation.HeldOut(trainer, method, run, Screen(quiet=True), None)
    prompts, rollout = [], answering.rollout
    answering.rollout = lambda model, some, *more: (prompts.append(len(some)), rollout(model, some, *more))[1]
    found = held_out.evaluate()
    model(input_ids=torch.tensor([[5 + rank, 6, 7]])).logits.sum().backward()  # goes well only if both came this far
    padded.TOKEN_BUDGET = 8
    with torch.no_grad():  # the rows of one process are more than that
        apart = (completion_logps(model, groups).logps - plain).abs().max().item()
    ends = range(2048) if rank == 0 else []  # GRPO's answers are each process's own, and end at different times
    longer = model.generate(torch.tensor([[5, 6]]), max_new_tokens=5, eos_token_id=list(ends) or None, do_sample=False)
    texts = [run.template.decode(ids) for ids in alone]
    return [found.answers, texts, found.tokens, asked, prompts, longer.shape[1]], apart


ROWS = [{"prompt": f"Question {i}?", "answer": "a"} for i in range(40)]


@pytest.fixture(scope="module")
def written(tmp_path_factory, tiny_model, in_two_processes):
    """What each process wrote."""
    folder = tmp_path_factory.mktemp("processes")
    data = folder / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    run = {"method": "grpo", "reward": ["length"], "model": str(tiny_model), "data": [str(data)], "num_eval_prompts": 3}
    run |= {"distributed": "fsdp", "num_processes": 2, "max_completion_length": 8, "output_dir": str(folder / "out")}
    run |= {"per_device_train_batch_size": 2, "num_generations": 2}
    in_two_processes(lambda: one_of_two(folder, tiny_model, run))
    return [json.loads((folder / f"results-{rank}").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("what", ["model", "adapter"])
@pytest.mark.parametrize("way", ["packed", "two_phase"])
def test_gradients_of_two_processes_equal_those_of_one(written, what, way):
    found = {(rank, what, way): rest for lines, *_ in written for rank, what, way, *rest in lines}
    for rank in (0, 1):
        apart, weights = found[rank, what, way]
        assert weights > 10
        assert apart < 1e-6


def test_processes_that_share_parameters_answer_held_out_prompts_together(written):
    """Alone, the first would wait for the others' parameters, and they for its gradients. Each answers a part; the first
    one scores all.
    """
    (answers, alone, tokens, asked, two, longer), (others, *_, never, one, longest) = (lines for _, lines, _ in written)
    assert answers == alone
    assert (len(tokens), asked, others, never) == (3, [3], [], [])
    assert (two, one) == ([2], [1])
    assert (longer, longest) == (3, 7)  # two and an end; two and five more


def test_processes_that_share_parameters_do_as_many_passes_whatever_their_rows(written):
    assert max(apart for *_, apart in written) < 1e-5
