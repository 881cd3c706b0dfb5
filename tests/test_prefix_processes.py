"""Two processes. With DistributedDataParallel, their gradients are those of one process with both halves of the batch;
with FSDP, they answer held-out prompts together, as one process does.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

# Writes, for each case, how far the gradients are from those of one process, relative to their norm.
WORKER = """
import copy
import json
import sys
from datetime import timedelta
from pathlib import Path
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

distributed.init_process_group("gloo", timeout=timedelta(seconds=100))
rank = distributed.get_rank()
batches = [  # of each process two, of which the first's gradient waits for the second's
    [[Group([5, 6, 7], [[8, 9], [10, 11, 12, 13]])], [Group([20, 21], [[30], [31, 32, 33]]), Group([22], [[23, 24]])]],
    [[Group([40, 41, 42, 43, 44, 45], [[8], [9, 10, 11, 12, 13]])], [Group([50], [[14, 15], [16]])]],
]
results = []
loss = lambda model, groups: completion_logps(model, groups, temperature=0.7).logps.sum()
for what in ("model", "adapter"):
    for way in ("packed", "two_phase"):
        sharing.fits = lambda model, groups: way == "packed"
        model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float64)
        assert share(model) is None
        if what == "adapter":
            torch.manual_seed(0)
            model = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
        alone = copy.deepcopy(model)
        (sum(loss(alone, groups) for mine in batches for groups in mine) / 2).backward()
        wrapped = DistributedDataParallel(model)
        assert all(shares(wrapped, groups) for groups in batches[rank])
        for _ in range(2):  # the second step goes well only if the first came to its end
            wrapped.zero_grad()
            with wrapped.no_sync():
                loss(wrapped, batches[rank][0]).backward()
            loss(wrapped, batches[rank][1]).backward()
        pairs = [(a.grad, b.grad) for a, b in zip(model.parameters(), alone.parameters()) if a.requires_grad]
        apart = [((one - other).norm() / other.norm()).item() for one, other in pairs]
        results.append([rank, what, way, max(apart), len(apart)])

config, method = resolve(json.loads(sys.argv[3]), Catalog())
run = prepare(config, method, Catalog())
run.folder = Path(sys.argv[2]).parent
asked, evaluate = [], run.rewards.evaluate
run.rewards.evaluate = lambda batch: (asked.append(len(batch)), evaluate(batch))[1]
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
alone = [one.completion for one in answering.sample_together(model, run, 0, 1)]
groups = batches[rank][0] * (1 if rank == 0 else 3)
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
held_out = [found.answers, [run.template.decode(ids) for ids in alone], found.tokens, asked, prompts, longer.shape[1]]
Path(f"{sys.argv[2]}-{rank}").write_text(json.dumps([results, held_out, apart]))
distributed.barrier()
launch.end_process(0)
"""


ROWS = [{"prompt": f"Question {i}?", "answer": "a"} for i in range(40)]


@pytest.fixture(scope="module")
def written(tmp_path_factory, tiny_model):
    """What each process wrote."""
    worker = tmp_path_factory.mktemp("processes") / "worker.py"
    worker.write_text(WORKER)
    data = worker.with_name("data.jsonl")
    data.write_text("\n".join(map(json.dumps, ROWS)))
    run = {"method": "grpo", "reward": ["length"], "model": str(tiny_model), "data": [str(data)], "num_eval_prompts": 3}
    run |= {
        "distributed": "fsdp",
        "num_processes": 2,
        "max_completion_length": 8,
        "per_device_train_batch_size": 2,
        "num_generations": 2,
        "output_dir": str(data.parent / "out"),
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(worker), str(tiny_model), str(worker.with_name("results")), json.dumps(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(worker.with_name(f"results-{rank}").read_text()) for rank in (0, 1)]


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
