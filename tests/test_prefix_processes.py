"""Two processes with DistributedDataParallel: their gradients are those of one process with both halves of the batch."""

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
from pathlib import Path
import torch
from peft import LoraConfig, get_peft_model
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM
from rlhf_core.prefix import Group, completion_logps, share, shares, sharing
from rlhf_core.training import launch

distributed.init_process_group("gloo")
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
Path(f"{sys.argv[2]}-{rank}").write_text(json.dumps(results))
distributed.barrier()
launch.end_process(0)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory, tiny_model):
    """{(process, model or adapter, way): (distance, number of weights)}"""
    worker = tmp_path_factory.mktemp("processes") / "worker.py"
    worker.write_text(WORKER)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(worker), str(tiny_model), str(worker.with_name("results"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line for rank in (0, 1) for line in json.loads(worker.with_name(f"results-{rank}").read_text())]
    return {(rank, what, way): rest for rank, what, way, *rest in lines}


@pytest.mark.parametrize("what", ["model", "adapter"])
@pytest.mark.parametrize("way", ["packed", "two_phase"])
def test_gradients_of_two_processes_equal_those_of_one(found, what, way):
    for rank in (0, 1):
        apart, weights = found[rank, what, way]
        assert weights > 10
        assert apart < 1e-6
