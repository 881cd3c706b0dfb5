"""One validated description of a run, from a YAML file and flags.

Both hold the same keys: the fields of `RunConfig` and those of the method's `Options`, side by side. Flags win over the
file, the file over the method's preset for the built-in model, the preset over the defaults.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
)
from pydantic.fields import FieldInfo

from rlhf_core import credentials, settings, unused
from rlhf_core.catalog import Catalog
from rlhf_core.errors import UserError, did_you_mean, excerpt
from rlhf_core.grammar import DataSpec, RewardSpec, read_data
from rlhf_core.inputs import label, parse_yaml, path_of, plain, read_text
from rlhf_core.method import Method, TrainingOptions
from rlhf_core.numbers import MAX_BAD_ROWS, MAX_BAD_ROWS_HELP

BUILTIN = "builtin"
ALSO_BUILTIN = "embedded"  # its name in files that earlier versions wrote


def builtin_name(value: Any) -> Any:
    """`builtin` for its earlier name; any other value as it is."""
    return BUILTIN if value == ALSO_BUILTIN else value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


def _address(value: str) -> str:
    """`value`, if it is a host's name or address, maybe with a port."""
    host, _, port = value.partition(":")
    if not host or re.search(r"[\s/]", host) or (":" in value and not (port.isdecimal() and 0 < int(port) < 2**16)):
        raise ValueError("write HOST:PORT, such as 10.0.0.1:29500")
    return value


Specs = Annotated[list[str | dict[str, Any]], BeforeValidator(_listed)]


TRUST_REMOTE_CODE = "run the code that a model brings with it; read it first, it can do all that you can"


class RunConfig(BaseModel):
    """What a run is made of. `options` are the method's; `preset` is the part of them that its built-in preset set."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, protected_namespaces=())

    method: str = Field(description="training method")
    reward: Specs = Field(
        [], description="reward, NAME or NAME:key=value,…, by installed name or as ./file.py:function; repeatable"
    )
    reward_model: str | None = Field(
        None,
        description="folder of a trained reward model or of its run: short for --reward reward_model:path=FOLDER",
        validation_alias=AliasChoices("reward_model_path", "reward_model_name_or_path"),
    )
    model: Annotated[str, AfterValidator(builtin_name)] = Field(
        BUILTIN,
        description="folder of a model, an adapter or a run, its checkpoint (RUN@120, RUN@best), or a Hub id",
        validation_alias=AliasChoices("model_name_or_path", "sft_model_path"),
    )
    data: Annotated[Specs, AfterValidator(lambda given: [builtin_name(value) for value in given])] = Field(
        [BUILTIN],
        min_length=1,
        description="file (.json, .jsonl, .csv, .parquet, .gz), folder, Hub id; repeatable; FILE:weight=2 sets a share",
        validation_alias=AliasChoices("dataset_name"),
    )
    eval_data: Specs = Field(
        [], description="data to evaluate on before and after training; unset: rows of --data, held out; repeatable"
    )
    data_config: str | None = Field(
        None,
        description="configuration of a Hub dataset",
        validation_alias=AliasChoices("dataset_config_name", "subset_name"),
    )
    formatter: str | None = Field(None, description="format of the data; unset: found from the columns")
    max_bad_rows: float = Field(MAX_BAD_ROWS, ge=0, le=1e12, allow_inf_nan=False, description=MAX_BAD_ROWS_HELP)
    system_prompt: str | None = Field(
        None, description="system message for rows without one; '' for none; unset: the reward's"
    )
    chat_template: str | None = Field(None, description="file with a chat template (Jinja), for a model without one")
    trust_remote_code: bool = Field(False, description=TRUST_REMOTE_CODE)
    output_dir: str | None = Field(None, description="folder of the run; unset: runs/NAME, or runs/METHOD-TIME")
    name: Annotated[str, AfterValidator(label)] | None = Field(
        None, description="name of the run, in listings and trackers; without --output-dir also of its folder"
    )
    tag: Annotated[list[Annotated[str, AfterValidator(label)]], BeforeValidator(_listed)] = Field(
        [], description="tag of the run, to find it by; repeatable"
    )
    report_to: Annotated[list[str], BeforeValidator(_listed)] = Field(
        ["tensorboard"], description="tensorboard, wandb, trackio, mlflow, swanlab or none; repeatable, or with commas"
    )
    callback: list[str] = Field([], description="trainer callback, by plugin name; repeatable")
    stop_on: list[str] = Field(
        [], description="stop with a checkpoint when this is found (rlhf diagnose --list), or any; repeatable"
    )
    num_processes: int = Field(1, ge=1, le=1024, description="processes on this machine, one for each GPU")
    num_machines: int = Field(1, ge=1, le=65_536, description="number of machines; the same command is started on each")
    machine_rank: int = Field(0, ge=0, description="number of this machine, from 0")
    master_addr: Annotated[str, AfterValidator(_address)] | None = Field(
        None,
        description="HOST:PORT of machine 0, where there are several",
        validation_alias=AliasChoices("main_address"),
    )
    distributed: Literal["ddp", "fsdp", "zero2", "zero3"] = Field(
        "ddp", description="split only the data (ddp), gradients and optimizer state too (zero2), or all (fsdp, zero3)"
    )
    hang_timeout: float = Field(
        600,
        ge=10,
        le=604_800,
        description="seconds that the other processes wait for one that does nothing; then the run ends and names it",
    )
    set: dict[str, Any] = Field({}, description="name=value of the underlying training arguments; repeatable")
    options: SerializeAsAny[TrainingOptions] = Field(TrainingOptions(), exclude=True)
    preset: dict[str, Any] = Field({}, exclude=True)

    @property
    def trackers(self) -> list[str]:
        """The trackers of `report_to`, each once; empty for `none`."""
        names = [name.strip() for each in self.report_to for name in each.split(",")]
        return [name for name in dict.fromkeys(names) if name != "none"]

    @functools.cached_property
    def data_specs(self) -> list[DataSpec]:
        return read_data(self.data, self.data_config, self.formatter)

    @functools.cached_property
    def eval_specs(self) -> list[DataSpec]:
        return read_data(self.eval_data, self.data_config, self.formatter)

    @functools.cached_property
    def reward_specs(self) -> list[RewardSpec]:
        return read_rewards(self.reward, self.reward_model, trust_remote_code=self.trust_remote_code)

    def to_dict(self) -> dict[str, Any]:
        """Every key with its resolved value, as plain data: as YAML, `rlhf run --config` on it repeats the run."""
        return {**self.model_dump(mode="json"), **self.options.model_dump(mode="json")}


MAIN = {name: field for name, field in RunConfig.model_fields.items() if not field.exclude}


def resolve(
    values: Mapping[str, Any], catalog: Catalog, *, under: Sequence[Mapping[str, Any]] = ()
) -> tuple[RunConfig, Method]:
    """Validate keys and load the method. `values` win over the layers in `under`, and later ones over earlier ones.

    Raises `UserError` that names the key and what is allowed.
    """
    layers = [*under, values]
    for key, value in (item for layer in layers for item in layer.items()):
        if key != "system_prompt":  # it is text that the model is given
            credentials.refuse({key: value}, "--" + str(key).replace("_", "-"))
    name = next((layer["method"] for layer in reversed(layers) if layer.get("method")), None)
    if not isinstance(name, str) or not name:
        names = ", ".join(entry.name for entry in catalog.entries("methods"))
        raise UserError(f"which method? Write --method NAME. Installed: {names}.")
    method = catalog.load("methods", name)[0]()
    read = [_read(layer, method) for layer in layers]
    given = {key: value for options, _ in read for key, value in options.items()}
    main = {key: value for _, keys in read for key, value in keys.items()}
    main["set"] = {key: value for _, keys in read for key, value in keys["set"].items() if key not in given}
    built_in = builtin_name(main.get("model", BUILTIN)) == BUILTIN
    preset = preset_for(method, given) if built_in else {}
    try:
        options = method.Options.model_validate({**preset, **given})
        config = RunConfig.model_validate({**main, "options": options, "preset": preset})
    except ValidationError as error:
        raise UserError(explain(error)) from error
    unused.check(config, method)
    settings.check(method, config)
    method.check(config)
    return config, method


def _read(values: Mapping[str, Any], method: Method) -> tuple[dict[str, Any], dict[str, Any]]:
    """(options, other keys) under their own names. Those of `set` that are options are among the options."""
    main_keys, option_keys = spellings(MAIN), spellings(method.Options.model_fields)
    options: dict[str, Any] = {}
    main: dict[str, Any] = {}
    written: dict[str, str] = {}  # how the user wrote an option
    passed_on: dict[str, Any] = {}

    def take(option: str, value: Any, wrote: str) -> None:
        if option in options and not _equal(method.Options.model_fields[option], options[option], value):
            one, other = f"{written[option]} {excerpt(options[option])}", f"{wrote} {excerpt(value)}"
            raise UserError(f"{one} and {other} are the same option: give one")
        options[option], written[option] = value, wrote

    for key, value in values.items():
        plain(value, "--" + excerpt(key).replace("_", "-"))
        if key in main_keys:
            main[main_keys[key]] = value
        elif key in option_keys:
            take(option_keys[key], value, "--" + key.replace("_", "-"))
        else:
            hint = did_you_mean(str(key), {*main_keys, *option_keys})
            raise UserError(
                f"method {method.name} has no option {excerpt(key)!r}.{hint} See rlhf run --method {method.name} --help"
            )
    given = main.get("set", {})
    if not isinstance(given, Mapping):
        raise UserError(f"set: expected names and values, such as {{adam_beta2: 0.95}}, not {excerpt(repr(given))}")
    for key, value in given.items():
        name = str(key)
        same = option_keys.get(name) or getattr(settings.decide(method, name), "option", "")
        if same:
            take(same, value, f"--set {name}")
        else:
            passed_on[name] = value
    return options, {**main, "set": passed_on}


def _equal(field: FieldInfo, one: Any, other: Any) -> bool:
    """Whether two values of an option mean the same, such as the text `8` and the number."""
    annotation: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    kind: TypeAdapter[Any] = TypeAdapter(annotation)
    try:
        return kind.validate_python(one) == kind.validate_python(other)
    except ValidationError:  # which is reported when the options are validated
        return one == other


def preset_for(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """The method's preset for the built-in model, without what is given and what that leaves without effect."""
    preset = {name: value for name, value in method.preset().items() if name not in given}
    if "num_train_epochs" in given:
        preset.pop("max_steps", None)
    if str(given.get("lora", preset.get("lora"))).lower() == "false":
        preset = {name: value for name, value in preset.items() if not name.startswith("lora_")}
    return preset


def read_rewards(
    entries: Sequence[str | Mapping[str, Any]], reward_model: str | None = None, *, trust_remote_code: bool = False
) -> list[RewardSpec]:
    """The rewards of a run, from its keys `reward` and `reward_model`, whose code may be trusted."""
    trust = {"trust_remote_code": True} if trust_remote_code else {}
    trained = [RewardSpec("reward_model", {"path": reward_model, **trust})] if reward_model else []
    entries = _listed(entries)
    if not (isinstance(entries, Sequence) and all(isinstance(entry, str | Mapping) for entry in entries)):
        raise UserError(f"reward: {excerpt(repr(entries))} is neither a reward nor a list of rewards")
    return [*map(RewardSpec.read, entries), *trained]


def read_file(path: str | Path) -> dict[str, Any]:
    """The keys of a YAML file, `-` read as `_`."""
    where = f"--config {path}"
    written = parse_yaml(read_text(path_of(path, "--config"), "--config"), where)
    if not isinstance(written, dict) or not written:
        raise UserError(f"{where}: expected keys and values, such as `method: grpo`")
    values: dict[str, Any] = {}
    for key, value in written.items():
        name = plain(str(key).replace("-", "_"), where)
        if name in values:
            raise UserError(f"{where}: {name!r} is there twice, once as {key!r}")
        values[name] = plain(value, f"{where}: {excerpt(name)}")
    return values


def spellings(fields: Mapping[str, FieldInfo]) -> dict[str, str]:
    """The field's name by every name and alias of a model's fields."""
    names = {name: name for name in fields}
    for name, field in fields.items():
        if isinstance(field.validation_alias, AliasChoices):
            names |= {str(alias): name for alias in field.validation_alias.choices}
    return names


def explain(error: ValidationError) -> str:
    """One line for each thing that pydantic found, in the user's words."""
    lines = []
    for problem in error.errors():
        message = problem["msg"].removeprefix("Value error, ")
        if problem["loc"]:
            flag = "--" + str(problem["loc"][0]).replace("_", "-")
            message = f"{flag} {excerpt(problem['input'])}: {message[0].lower() + message[1:]}"
        lines.append(message)
    return "\n".join(lines)
