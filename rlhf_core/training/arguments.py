"""Training arguments: from the shared options, a method's own fields and the user's `--set`."""

from __future__ import annotations

import dataclasses
import importlib
import typing
from pathlib import Path
from typing import Any

from rlhf_core.config import RunConfig
from rlhf_core.errors import UserError, did_you_mean

SHARED = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps", "optim"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "weight_decay", "max_grad_norm"),
    *("gradient_checkpointing", "logging_steps", "save_steps", "seed"),
)


def make_arguments(cls: type, config: RunConfig, folder: Path, fields: dict[str, Any]) -> Any:
    """Training arguments of class `cls`: the shared options, then `fields`, then what the user set."""
    import torch

    from rlhf_core.models import loading as models
    from rlhf_core.training import launch, run_folder

    options = config.options
    half = models.gpu_has_bfloat16() and options.dtype in ("auto", "bfloat16")
    values = {
        **options.model_dump(include=set(SHARED)),
        "output_dir": str(folder / "checkpoints" / run_folder.WRITING),
        "save_strategy": "steps",
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "use_cpu": not torch.accelerator.is_available(),  # explicit, so that several processes find each other
        "bf16": half,
        "fp16": options.dtype == "float16",
        "report_to": [],
        "disable_tqdm": True,
        **launch.arguments_for(config.distributed),
        **fields,
        **config.set,
    }
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise UserError(f"the training arguments don't fit together: {error}") from error


def check_settings(config_class: str, settings: dict[str, Any]) -> None:
    """Check `--set` against the fields of `"package:Class"`. Raises `UserError` with the nearest name."""
    if not settings:
        return
    import pydantic

    module, _, name = config_class.partition(":")
    cls = getattr(importlib.import_module(module), name)
    known = {f.name for f in dataclasses.fields(cls) if f.init} - {"output_dir"}
    hints = typing.get_type_hints(cls)
    for key, value in settings.items():
        if key not in known:
            raise UserError(f"--set {key}: {name} has no such field.{did_you_mean(key, known)}")
        try:
            pydantic.TypeAdapter(hints[key], config={"arbitrary_types_allowed": True}).validate_python(value)
        except pydantic.ValidationError as error:
            raise UserError(f"--set {key}={value}: {error.errors()[0]['msg'].lower()}") from error
