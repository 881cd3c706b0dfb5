"""What a resumed run relies on, checked before weights load: that it goes on as if it had never stopped."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rlhf_core.config import read_file
from rlhf_core.errors import UserError
from rlhf_core.training import run_folder

if TYPE_CHECKING:
    from rlhf_core.training.run import Run

OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_0", "global_step*")  # by one process, FSDP, DeepSpeed
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_processes", "num_machines")
LENGTH = ("max_steps", "num_train_epochs")
CONSTANT = ("constant", "constant_with_warmup")  # schedules that do not depend on the run's length
TOLD = ("model", "reward", "reward_model", "rollouts")
# What changes nothing that is learned, or is checked otherwise: data by its fingerprint, batches by their product.
MAY_CHANGE = (
    *("output_dir", "data", "eval_data", "data_config", "formatter", "callback", "machine_rank", "master_addr"),
    "hang_timeout",
    *("gradient_checkpointing", "logging_steps", "save_steps", "save_total_limit", *BATCH),
)


def check(run: Run, checkpoint: Path, plugins: Sequence[str]) -> list[str]:
    """Raise `UserError` if the run can't go on from `checkpoint` as it began; return what to tell."""
    if not any(found for name in OPTIMIZER for found in checkpoint.glob(name)):
        raise UserError(
            f"{checkpoint} holds the weights alone, without the state of the optimizer (save_only_model), so the run "
            f"can't go on as if it had never stopped. Train the weights further in another run: --model {checkpoint}"
        )
    before, now = read_file(run.folder / "config.yaml"), yaml.safe_load(run.config.to_yaml())
    _check_options(before, now, checkpoint)
    told = [f"{name} is {now[name]}, was {before[name]}" for name in TOLD if _differs(name, before, now)]
    file = run.folder / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    then = manifest.get("data", {})
    if "held_out" not in then:
        told.append("whether the data is what it was can't be checked: an earlier version wrote the manifest, or none")
    elif {**then, "source": None} != {**run_folder.describe_data(run), "source": None}:  # it may have moved
        rows, held_out = len(run.plan.data.train), len(run.held_out)
        raise UserError(
            f"the data is not what it was when the run began: {then['rows']:,} rows and {then['held_out']:,} held out "
            f"then, {rows:,} and {held_out:,} now, or other ones. A resumed run needs the same rows in the same order. "
            f"To go on with these all the same, remove {file}"
        )
    was = {**_by_name(manifest.get("plugins", [])), **manifest.get("versions", {})}
    for name, version in {**_by_name(plugins), **run_folder.versions()}.items():
        if name in was and was[name] != version:
            told.append(f"{name} is {version}, was {was[name]}")
    return [f"since the run began: {text}" for text in told]


def _check_options(before: Mapping[str, Any], now: Mapping[str, Any], checkpoint: Path) -> None:
    """Raise `UserError` for options that a resumed run can't change."""
    schedule = () if now["lr_scheduler_type"] in CONSTANT else LENGTH
    changed = [
        f"{name} {now[name]} (was {before[name]}{'; the learning rate follows a schedule of that length' * why})"
        for name in before
        if _differs(name, before, now) and ((why := name in schedule) or name not in (*TOLD, *MAY_CHANGE, *LENGTH))
    ]
    one, other = (math.prod(values[name] for name in BATCH if name in before) for values in (before, now))
    if one != other:
        changed.append(f"rows in an optimizer step {other} (was {one}): {' × '.join(BATCH)}")
    if changed:
        raise UserError(
            f"--resume goes on with a run as it began, which these do not: {'; '.join(changed)}. Leave them out, or "
            f"train the weights further in another run: --model {checkpoint}"
        )


def _differs(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether an option was changed. What another version does not know was not."""
    return name in before and name in now and before[name] != now[name]


def _by_name(plugins: Sequence[str]) -> dict[str, str]:
    """Distributions and versions by plugin, from the manifest's lines."""
    return {name: rest for name, _, rest in (line.rpartition(": ") for line in plugins)}
