"""The training arguments of a run: what `--set` may give, and all that libraries would refuse of them once training has
begun, found before the weights load.
"""

from __future__ import annotations

import copy
import importlib
import math
import os
from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_type_hints

import pydantic

from rlhf_core.config import MAIN, RunConfig
from rlhf_core.errors import UserError, did_you_mean, excerpt
from rlhf_core.inputs import library_errors
from rlhf_core.method import LARGEST, Method, TrainingOptions
from rlhf_core.models import precision
from rlhf_core.settings import decide
from rlhf_core.training import checkpoint, launch

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments

    from rlhf_core.training.run import Run

# Options that are training arguments under the same name.
SHARED = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps", "optim"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "weight_decay", "max_grad_norm"),
    *("gradient_checkpointing", "logging_steps", "save_steps", "seed"),
)
PROJECT = "rlhf"  # of trackers, where their variables name no other
NEED_THE_MODEL = ("galore", "apollo", "lomo")  # optimizers that look at its modules
FOLLOWS = ("reduce_lr_on_plateau", "greedy")
SCHEDULE = """'{"min_lr": 1e-6}'"""
OTHERWISE = {"adam_beta1": 0.123, "adam_beta2": 0.123, "adam_epsilon": 0.123, "optim_args": None}  # to see what acts
STEPS = 1000  # of a schedule that is only tried

PRECISION, COMPILER = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND"  # environment
TRUST = ("trust_remote_code",)  # a field of TRL's arguments, with which its trainers load models


def build(run: Run, cls: Any, values: dict[str, Any]) -> Any:
    """Training arguments of class `cls` from the shared options, `values`, and the user's `--set`, which wins.

    Raises `UserError` for what a library refuses.
    """
    import torch

    options = run.options
    values = {
        **options.model_dump(include=set(SHARED)),
        "output_dir": str(run.folder / "checkpoints" / checkpoint.WRITING),
        "save_strategy": "steps",
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "use_cpu": not torch.accelerator.is_available(),  # explicit, so that several processes find each other
        "bf16": precision.gpu_has_bfloat16() and options.dtype in ("auto", "bfloat16"),
        "fp16": options.dtype == "float16",
        "logging_nan_inf_filter": False,  # a loss that is no number stops the run
        "ddp_timeout": max(1800, int(run.config.hang_timeout) + 60),  # gloo's and NCCL's, who don't say which hangs
        "report_to": [],  # their callbacks are added by `trackers`
        "run_name": run.name,
        "project": PROJECT,
        "disable_tqdm": True,
        **launch.arguments_for(run.config.distributed),
        **{name: run.config.trust_remote_code for name in TRUST if name in cls.__dataclass_fields__},
        **values,
        **run.config.set,
    }
    if options.lr_scheduler_type in FOLLOWS:
        values |= _followed(run)
    with library_errors("the training arguments don't fit together"):
        arguments = cls(**values)
    _check_environment(arguments)
    _check_schedule(arguments, _check_optimizer(arguments, run.config), run.config)
    _check_loader(arguments, run.config)
    return arguments


def _followed(run: Run) -> dict[str, Any]:
    """The arguments without which transformers refuses a schedule that follows the loss of held-out rows."""
    flag = f"--lr-scheduler-type {run.options.lr_scheduler_type} follows the loss of held-out rows"
    if run.plan.data.need == "prompts":
        raise UserError(f"{flag}, which method {run.config.method} does not measure")
    if run.options.eval_steps is None:
        raise UserError(f"{flag} in training: it needs --eval-steps N")
    return {"eval_strategy": "steps", "eval_steps": run.options.eval_steps}


def check_settings(method: Method, config: RunConfig) -> list[str]:
    """Check `--set` against the fields of the method's training arguments; returns warnings.

    Raises `UserError` with the nearest name.
    """
    if not config.set:
        return []
    module, _, name = method.config.partition(":")
    cls = getattr(importlib.import_module(module), name)
    known = {field.name for field in fields(cls) if field.init}
    hints, warnings = get_type_hints(cls), []
    for key, value in config.set.items():
        if key in MAIN and key not in known:
            raise UserError(f"--set {key}: write --{key.replace('_', '-')}")
        if key not in known:
            raise UserError(f"--set {key}: {name} has no such field.{did_you_mean(key, known)}")
        try:
            read = pydantic.TypeAdapter(hints[key], config={"arbitrary_types_allowed": True}).validate_python(value)
        except pydantic.ValidationError as error:
            raise UserError(f"--set {key}={excerpt(value)}: {error.errors()[0]['msg'].lower()}") from error
        if isinstance(read, bool | int | float):  # such as the text `no`, which would count as true
            config.set[key] = read
        if decide(method, key) is None:
            warnings.append(f"--set {key} is passed on to {name}: whether method {method.name} uses it is not known")
    return warnings


def check_names(options: TrainingOptions) -> None:
    """Check what options call by transformers' name. Raises `UserError` with the nearest name."""
    from transformers import SchedulerType
    from transformers.training_args import OptimizerNames

    for flag, value, names in (
        ("--lr-scheduler-type", options.lr_scheduler_type, SchedulerType),
        ("--optim", options.optim, OptimizerNames),
    ):
        known = [name.value for name in names]
        if value not in known:
            raise UserError(f"{flag} {value}: transformers knows no such name.{did_you_mean(value, known)}")


def _check_environment(arguments: TrainingArguments) -> None:
    """Raise `UserError` for variables that libraries would follow although the run's configuration does not say it."""
    names = (COMPILER,) if arguments.bf16 or arguments.fp16 else (PRECISION, COMPILER)
    for name in names:
        if os.environ.get(name, "no").lower() != "no":
            raise UserError(
                f"the environment has {name}={os.environ[name]}, which would change what is trained, and is in no "
                "record of the run: unset it. How a run computes is given by its options, such as --set bf16=true"
            )


def _check_optimizer(arguments: TrainingArguments, config: RunConfig) -> torch.optim.Optimizer:
    """The optimizer with one parameter, or SGD for those that need the model."""
    import torch
    from transformers import Trainer

    parameter = torch.nn.Parameter(torch.zeros(1))
    plain = torch.optim.SGD([parameter], lr=arguments.learning_rate)
    what = _given(f"--optim {config.options.optim}", config, "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon")
    with library_errors(what):
        try:
            cls, values = Trainer.get_optimizer_cls_and_kwargs(arguments)
        except ValueError:
            if "optim_args" in config.set or not any(name in arguments.optim for name in NEED_THE_MODEL):
                raise
            return plain
        for name, other in OTHERWISE.items():
            changed = copy.copy(arguments)
            setattr(changed, name, other)
            if name in config.set and (cls, values) == Trainer.get_optimizer_cls_and_kwargs(changed):
                raise UserError(f"--set {name} has no effect with --optim {config.options.optim}")
        if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
            return plain
        optimizer = cls([parameter], **values)
    for name, value in optimizer.defaults.items():
        if not all(math.isfinite(v) and abs(v) <= LARGEST for v in _numbers(value)):
            raise UserError(f"{what}: {name} is {value}, and no number above {LARGEST:g} in size can be used")
    return optimizer


def _numbers(value: Any) -> list[float]:
    """The numbers of an optimizer's value, which may be a pair of them."""
    return [v for v in (value if isinstance(value, tuple | list) else [value]) if isinstance(v, int | float)]


def _check_schedule(arguments: TrainingArguments, optimizer: torch.optim.Optimizer, config: RunConfig) -> None:
    from transformers import get_scheduler

    name, values = config.options.lr_scheduler_type, config.set.get("lr_scheduler_kwargs")
    if isinstance(values, str) and not values.startswith("{"):
        raise UserError(
            f"--set lr_scheduler_kwargs={values}: expected names and values, such as '{{\"min_lr\": 1e-6}}'"
        )
    if values and name in ("constant", "constant_with_warmup"):
        raise UserError(f"--set lr_scheduler_kwargs has no effect with --lr-scheduler-type {name}")
    steps = arguments.max_steps if arguments.max_steps > 0 else STEPS
    flag = f"--lr-scheduler-type {name}" + ("" if values else f" (its values: --set lr_scheduler_kwargs={SCHEDULE})")
    what = _given(flag, config, "lr_scheduler_kwargs")
    with library_errors(what):
        scheduler = get_scheduler(
            arguments.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=arguments.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
        )
        # Probed: those that follow a loss have none.
        factors = getattr(scheduler, "lr_lambdas", [])
        rates = [factor(step) for factor in factors for step in (0, 1, steps // 3, steps // 2, steps - 1, steps)]
    if wrong := [rate for rate in rates if not (isinstance(rate, int | float) and 0 <= rate <= LARGEST)]:
        raise UserError(f"{what}: the learning rate is multiplied by {wrong[0]} at some steps")


def _given(flag: str, config: RunConfig, *settings: str) -> str:
    """The flag with those of the settings that the user gave."""
    return " ".join([flag, *(f"--set {name}={config.set[name]}" for name in settings if name in config.set)])


def _check_loader(arguments: TrainingArguments, config: RunConfig) -> None:
    from torch.utils.data import DataLoader

    names = ("num_workers", "prefetch_factor", "persistent_workers", "multiprocessing_context")
    with library_errors(_given("the rows' loader:", config, *(f"dataloader_{name}" for name in names))):
        DataLoader([0], **{name: getattr(arguments, f"dataloader_{name}") for name in names})
