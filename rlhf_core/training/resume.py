"""What a resumed run relies on, checked before weights load: that it goes on as if it had never stopped.

Refused is whatever changes what is learned, unless `--allow-changed NAME` names it: options, data, the content of the
model's and the rewards' files, versions of plugins. The length of the run may change: the learning rate then follows
the schedule of the new length, from the checkpoint on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core.config import read_file
from rlhf_core.errors import UserError, did_you_mean
from rlhf_core.training import checkpoint as checkpoints
from rlhf_core.training import launch, manifest
from rlhf_core.ui.screen import Screen

if TYPE_CHECKING:
    from rlhf_core.training.run import Run

OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_0", "global_step*")  # by one process, FSDP, DeepSpeed
LENGTH = ("max_steps", "num_train_epochs", "total_episodes")
RATE = ("learning_rate", "lr_scheduler_type", "warmup_steps", "lr_scheduler_kwargs")
STATE = ("optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")  # are in the optimizer's
MEASURED = ("reduce_lr_on_plateau", "greedy")  # schedules that follow a metric
# What changes nothing that is learned, or is checked otherwise: files by their content.
MAY_CHANGE = (
    *("output_dir", "data", "eval_data", "data_config", "formatter", "callback", "machine_rank", "master_addr"),
    "vllm_server",
    *("gradient_checkpointing", "logging_steps", "logging_first_step", "save_steps", "save_total_limit"),
    *("hang_timeout", "name", "tag", "report_to", "project", "eval_steps", "keep_best", "early_stop", "final_model"),
    "stop_on",
)
# Of another kind or shape than what is in the checkpoint.
NEVER = ("method", "lora", "lora_r", "lora_target_modules", "load_in_4bit", "load_in_8bit")
FILES = {"model": "the files of models or of the chat template", "reward": "the files of rewards"}
CHECKPOINT, DATA = "checkpoint", "data"

CHECKED = "RLHF_CHECKPOINT"  # environment: the checkpoint that the launching command has found whole; empty for none


@dataclass
class Resumed:
    """What is different now: for the screen, for the manifest, and by name.

    `manifest` is the run's, with these notes; `written` are options with paths as they were written when the run began.
    """

    told: list[str] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    manifest: dict[str, Any] = field(default_factory=dict)
    written: dict[str, Any] = field(default_factory=dict)
    rate_ratio: float = 1.0  # the peak of the learning rate, divided by what it was

    @property
    def changes_schedule(self) -> bool:
        return bool(self.names & {*LENGTH, *RATE, *STATE})

    def note(self, name: str, was: Any, now: Any, more: str = "") -> None:
        self.names.add(name)
        self.notes.append({"name": name, "was": was, "now": now})
        self.told.append(f"since the run began: {name} is {now}, was {was}{more}")


def whole_checkpoint(folder: Path, screen: Screen, allow_changed: Sequence[str]) -> Path | None:
    """The checkpoint to resume from. Its files are read once: by the command that starts several processes, for all."""
    if launch.LAUNCHER in os.environ and CHECKED in os.environ:
        return folder / "checkpoints" / os.environ[CHECKED] if os.environ[CHECKED] else None
    with screen.working("Checking the files of the checkpoint …"):
        return checkpoints.newest_whole(folder, screen.say, allow_changed)


def check(run: Run, checkpoint: Path, plugins: Sequence[str], allowed: Collection[str] = ()) -> Resumed:
    """What changed since `checkpoint`. Raises `UserError` for what may not change and is not among `allowed`."""
    if not any(found for name in OPTIMIZER for found in checkpoint.glob(name)):
        raise UserError(
            f"{checkpoint} holds the weights alone, without the state of the optimizer (save_only_model), so the run "
            f"can't go on as if it had never stopped. Train the weights further in another run: --model {checkpoint}"
        )
    recorded = (checkpoint / checkpoints.RECORD).is_file()
    record = checkpoints.record(checkpoint) if recorded else {"manifest": manifest.read(run.folder)}
    written = record.get("config") or read_file(run.folder / "config.yaml")
    before, now = manifest.located(written, run.folder), run.config.to_dict()
    then, current = manifest.checked(record.get("manifest")), manifest.describe(run, plugins)
    _check_names(allowed, before, now, then, current)
    resumed, refused = Resumed(), _Refused(allowed)
    _compare_options(before, now, resumed, refused, same_files=_digests(then, "model") == _digests(current, "model"))
    _compare_files(then, current, resumed, refused)
    _compare_versions(then, current, resumed, refused)
    if refused.found:
        raise UserError(refused.message(checkpoint))
    _check_length(now, record, checkpoint, resumed)
    if not recorded:
        resumed.note(CHECKPOINT, "checked", "not checked")
    resumed.told += [f"--allow-changed {name}: it has not changed" for name in allowed if name not in resumed.names]
    resumed.manifest = _noted(then, current, resumed, checkpoint)
    resumed.rate_ratio = now["learning_rate"] / before.get("learning_rate", now["learning_rate"])
    resumed.written = {k: written[k] for k in manifest.MOVED if k in written and now.get(k) == before[k]}
    return resumed


def _noted(then: dict[str, Any], now: dict[str, Any], resumed: Resumed, checkpoint: Path) -> dict[str, Any]:
    """The manifest of the run as it goes on: as it was, but for what changed, which is noted."""
    if not resumed.notes:
        return then
    kept = {text: file for text, file in then.get("files", {}).items() if file["of"] not in resumed.names}
    files = {text: file for text, file in now["files"].items() if file["of"] in resumed.names or not then.get("files")}
    notes = [{"step": checkpoints.step(checkpoint), **note} for note in resumed.notes]
    changed = {"versions": now["versions"], "plugins": now["plugins"], "data": now["data"], "seed": now["seed"]}
    return {**now, **then, **changed, "files": {**kept, **files}, "changed": [*then.get("changed", []), *notes]}


class _Refused:
    """Collects what may not change."""

    def __init__(self, allowed: Collection[str]) -> None:
        self.allowed = allowed
        self.found: list[str] = []
        self.names: list[str] = []

    def allows(self, name: str, text: str) -> bool:
        """Whether a change may be; otherwise it will be in the message."""
        if name in self.allowed and name not in NEVER:
            return True
        self.found.append(text)
        self.names.append(name)
        return False

    def message(self, checkpoint: Path) -> str:
        flags = " ".join(f"--allow-changed {name}" for name in dict.fromkeys(self.names))
        anyway = "" if {*self.names} & {*NEVER} else f", or go on with them all the same: {flags}"
        return (
            f"--resume goes on with a run as it began, which these do not: {'; '.join(self.found)}. Leave them out, or "
            f"train the weights further in another run: --model {checkpoint}{anyway}"
        )


def _compare_options(
    before: Mapping[str, Any], now: Mapping[str, Any], resumed: Resumed, refused: _Refused, *, same_files: bool
) -> None:
    """What another version does not know was not changed. `same_files`: models that moved are what they were."""
    may_change = {*MAY_CHANGE} - ({"eval_steps"} if now["lr_scheduler_type"] in MEASURED else set())
    names = [name for name in before if name in now and name not in {*may_change, "set"}]
    pairs = {name: (before[name], now[name]) for name in names}
    sets = before.get("set") or {}, now.get("set") or {}
    pairs |= {name: tuple(one.get(name, "unset") for one in sets) for name in {**sets[0], **sets[1]}}
    for name, (was, value) in pairs.items():
        if was == value or name in may_change or (same_files and name in manifest.PATHS and was and value):
            continue
        if name in LENGTH:
            schedule = now["lr_scheduler_type"]
            resumed.note(name, was, value, f"; from here on the rate follows the {schedule} schedule of the new length")
        elif refused.allows(name, f"{name} {value} (was {was})"):
            resumed.note(name, was, value)
    if resumed.names & {*RATE} and {before["lr_scheduler_type"], now["lr_scheduler_type"]} & {*MEASURED}:
        raise UserError(f"the schedule {now['lr_scheduler_type']} follows a metric: its rate can't be set on --resume")


def _compare_files(then: Mapping[str, Any], now: Mapping[str, Any], resumed: Resumed, refused: _Refused) -> None:
    was, data = then.get("data") or {}, now["data"]
    if {**was, "source": None} != {**data, "source": None}:  # it may have moved
        rows = f"{was.get('rows', 0):,} rows and {was.get('held_out', 0):,} held out"
        rows_now = f"{data['rows']:,} and {data['held_out']:,}"
        change = f"{rows} then, {rows_now} now, or others, or in another order"
        text = f"the data is not what it was when the run began ({change})"
        if refused.allows(DATA, text if was else "what the data was when the run began is not known any more"):
            resumed.note(DATA, was.get("sha256"), data["sha256"])
    for name, what in FILES.items():
        one, other = _digests(then, name), _digests(now, name)
        changed = not {*one} <= {*other} and name not in resumed.names  # an earlier version had fewer
        if changed and refused.allows(name, f"{what} are not what they were when the run began"):
            resumed.note(name, one, other)


def _digests(described: Mapping[str, Any], name: str) -> list[str]:
    """The digests of the files of one option in a manifest."""
    return sorted({file["sha256"] for file in described.get("files", {}).values() if file["of"] == name})


def _compare_versions(then: Mapping[str, Any], now: Mapping[str, Any], resumed: Resumed, refused: _Refused) -> None:
    """Plugins may not change; other libraries are told."""
    was, plugins = _by_name(then.get("plugins", [])), _by_name(now["plugins"])
    for name, version in plugins.items():
        distribution = version.partition(" ")[0]
        if (
            name in was
            and was[name] != version
            and refused.allows(distribution, f"{name} is {version} (was {was[name]})")
        ):
            resumed.note(name, was[name], version)
    for name, version in now["versions"].items():
        if then.get("versions", {}).get(name, version) != version:
            resumed.note(name, then["versions"][name], version)


def _check_length(now: Mapping[str, Any], record: Mapping[str, Any], checkpoint: Path, resumed: Resumed) -> None:
    """Raise `UserError` for a length that the checkpoint is beyond, or that it can't be made longer to."""
    steps = checkpoints.step(checkpoint)
    if 0 < now["max_steps"] < steps:
        raise UserError(f"--max-steps {now['max_steps']}: the run is at step {steps} already, in {checkpoint.name}")
    by_epochs = now["max_steps"] < 0 and not now.get("total_episodes")
    if by_epochs and resumed.names & {*LENGTH} and (checkpoint / "trainer_state.json").is_file():
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        if now["num_train_epochs"] < state["epoch"]:
            raise UserError(
                f"--num-train-epochs {now['num_train_epochs']:g}: the run is at {state['epoch']:g} epochs already, in "
                f"{checkpoint.name}"
            )
    if resumed.names & {*LENGTH} and record.get("between_batches") is False:
        raise UserError(
            f"{checkpoint.name} is within a batch of answers, where the run ended, and a run goes on exactly only "
            f"between two. To make it longer, move {checkpoint} away: it goes on from the checkpoint before"
        )
    if resumed.names & {*STATE} and not (checkpoint / "optimizer.pt").is_file():
        raise UserError("the optimizer can't be changed in a run whose optimizer's state is split between processes")


def folder_to_load(run: Run) -> Path | None:
    """What the trainer loads: the checkpoint, if any; where the optimizer was changed, links to its files without the
    optimizer's state, which begins anew.
    """
    checkpoint = run.resume_from
    if checkpoint is None or not run.resumed.names & {*STATE}:
        return checkpoint
    view = checkpoint.parent / checkpoints.WRITING / f"without-optimizer-{checkpoint.name}"
    view.mkdir(parents=True, exist_ok=True)
    for file in checkpoint.iterdir():
        if file.name not in ("optimizer.pt", "scheduler.pt"):
            with suppress(FileExistsError):  # another process made it
                (view / file.name).symlink_to(file.resolve())
    return view


def _check_names(allowed: Collection[str], *described: Mapping[str, Any]) -> None:
    """Raise `UserError` for names that nothing has in configurations and manifests."""
    known = {*FILES, CHECKPOINT, DATA}
    for one in described:
        known |= {*one, *(one.get("set") or {})} if "method" in one else set()
        known |= {version.partition(" ")[0] for version in _by_name(one.get("plugins", [])).values()}
    known -= {*NEVER, "set", "by"}
    for name in allowed:
        if name not in known:
            raise UserError(
                f"--allow-changed {name}: nothing of that name may change.{did_you_mean(name, known)} "
                f"It is an option, {DATA}, {CHECKPOINT} or a plugin's distribution"
            )


def _by_name(plugins: Sequence[str]) -> dict[str, str]:
    """Distributions and versions by plugin, from the manifest's lines."""
    return {name: rest for name, _, rest in (line.rpartition(": ") for line in plugins)}
