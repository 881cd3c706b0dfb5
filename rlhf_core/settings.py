"""What `--set NAME=VALUE` does for each field of a method's training arguments.

A field with the name of an option is that option. Every other one acts as in the library (`USED`), acts only with
something else (`used_with`), is an option of another name (`same_as`), or is `refused` with a reason. `TRAINING`
decides for transformers' `TrainingArguments`; a method's `settings` for what its own configuration class adds, and for
fields of transformers that its trainer uses differently. `tests/test_settings.py` fails for a field without a decision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf_core.errors import UserError, excerpt

if TYPE_CHECKING:
    from rlhf_core.config import RunConfig
    from rlhf_core.method import Method

Condition = tuple[str, Callable[["RunConfig"], bool]]  # as the user writes it, and whether a configuration has it


@dataclass(frozen=True)
class Setting:
    """One field: the `option` that it is, the `reason` why it is refused, the conditions under which it acts, the
    texts (`values`) that act, if not all do, and the lowest and highest number (`within`; whole numbers if these are).
    """

    option: str = ""
    reason: str = ""
    conditions: tuple[Condition, ...] = ()
    values: tuple[str, ...] = ()
    within: tuple[float, float] | None = None


USED = Setting()
BACKENDS = ("nccl", "gloo", "mpi", "ccl", "xccl", "hccl", "cncl", "mccl")  # of torch.distributed, by transformers


def same_as(option: str) -> Setting:
    """The field is the option of this name."""
    return Setting(option=option)


def refused(reason: str) -> Setting:
    """The field would have no effect, or a misleading one; `reason` says why, and what to write instead."""
    return Setting(reason=reason)


def used_with(*conditions: Condition, within: tuple[float, float] | None = None) -> Setting:
    """The field acts only where all conditions hold; if it is a number, it is `within` these two."""
    return Setting(conditions=conditions, within=within)


def used_as(*values: str, within: tuple[float, float] | None = None) -> Setting:
    """The field acts with these values only, or with numbers `within` these two."""
    return Setting(values=values, within=within)


def given(name: str, value: object = True) -> Condition:
    """The condition that `--set NAME=VALUE` is given."""
    shown = str(value).lower() if isinstance(value, bool) else value
    return f"--set {name}={shown}", lambda config: config.set.get(name) == value


def _tracker(name: str) -> Condition:
    return f"--report-to {name}", lambda config: name in config.trackers


def _scheduler(*names: str) -> Condition:
    return f"--lr-scheduler-type {names[0]}", lambda config: config.options.lr_scheduler_type in names


def _has_gpu(config: RunConfig) -> bool:
    import torch

    return bool(torch.accelerator.is_available())


def _low_rank(config: RunConfig) -> bool:
    return any(name in config.options.optim for name in ("galore", "apollo"))


GPU = ("a GPU", _has_gpu)
WORKERS = ("--set dataloader_num_workers=2", lambda config: bool(config.set.get("dataloader_num_workers")))
SEVERAL = ("--num-processes 2 or more", lambda config: config.num_processes * config.num_machines > 1)
DDP = ("--distributed ddp", lambda config: config.distributed == "ddp")
FSDP = ("--distributed fsdp", lambda config: config.distributed == "fsdp")
ZERO = ("--distributed zero2 or zero3", lambda config: config.distributed in ("zero2", "zero3"))

# The lowest and highest of numbers
COUNT, SHARE, SIZE = (1, 2**32 - 1), (0.0, 1.0), (0.0, 1e6)
BETA = (0.0, 0.9999999)  # of a moving average: 1 would never move
SMALLEST = 1e-30  # of what something is divided by

BY_STEPS = "checkpoints are saved at steps where a run can be resumed exactly: write --save-steps"
BEST = "write --keep-best METRIC, and --final-model best"
UPLOAD = "nothing is uploaded in a run: write `hf upload OWNER/NAME RUN/model` after it"
SCRIPTS = "only transformers' own scripts read it"
CHECKPOINTING = "it is without reentrant autograd, which gives other gradients here: see --gradient-checkpointing"
OWN_FORWARD = "prompts are shared by calling the model's own layers, not a compiled or replaced forward pass"
FEW_NUMBERS = "of a held-out row only a few numbers are kept"
ROWS = "rows have the columns that training needs, and no others"
SAME_TYPE = "the held-out rows are measured in the type of training, so that before and after compare"
FIRST_PROCESS = "the first process writes the run's folder"
EXACT = "a resumed run goes on where the stopped one was"

# transformers 5.17 to 5.23
TRAINING: dict[str, Setting] = {
    **dict.fromkeys(("optim_args", "lr_scheduler_kwargs", "bf16"), USED),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), used_with(within=BETA)),
    "adam_epsilon": used_with(within=(SMALLEST, 1.0)),
    **dict.fromkeys(("fp16", "tf32", "dataloader_pin_memory"), used_with(GPU)),
    "torch_empty_cache_steps": used_with(GPU, within=COUNT),
    "full_determinism": USED,
    "report_to": refused("write --report-to NAME"),
    "data_seed": used_with(within=(0, 2**32 - 1)),
    **dict.fromkeys(("logging_strategy", "logging_first_step"), USED),
    **dict.fromkeys(
        ("log_level", "log_level_replica"),
        used_as("detail", "debug", "info", "warning", "error", "critical", "passive"),
    ),
    "logging_nan_inf_filter": refused("a loss that is no number stops the run"),
    "optim_target_modules": used_with(("an --optim of GaLore or APOLLO", _low_rank)),
    # Held-out rows
    "eval_strategy": refused("write --eval-steps N"),
    "eval_delay": refused("evaluations begin before training, and --eval-steps says how often they come after that"),
    "per_device_eval_batch_size": used_with(within=COUNT),
    "eval_on_start": refused("the held-out rows are evaluated before training in any case"),
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), refused(SAME_TYPE)),
    **dict.fromkeys(("prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object"), refused(FEW_NUMBERS)),
    **dict.fromkeys(("eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics"), refused(FEW_NUMBERS)),
    "label_names": refused(ROWS),
    # Rows
    "dataloader_drop_last": USED,
    "dataloader_num_workers": used_with(within=(0, 1024)),
    "dataloader_persistent_workers": used_with(WORKERS),
    "dataloader_prefetch_factor": used_with(WORKERS, within=(1, 10_000)),
    **dict.fromkeys(("dataloader_multiprocessing_context", "dataloader_in_order"), used_with(WORKERS)),
    "train_sampling_strategy": used_as("random", "sequential", "group_by_length", "batch_rebalance"),
    "length_column_name": refused(ROWS),
    "remove_unused_columns": refused(ROWS),
    "include_num_input_tokens_seen": USED,
    # Computation
    "label_smoothing_factor": used_with(within=SHARE),
    "neftune_noise_alpha": used_with(within=SIZE),
    "activation_checkpointing": same_as("gradient_checkpointing"),
    **dict.fromkeys(("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"), refused(CHECKPOINTING)),
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode"), refused(OWN_FORWARD)),
    **dict.fromkeys(("use_liger_kernel", "liger_kernel_config"), refused(OWN_FORWARD)),
    "use_cache": refused("sampling uses a cache, and training none"),
    "auto_find_batch_size": refused("a run that is out of memory starts again with smaller batches by itself"),
    "use_cpu": refused("a run uses the GPU if there is one; to hide it, write CUDA_VISIBLE_DEVICES= before rlhf"),
    "debug": refused("it prints to a screen that the run uses: see run.log and metrics.jsonl"),
    "skip_memory_metrics": refused("what it measures is not logged"),
    # Several processes
    "average_tokens_across_devices": used_with(SEVERAL),
    **dict.fromkeys(
        ("ddp_find_unused_parameters", "ddp_broadcast_buffers", "ddp_static_graph"), used_with(SEVERAL, DDP)
    ),
    "ddp_bucket_cap_mb": used_with(SEVERAL, DDP, within=(1, 1_000_000)),
    "ddp_backend": Setting(conditions=(SEVERAL,), values=BACKENDS),
    "ddp_timeout": used_with(SEVERAL, within=(1, 10**8)),
    "fsdp": refused("write --distributed fsdp"),
    "fsdp_config": used_with(FSDP),
    "deepspeed": used_with(ZERO),
    "parallelism_config": refused("write --distributed"),
    "accelerator_config": refused("how rows are divided between processes decides what each of them weighs"),
    "local_rank": refused("write --num-processes"),
    # Logs
    "run_name": refused("write --name NAME"),
    **dict.fromkeys(
        ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), used_with(_tracker("trackio"))
    ),
    "disable_tqdm": refused("rlhf shows progress itself"),
    "log_on_each_node": refused(FIRST_PROCESS),
    # Checkpoints
    "save_strategy": refused(BY_STEPS),
    "save_only_model": refused(f"{EXACT}, which takes the optimizer's state"),
    "save_on_each_node": refused(FIRST_PROCESS),
    "enable_jit_checkpoint": refused("SIGTERM stops a run with a checkpoint in any case"),
    "load_best_model_at_end": refused(BEST),
    "metric_for_best_model": used_with(_scheduler("reduce_lr_on_plateau", "greedy")),
    "greater_is_better": refused(BEST),
    "ignore_data_skip": refused(EXACT),
    "restore_callback_states_from_checkpoint": refused(EXACT),
    "resume_from_checkpoint": refused("write --resume FOLDER"),
    "output_dir": refused("write --output-dir FOLDER"),
    # Elsewhere
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_strategy", "hub_token"), refused(UPLOAD)),
    **dict.fromkeys(("hub_private_repo", "hub_always_push", "hub_revision"), refused(UPLOAD)),
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), refused(SCRIPTS)),
}

# What a trainer that does not take its rows, batches and loss from transformers leaves without effect.
OWN_LOSS: dict[str, Setting] = {
    "label_smoothing_factor": refused("it is for a cross-entropy over labels, which this method's loss is not"),
    "neftune_noise_alpha": refused("the noise depends on a row's length, and answers share a row with their prompt"),
    "average_tokens_across_devices": refused("what a row weighs does not depend on how rows are divided"),
    "include_num_input_tokens_seen": refused("it counts rows of `input_ids`, which this method has none of"),
}

# For methods whose trainer is a `PairTrainer`.
PAIRS: dict[str, Setting] = {
    **OWN_LOSS,
    "train_sampling_strategy": used_as("random", "sequential"),
}

# For methods that sample what they train on, whose rows are prompts.
ROLLOUTS: dict[str, Setting] = {
    **OWN_LOSS,
    **dict.fromkeys(
        ("per_device_eval_batch_size", "metric_for_best_model"),
        refused("the held-out prompts are answered, and no loss is measured: see --num-eval-prompts and --eval-steps"),
    ),
    "dataloader_drop_last": refused("a batch of answers is always full"),
    "data_seed": refused("write --seed"),
}


def _sampling(config: RunConfig) -> Any:
    """The options of a method that samples: `RolloutOptions`."""
    return config.options


BY_URL = "write --vllm-server http://HOST:PORT for a server; without it vLLM samples on the run's own GPUs"
BY_VLLM: Condition = ("--rollouts vllm", lambda config: _sampling(config).rollouts == "vllm")
SERVER: Condition = ("--vllm-server URL", lambda config: bool(_sampling(config).vllm_server))
COLOCATED: Condition = (
    "vLLM on the run's own GPUs: leave out --vllm-server",
    lambda config: not _sampling(config).vllm_server,
)
CORRECTS: Condition = (
    "--set vllm_importance_sampling_correction=true",
    lambda config: bool(config.set.get("vllm_importance_sampling_correction", True)),
)
MODES = ("sequence_mask", "sequence_truncate", "token_mask", "token_truncate")

# For methods whose options are `rlhf_core.vllm.RolloutOptions`: TRL's names for what it says of vLLM.
VLLM: dict[str, Setting] = {
    "use_vllm": refused("write --rollouts vllm"),
    **dict.fromkeys(("vllm_mode", "vllm_server_base_url", "vllm_server_host", "vllm_server_port"), refused(BY_URL)),
    "vllm_server_timeout": refused("a server has to be there when the run starts"),
    "vllm_structured_outputs_regex": used_with(BY_VLLM),
    "vllm_importance_sampling_correction": used_with(BY_VLLM),
    "vllm_importance_sampling_mode": Setting(conditions=(BY_VLLM, CORRECTS), values=MODES),
    # ..._cap is TRL's old name of ..._clip_max
    **dict.fromkeys(
        (f"vllm_importance_sampling_{name}" for name in ("clip_max", "clip_min", "cap")),
        used_with(BY_VLLM, CORRECTS, within=SIZE),
    ),
    "vllm_group_port": used_with(BY_VLLM, SERVER, within=(1, 65_535)),
    "vllm_enable_sleep_mode": used_with(BY_VLLM, COLOCATED),
    "vllm_model_impl": Setting(conditions=(BY_VLLM, COLOCATED), values=("auto", "transformers", "vllm")),
    "vllm_gpu_memory_utilization": used_with(BY_VLLM, COLOCATED, within=SHARE),
    "vllm_max_model_length": used_with(BY_VLLM, COLOCATED, within=COUNT),
    "vllm_tensor_parallel_size": used_with(BY_VLLM, COLOCATED, within=(1, 1024)),
}


def decide(method: Method | type[Method], name: str) -> Setting | None:
    """What `--set name=…` does for `method`; None where nobody has decided."""
    if name in method.Options.model_fields:
        return same_as(name)
    return method.settings.get(name, TRAINING.get(name))


def check(method: Method, config: RunConfig) -> None:
    """Raise `UserError` for values of `--set` that are refused, or that have no effect without something else."""
    for name, value in config.set.items():
        setting = decide(method, name) or USED
        if setting.reason:
            raise UserError(f"--set {name}: {setting.reason}")
        for needed, holds in setting.conditions:
            if not holds(config):
                raise UserError(f"--set {name} has no effect without {needed}")
        allowed = [*setting.values]
        if setting.within is not None:
            allowed.append(_range(*setting.within))
        if value is not None and allowed and value not in setting.values and not _is_within(value, setting.within):
            raise UserError(
                f"--set {name}={excerpt(value)}: it is {'one of ' * (len(allowed) > 1)}{', '.join(allowed)}"
            )


def _is_within(value: Any, bounds: tuple[float, float] | None) -> bool:
    if bounds is None or isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return bounds[0] <= value <= bounds[1] and (isinstance(bounds[0], float) or value == int(value))


def _range(low: float, high: float) -> str:
    return f"a {'' if isinstance(low, float) else 'whole '}number from {low:g} to {high:.12g}"
