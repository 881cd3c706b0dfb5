"""Options that would have no effect: each is refused with the reason, as is a run that lacks what it needs."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core.errors import UserError, did_you_mean
from rlhf_core.method import Method

if TYPE_CHECKING:
    from rlhf_core.config import RunConfig

# Options of a new adapter, and schedules that ignore `warmup_steps`.
LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
SPLIT = ("fsdp", "zero3")  # weights between processes

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow", "swanlab")
# Variables that would have a tracker upload models, and values with which it does not.
UPLOADS = {
    "wandb": ("WANDB_LOG_MODEL", ("false",)),
    "mlflow": ("HF_MLFLOW_LOG_ARTIFACTS", ("false", "0", "no", "off")),
    "swanlab": ("SWANLAB_LOG_MODEL", ()),
}
# Those that send to a service: the variable that says whether, its values that do, that of the key, files with one.
LOGINS = {
    "wandb": ("WANDB_MODE", ("online", "shared"), "WANDB_API_KEY", ("~/.netrc", "~/_netrc")),
    "swanlab": ("SWANLAB_MODE", ("online", "cloud"), "SWANLAB_API_KEY", ("~/.swanlab/.netrc",)),
}


def given_options(config: RunConfig, method: Method) -> dict[str, Any]:
    """The options that the user gave another value than the default."""
    fields, options = method.Options.model_fields, config.options
    values = {name: getattr(options, name) for name in fields if name in options.model_fields_set - {*config.preset}}
    return {name: value for name, value in values.items() if value != fields[name].get_default()}


def check(config: RunConfig, method: Method) -> None:
    """Raise `UserError` for what is missing, and for options that would have no effect."""
    if method.rewards == "required" and not config.reward_specs:
        raise UserError(f"method {method.name} needs a reward: write --reward NAME (rlhf rewards lists them)")
    if method.rewards == "required" and not any(spec.weight for spec in config.reward_specs):
        raise UserError("every --reward has weight 0: there is nothing to learn from")
    if method.rewards == "none" and config.reward_specs:
        raise UserError(f"method {method.name} uses no reward: leave out --reward")
    if config.stop_on:
        from rlhf_core.diagnoses.catalog import check_names

        check_names(config.stop_on, method.name)
    options, unused = config.options, method.unused_options()
    sampler = options.model_dump(include={"rollouts"}).get("rollouts")  # an option of methods that sample
    if sampler == "continuous" and options.repetition_penalty != 1:
        raise UserError(
            "--repetition-penalty has no effect with --rollouts continuous: transformers' continuous batching leaves "
            "it out. Use --rollouts shared or transformers"
        )
    needs = {
        "num_train_epochs": (options.max_steps == -1, f"--max-steps {options.max_steps} is given"),
        "warmup_steps": (
            options.lr_scheduler_type not in WITHOUT_WARMUP,
            f"--lr-scheduler-type {options.lr_scheduler_type} has no warm-up",
        ),
        "eval_steps": (options.num_eval_prompts > 0, "--num-eval-prompts 0 holds out no rows"),
        "keep_best": (options.eval_steps is not None, "nothing is evaluated between steps: add --eval-steps N"),
        "early_stop": (options.keep_best is not None, "what is to get better is not said: add --keep-best METRIC"),
        "final_model": (options.keep_best is not None, "no best checkpoint is kept: add --keep-best METRIC"),
        **dict.fromkeys(LORA, (options.lora is not False, "no adapter is trained (--no-lora)")),
    }
    for name in given_options(config, method):
        flag = "--" + name.replace("_", "-")
        if name in unused:
            raise UserError(f"{flag} has no effect with method {method.name}: {unused[name]}")
        if name in needs and not needs[name][0]:
            raise UserError(f"{flag} has no effect: {needs[name][1]}")
    if config.num_machines > 1 and not config.master_addr:
        raise UserError("a run on several machines needs --master-addr HOST:PORT, the address of machine 0")
    if config.master_addr and config.num_machines == 1:
        raise UserError(f"--master-addr {config.master_addr} has no effect without --num-machines 2 or more")
    if config.eval_data and not options.num_eval_prompts:
        raise UserError("--eval-data has no effect with --num-eval-prompts 0")
    if config.machine_rank >= config.num_machines:
        raise UserError(
            f"--machine-rank {config.machine_rank}: machines count from 0, and --num-machines is {config.num_machines}"
        )
    check_trackers(config)


def check_trackers(config: RunConfig) -> None:
    """Raise `UserError` for trackers that are not known, not installed, not logged in, or told to upload models."""
    names = config.trackers
    if names and "none" in ",".join(config.report_to).replace(" ", "").split(","):
        raise UserError(f"--report-to none goes alone: leave out {', '.join(names)}")
    for name in names:
        if name not in TRACKERS:
            raise UserError(
                f"--report-to {name}: it is one of {', '.join(TRACKERS)} or none.{did_you_mean(name, TRACKERS)} "
                "Others are plugins: --callback NAME"
            )
        if not is_installed(name):
            raise UserError(f"--report-to {name}: it is not installed. Install it: pip install {name}")
        variable, harmless = UPLOADS.get(name, ("", ()))
        if os.environ.get(variable, "").lower() not in ("", *harmless):
            raise UserError(
                f"the environment has {variable}={os.environ[variable]}, and no model is uploaded in a run: unset it, "
                "and upload RUN/model after the run"
            )
        if name in LOGINS:
            _check_login(name, *LOGINS[name])


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _check_login(name: str, mode: str, online: tuple[str, ...], key: str, files: tuple[str, ...]) -> None:
    """Raise `UserError` if a tracker sends to its service and has no key for it: it would ask once training begins."""
    if os.environ.get(mode, online[0]) not in online or os.environ.get(key):
        return
    if not any(Path(file).expanduser().exists() for file in files):
        raise UserError(
            f"--report-to {name}: it sends to its service, and has no key for it. Log in: {name} login (or set {key}); "
            f"or keep all on this machine: {mode}=offline"
        )
