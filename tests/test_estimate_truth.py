"""The bytes that `rlhf estimate` counts without values are those that torch's allocator hands out in the same step."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlhf_core.estimate import step
from rlhf_core.estimate.hardware import Device
from rlhf_core.estimate.synthetic import Lengths
from rlhf_core.prefix import decoding, packed

ROWS = Lengths(48, 16)
CPU = Device("a CPU", 64 * 10**9, is_gpu=False, bfloat16=False)
NEVER = (63_999,)  # a token that is not sampled
SHARED = {"max_completion_length": 16, "num_eval_prompts": 0, "gradient_accumulation_steps": 1}
FULL = {"lora": False, "per_device_train_batch_size": 8, **SHARED}
ADAPTER = {
    **{"lora": True, "lora_target_modules": "all-linear", "per_device_train_batch_size": 4, **SHARED},
    **{"gradient_checkpointing": True, "gradient_accumulation_steps": 2},
}


def of_run(method: str, **values):
    """What `rlhf run` makes of these options: (configuration, method, model, catalog)."""
    from rlhf_core.catalog import Catalog
    from rlhf_core.config import resolve
    from rlhf_core.models.loading import inspect
    from rlhf_core.models.resolve import find

    catalog = Catalog()
    given = {"method": method, "max_steps": 2, **values} | ({"reward": "length"} if method in ("grpo", "ppo") else {})
    if method == "ppo":
        given["num_ppo_epochs"] = 1
    config, found = resolve(given, catalog)
    options = found.resolve_options(config.options, lora=bool(config.options.lora))
    return (
        config.model_copy(update={"options": options}),
        found,
        inspect(find("builtin"), found.task),
        catalog,
    )


class Marks:
    """When each phase begins and ends, by the clock that torch's profiler uses."""

    def __init__(self) -> None:
        self.at: list[tuple[int, str]] = []
        self.names = ["between"]

    @contextmanager
    def during(self, name: str):
        self.names.append(name)
        self.at.append((time.time_ns(), name))
        yield
        self.names.pop()
        self.at.append((time.time_ns(), self.names[-1]))

    def of(self, name: str, function, *, only_without_gradient: bool = False):
        @functools.wraps(function)
        def marked(*args, **kwargs):
            if only_without_gradient and torch.is_grad_enabled():
                return function(*args, **kwargs)
            with self.during(name):
                return function(*args, **kwargs)

        return marked


def peaks_of_real_steps(planned, folder: Path, monkeypatch) -> dict[str, int]:
    """Bytes of torch's allocator, at most, in each phase of two steps with weights, each on answers of its own."""
    from rlhf_core.models.trainable import use_float32

    marks, (config, method, info, catalog) = Marks(), planned
    sample = decoding.rollout

    def to_the_end(model, prompts, n, sampling):
        return sample(model, prompts, n, replace(sampling, eos_token_ids=NEVER))

    monkeypatch.setattr(decoding, "rollout", marks.of("answers", to_the_end))
    scored = marks.of("log-probabilities", packed.completion_logps, only_without_gradient=True)
    monkeypatch.setattr(packed, "completion_logps", scored)
    run = step._run(config, method, info, catalog, ROWS, folder)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        trainer = method.trainer(run)
        use_float32(trainer, run)
        copies = [getattr(trainer, "ref_model", None), getattr(getattr(trainer, "reference", None), "copy", None)]
        for model in (trainer.model, *(copy for copy in copies if copy is not None)):
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.data = tensor.data.clone()  # which the allocator sees, unlike what is read from a file
        trainer.compute_loss = marks.of("loss", trainer.compute_loss)
        trainer.accelerator.backward = marks.of("gradient", trainer.accelerator.backward)
        trainer.create_optimizer()
        trainer.optimizer.step = marks.of("optimizer step", trainer.optimizer.step)
        trainer.train()
    run.rewards.close()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [(event.start_ns(), event.nbytes()) for event in events]
    found, live, name = defaultdict(int), 0, "loading"
    for _, change in sorted([*changes, *marks.at], key=lambda one: one[0]):
        live, name = (live, change) if isinstance(change, str) else (live + change, name)
        found[name] = max(found[name], live)
    return found


@pytest.mark.parametrize("options", [FULL, pytest.param(ADAPTER, marks=pytest.mark.slow)], ids=["full", "adapter"])
@pytest.mark.parametrize("method", ["sft", "dpo", "orpo", "reward_model", "grpo", "ppo"])
def test_each_phase_takes_what_is_counted(method, options, tmp_path, monkeypatch):
    own = {"max_length": 64} if method == "sft" else {}
    planned = of_run(method, **options, **own)
    config, found, info, catalog = planned
    counted = step.measure(config, found, info, catalog, ROWS, CPU).phases
    real = peaks_of_real_steps(planned, tmp_path, monkeypatch)
    phases = {"loss", "gradient", "optimizer step"} | {"answers", "log-probabilities"} & counted.keys()
    assert {name: counted[name].peak for name in phases} == {
        name: pytest.approx(real[name], rel=0.02) for name in phases
    }


@pytest.mark.parametrize(
    ("optimizer", "size"),
    [("adamw_torch", 8), ("adamw_8bit", 2 + 8 / 256), ("paged_adamw_32bit", 8), ("lion_8bit", 1 + 4 / 256), ("sgd", 0)],
)
def test_states_of_an_optimizer(optimizer, size):
    """In bytes a weight: two numbers in float32, of one byte and 4 for a block of 256, one such, or none."""
    pytest.importorskip("bitsandbytes")
    planned = of_run("orpo", **{**FULL, "optim": optimizer, "per_device_train_batch_size": 1})
    parts = step.measure(*planned, ROWS, CPU).phases["gradient"].parts
    assert parts.get("optimizer states", 0) == pytest.approx(size * parts["weights"] / 4, rel=0.02)
