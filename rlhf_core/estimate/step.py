"""One step of a run, with its own trainer, on a model without values: how much memory each phase takes, and what it
computes.

The trainer is the method's, built as in a run and given rows of the lengths that the data has. Of what a step repeats
(forward passes of one size, tokens of an answer) one is run, and the others are counted.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import TrainerCallback

from rlhf_core import builtin
from rlhf_core.catalog import Catalog
from rlhf_core.config import RunConfig
from rlhf_core.data.loading import Data
from rlhf_core.estimate import quantized, stand_ins, synthetic
from rlhf_core.estimate import scorers as reward_models
from rlhf_core.estimate.answer import REWARD
from rlhf_core.estimate.hardware import LAUNCH, Device
from rlhf_core.estimate.meter import NOTHING, Meter, Phase
from rlhf_core.estimate.probe import RunOfFewSteps, silence
from rlhf_core.estimate.synthetic import Lengths
from rlhf_core.estimate.weightless import Weightless, without_values
from rlhf_core.grammar import RewardSpec
from rlhf_core.method import Method
from rlhf_core.models import loading
from rlhf_core.models.resolve import find, quiet_libraries
from rlhf_core.models.template import template_of
from rlhf_core.models.trainable import use_float32
from rlhf_core.rewards.binding import bind_all
from rlhf_core.rewards.runtime import RewardRuntime
from rlhf_core.training import answering
from rlhf_core.training.plan import Plan

LOADING, LOSS, GRADIENT, STEP, EVALUATION = "loading", "loss", "gradient", "optimizer step", "evaluation"
# Components, by a part of the names of what is trained beside the weights.
ADAPTERS = ("lora_", "modules_to_save")


class MeasuredRun(RunOfFewSteps):
    """A run without values, of one step."""

    def arguments(self, cls: type, **fields: Any) -> Any:
        arguments = super().arguments(cls, **fields)
        if arguments.fp16:  # which the CPU has not; its sizes are the same
            arguments.fp16, arguments.bf16 = False, True
        return arguments


@dataclass(frozen=True)
class Measurement:
    """`phases` as the meter has them; `spent` is what they spent in a step, and `in_passes` the part of it in forward
    and backward passes for a loss: what else was spent serves `steps_per_rollout` optimizer steps. `steps_per_row`:
    optimizer steps for each row.
    """

    phases: dict[str, Phase]
    spent: dict[str, list[float]]
    in_passes: dict[str, list[float]]
    steps_per_rollout: int
    steps_per_row: float

    def seconds(self) -> dict[str, float]:
        """Of each phase in an optimizer step: what the device computes, or what it takes to launch it."""
        found = {}
        for name, spent in self.spent.items():
            inside = self.in_passes.get(name, NOTHING)
            outside = [(whole - part) / self.steps_per_rollout for whole, part in zip(spent, inside, strict=True)]
            operations, _, seconds = (a + b for a, b in zip(inside, outside, strict=True))
            found[name] = max(seconds, operations * LAUNCH)
        return {name: value for name, value in found.items() if name != LOADING}


def measure(
    config: RunConfig,
    method: Method,
    info: loading.ModelInfo,
    catalog: Catalog,
    rows: Lengths,
    device: Device,
    scorers: Sequence[loading.ModelInfo] = (),
) -> Measurement:
    """Measure a step on rows of these lengths. `config` has the options that the run really uses, `scorers` are the
    models of its rewards.
    """
    meter = Meter(device.seconds if device.flops else None, info.config.get_text_config().vocab_size)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder, quiet_libraries(), torch.random.fork_rng([]):
        run = _run(config, method, info, catalog, rows, Path(folder))
        try:
            with stand_ins.installed(meter, device), meter:
                reward_models.install(scorers, run.rewards, rows.total, meter)
                return _step(run, method, meter, device)
        finally:
            run.rewards.close()


def _run(
    config: RunConfig, method: Method, info: loading.ModelInfo, catalog: Catalog, lengths: Lengths, folder: Path
) -> MeasuredRun:
    """The run with rows of one length, in the words of the built-in tokenizer, and a reward that takes no time."""
    words = loading.inspect(find(str(builtin.MODEL)))
    template, options = template_of(words), config.options
    [row] = synthetic.rows([lengths], method.data, template)
    together = options.per_device_train_batch_size * options.gradient_accumulation_steps
    # As many rows as the largest batch of answers may need, whatever the method's names for its parts.
    train = [row] * (4 * together)
    held_out = [row] * min(options.num_eval_prompts, together)
    rewards = bind_all([RewardSpec(REWARD, name=f"reward_{i}") for i in range(len(config.reward_specs))], catalog)
    here = {"output_dir": str(folder), "callback": [], "num_processes": 1, "num_machines": 1, "distributed": "ddp"}
    plan = Plan(
        config.model_copy(update=here),
        {},
        Data(train, held_out, [], [], [], method.data),
        replace(info, tokenizer=words.tokenizer),
        template,
        rewards,
        None,
        "",
    )
    runtime = RewardRuntime(rewards, template.decode, rows=[*train, *held_out], opening=template.opening)
    return MeasuredRun(plan, runtime)


def _step(run: MeasuredRun, method: Method, meter: Meter, device: Device) -> Measurement:
    with meter.during(LOADING):
        trainer = method.trainer(run)
        without_values(trainer.model)  # adapters and heads, which it has made
        use_float32(trainer, run)
    _name_components(trainer, meter)
    measured = _Measured(trainer, meter, device)
    measured.install()
    trainer.train()
    options, rows = run.options, len(run.train_rows)
    per_row = 0.0 if options.max_steps > 0 else trainer.state.max_steps / rows / options.num_train_epochs
    spent = {name: phase.spent() for name, phase in meter.phases.items()}
    meter.sampling = EVALUATION
    with meter.during(EVALUATION):
        if trainer.eval_dataset is not None:
            trainer.evaluate()
        if method.generates and run.held_out:
            with trainer.accelerator.autocast():
                answering.sample(method.policy(trainer), run)
    return Measurement(meter.phases, spent, measured.in_passes, method.steps_per_rollout(trainer), per_row)


def _name_components(trainer: Any, meter: Meter) -> None:
    """Say what is trained beside the weights, and what the reference is."""
    # Probed: of TRL's trainers, and of those with a reference of the core's.
    copies = [getattr(trainer, "ref_model", None), getattr(getattr(trainer, "reference", None), "copy", None)]
    for model in copies:
        for tensor in (*model.parameters(), *model.buffers()) if model is not None else ():
            meter.assign(tensor, "reference")
    for name, parameter in trainer.model.named_parameters():
        if any(part in name for part in ADAPTERS):
            meter.assign(parameter, "reference" if ".ref." in name else "adapter")
        elif name.startswith("value_"):
            meter.assign(parameter, "value model")


class _Measured:
    """The parts of a trainer's step, each measured as a phase."""

    def __init__(self, trainer: Any, meter: Meter, device: Device) -> None:
        self.trainer, self.meter, self.device = trainer, meter, device
        self.spent: dict[str, list[float]] = {}  # by the first forward and backward pass, in each phase
        self.before: dict[str, list[float]] = {}
        self.in_passes: dict[str, list[float]] = {}  # by all of them

    def install(self) -> None:
        trainer = self.trainer
        trainer.training_step = functools.partial(self.training_step, trainer.training_step)
        trainer.compute_loss = functools.partial(self.compute_loss, trainer.compute_loss)
        trainer.accelerator.backward = functools.partial(self.backward, trainer.accelerator.backward)
        silence(trainer)
        trainer.add_callback(_OneStep(self))

    @property
    def trained(self) -> list[Tensor]:
        return [parameter for parameter in self.trainer.model.parameters() if parameter.requires_grad]

    def begin(self) -> None:
        """Take the optimizer's step, after which its states live, as they do in every step but the first."""
        optimizer = getattr(self.trainer.optimizer, "optimizer", self.trainer.optimizer)  # accelerate wraps it
        for parameter in self.trained:
            parameter.register_post_accumulate_grad_hook(lambda p: self.meter.assign(p.grad, "gradients"))
        self._make_gradients()
        with self.meter.during(STEP, stand_ins.OPTIMIZER):
            if type(optimizer).__module__.startswith("bitsandbytes"):
                quantized.step_of_bitsandbytes(optimizer)
            else:
                for group in optimizer.param_groups:
                    if self.device.is_gpu and group.get("foreach", 0) is None and not group.get("fused"):
                        group["foreach"] = True  # torch's choice there
                optimizer.step()
        for state in optimizer.state.values():
            for value in state.values():
                if isinstance(value, Weightless):
                    self.meter.assign(value, stand_ins.OPTIMIZER)
        optimizer.zero_grad()
        optimizer.step = lambda *_, **__: None

    def training_step(self, compute: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The first forward and backward pass of the step; the others take time."""
        if not self.spent:
            return compute(*args, **kwargs)
        for name, spent in self.spent.items():
            self.meter.spend(name, spent)
            self.in_passes[name] = [a + b for a, b in zip(self.in_passes[name], spent, strict=True)]
        return torch.zeros(())

    def compute_loss(self, compute: Any, *args: Any, **kwargs: Any) -> Any:
        self.before = {name: phase.spent() for name, phase in self.meter.phases.items()}
        if self.trainer.args.gradient_accumulation_steps > 1:  # those of the passes before
            self._make_gradients()
        with self.meter.during(LOSS):
            return compute(*args, **kwargs)

    def backward(self, compute: Any, *args: Any, **kwargs: Any) -> None:
        with self.meter.during(GRADIENT):
            compute(*args, **kwargs)
        phases = self.meter.phases.items()
        self.spent = {name: phase.spent(self.before.get(name, NOTHING)) for name, phase in phases}
        self.in_passes = dict(self.spent)

    def _make_gradients(self) -> None:
        for parameter in self.trained:
            parameter.grad = torch.zeros_like(parameter)
            self.meter.assign(parameter.grad, "gradients")


class _OneStep(TrainerCallback):
    def __init__(self, measured: _Measured) -> None:
        self.measured = measured

    def on_train_begin(self, args, state, control, **kwargs):
        self.measured.begin()

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = True
