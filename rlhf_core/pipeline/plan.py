"""The stages of a pipeline, checked before anything runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_core import grammar
from rlhf_core.catalog import Catalog
from rlhf_core.config import BUILTIN, MAIN, RunConfig, builtin_name, preset_for, resolve, spellings
from rlhf_core.errors import UserError, did_you_mean
from rlhf_core.inputs import path_of
from rlhf_core.method import Method
from rlhf_core.models.checkpoints import find_named
from rlhf_core.models.resolve import is_hub_id

GUIDE: dict[str, tuple[str, dict[str, Any]]] = {
    "ppo": (
        "fine-tune, train a reward model on pairs, then optimize its score with PPO",
        {"sft": {}, "reward_model": {"model": "sft"}, "ppo": {"model": "sft", "reward_model": "reward_model"}},
    ),
    "dpo": ("fine-tune, then learn from pairs directly", {"sft": {}, "dpo": {"model": "sft"}}),
    "orpo": ("fine-tune, then learn from pairs without a reference model", {"sft": {}, "orpo": {"model": "sft"}}),
    "grpo": (
        "fine-tune, then optimize a reward over groups of answers",
        {"sft": {}, "grpo": {"model": "sft", "reward": ["medical_format"]}},
    ),
}
FEEDS = {"model": "causal_lm", "reward_model": "sequence_classification"}  # key -> what the stage it names must train
REWARDS = ("reward", "reward_model")  # keys that only methods with rewards use
NAME = re.compile(r"[A-Za-z_][\w-]*")
PLAN, COMPARISON = "pipeline.yaml", "comparison"

RunCommand = Callable[[Sequence[str]], int]  # arguments of `rlhf` -> exit code


@dataclass(frozen=True)
class Stage:
    """One run of a pipeline.

    `values` are its keys under the names of `RunConfig` and the method's options, earlier stages by their name, which
    make it again whatever model it then starts from; `feeds` are those keys with their stages. `origin` is the model
    that its chain of stages starts from, and `preset` what it keeps of its method's built-in preset although its model
    is a folder.
    """

    name: str
    folder: Path
    values: dict[str, Any]
    feeds: dict[str, str]
    config: RunConfig
    method: Method
    origin: str
    preset: dict[str, Any]

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def holds_out(self) -> bool:
        """Whether it is to hold out prompts, on which its model can be compared."""
        config = self.config
        return config.data == [BUILTIN] or bool(config.eval_specs or config.options.num_eval_prompts)


@dataclass(frozen=True)
class Pipeline:
    """Checked stages in their order, and the part of them that is to run."""

    folder: Path
    stages: dict[str, Stage]
    selected: list[Stage]
    compare: bool
    resume_command: str


def read_stage_flags(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`--stage NAME:key=value,…` by stage; what is given later wins."""
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, values = grammar.read_entry(text, "--stage", "NAME")
        if not values:
            raise UserError(f"--stage {text!r} sets nothing: write NAME:key=value, with keys such as max_steps")
        found.setdefault(name, {}).update(values)
    return found


def plan(
    description: Mapping[str, Any],
    folder: Path,
    catalog: Catalog,
    flags: Mapping[str, Any],
    stage_flags: Mapping[str, Mapping[str, Any]],
) -> dict[str, Stage]:
    """Check every stage of a description, before anything runs. Raises `UserError` that names stage and key.

    `flags` may set `data`, `reward`, and `model` where it is no stage's; `stage_flags` are keys of single stages.
    """
    written = description.get("stages")
    if not isinstance(written, Mapping) or not written:
        raise UserError("a pipeline has `stages:`, a mapping of names to settings, such as `sft: {data: FILE}`")
    if unknown := set(stage_flags) - set(written):
        name = sorted(unknown)[0]
        raise UserError(f"--stage {name}: there is no such stage.{did_you_mean(name, written)} {_listed(written)}")
    shared = {key: value for key, value in description.items() if key != "stages"}
    for key in shared.keys() & {"method", "output_dir"}:
        raise UserError(f"{key} can't be set beside `stages`: set methods in the stages, the folder with --output-dir")
    planner = _Planner(written, shared, folder, catalog, flags, stage_flags)
    for name in written:
        try:
            planner.add(name)
        except UserError as error:
            raise type(error)(f"stage {name}: {error}") from error
    known = spellings(MAIN).keys() | {"stages"}
    known |= {key for stage in planner.stages.values() for key in spellings(stage.method.Options.model_fields)}
    for key in shared:
        if key not in known:
            hint = did_you_mean(key, known)
            raise UserError(f"no stage's method knows {key!r}, which is set beside `stages`.{hint}")
    if "reward" in flags and not any(stage.method.rewards == "required" for stage in planner.stages.values()):
        raise UserError(f"--reward {flags['reward'][0]}: no stage of this pipeline uses a reward")
    return planner.stages


@dataclass
class _Planner:
    """Adds one stage after the other.

    A stage's own keys win over shared ones, `flags` over both, `stage_flags` over all.
    """

    written: Mapping[str, Any]
    shared: Mapping[str, Any]
    folder: Path
    catalog: Catalog
    flags: Mapping[str, Any]
    stage_flags: Mapping[str, Mapping[str, Any]]
    stages: dict[str, Stage] = field(default_factory=dict)

    def add(self, name: str) -> None:
        if not isinstance(name, str) or not NAME.fullmatch(name) or name == COMPARISON:
            raise UserError(f"{name!r} can't name a stage: use letters, digits, _ and -, and not {COMPARISON!r}")
        own = self.written[name] if self.written[name] is not None else {}
        if not isinstance(own, Mapping):
            raise UserError(f"expected keys and values, such as {{method: sft}}, not {own!r}")
        own = {str(key).replace("-", "_"): value for key, value in own.items()}
        flags = self.stage_flags.get(name, {})
        if "output_dir" in {**own, **flags}:
            raise UserError(f"leave out output_dir: the pipeline chooses {self.folder / name}")
        method_name = str(flags.get("method") or own.get("method") or name)
        method: Method = self.catalog.load("methods", method_name)[0]()
        known = spellings(MAIN) | spellings(method.Options.model_fields)
        shared, own, flags = ({known.get(key, key): v for key, v in keys.items()} for keys in (self.shared, own, flags))
        unused = {*(() if method.rewards == "required" else REWARDS), *method.unused_options()}
        shared = {key: value for key, value in shared.items() if key in known and key not in unused}
        values = {"method": method_name, "model": BUILTIN, **shared, **own}
        kept = "model" if str(values["model"]) in self.written else ""
        values |= {key: value for key, value in self.flags.items() if key not in {kept, *unused}}
        values |= flags
        values["model"] = builtin_name(values["model"])
        feeds = self._feeds(values)
        origin = self.stages[feeds["model"]].origin if "model" in feeds else str(values["model"])
        preset: dict[str, Any] = {}
        if "model" in feeds and origin == BUILTIN:
            preset = preset_for(method, values)
        fed = {key: str(self.stages[stage].model) for key, stage in feeds.items()}
        config, method = resolve({**values, **preset, **fed, "output_dir": str(self.folder / name)}, self.catalog)
        stage = Stage(name, self.folder / name, values, feeds, config, method, origin, preset)
        _check_inputs(stage, self.catalog)
        self.stages[name] = stage

    def _feeds(self, values: Mapping[str, Any]) -> dict[str, str]:
        """The keys that name an earlier stage. Raises `UserError` for other stages and for models not found."""
        feeds: dict[str, str] = {}
        for key, task in FEEDS.items():
            value = values.get(key)
            if not isinstance(value, str):
                continue
            if value in self.stages:
                if self.stages[value].method.task != task:
                    what = "scores answers" if task == "causal_lm" else "writes answers"
                    raise UserError(f"{key}: stage {value!r} trains a model that {what}, which can't be used as {key}")
                feeds[key] = value
            elif value in self.written:
                raise UserError(f"{key}: {value!r} is not an earlier stage: a stage can only use stages above it")
            elif (stage := value.rpartition("@")[0]) in self.written:
                raise UserError(
                    f"{key}: {value!r}: a stage hands on its model. Write {stage!r}, and final_model: best in stage "
                    f"{stage}"
                )
            elif not (
                value == BUILTIN
                or path_of(value, key).is_dir()
                or find_named(value, key)
                or (key == "model" and is_hub_id(value))
            ):
                hint = did_you_mean(value, self.stages)
                raise UserError(
                    f"{key}: {value!r} is neither a model nor an earlier stage.{hint} {_listed(self.stages)}"
                )
        return feeds


def _listed(names: Any) -> str:
    return f"Stages: {', '.join(map(str, names)) or 'none'}."


def _check_inputs(stage: Stage, catalog: Catalog) -> None:
    """Raise `UserError` for data and rewards that do not exist, which a later stage would miss only after hours."""
    from rlhf_core.data.files import KINDS, PACKED

    for spec in [*stage.config.data_specs, *stage.config.eval_specs]:
        local = spec.source.lower().endswith((*KINDS, *PACKED, ".txt")) or spec.source.startswith((".", "/", "~"))
        if local and not path_of(spec.source, "--data").exists():
            raise UserError(f"--data {spec.source}: there is no such file or folder.")
        script = python_file(spec.formatter or "")
        if script and not script.is_file():
            raise UserError(f"--formatter: there is no file {script}")
        if spec.formatter and ":" not in spec.formatter:
            catalog.find("formatters", spec.formatter)
    for reward in stage.config.reward_specs:
        if ":" not in reward.target and not reward.target.endswith(".py"):
            catalog.find("rewards", reward.target)
        elif (file := python_file(reward.target)) and not file.is_file():
            raise UserError(f"--reward: there is no file {file}")


def python_file(target: str) -> Path | None:
    """The file of a reward or a formatter given as ./file.py:function."""
    start, found, _ = target.partition(".py:")
    return path_of(start + ".py", "--reward") if found else None


def select(stages: Mapping[str, Stage], first: str | None, last: str | None, only: str | None) -> list[Stage]:
    """The stages from `first` to `last`, or `only` one. Raises `UserError` for unknown names."""
    if only and (first or last):
        raise UserError("--only is one stage: leave out --from-stage and --to-stage")
    names = list(stages)
    for flag, name in {"--from-stage": first, "--to-stage": last, "--only": only}.items():
        if name and name not in stages:
            raise UserError(f"{flag} {name}: there is no such stage.{did_you_mean(name, names)} {_listed(names)}")
    start, end = names.index(only or first or names[0]), names.index(only or last or names[-1])
    if start > end:
        raise UserError(f"--from-stage {first} comes after --to-stage {last}. {_listed(names)}")
    return [stages[name] for name in names[start : end + 1]]
