"""What is estimated: the options that a run would really use, its model's shape, and how long its rows are.

A model is a folder or a Hub id as for `rlhf run`, a folder with a config.json alone, or one of the usual models, whose
shapes are shipped: then nothing is downloaded, and lengths are those that the options allow, or that the user says.
"""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core import builtin
from rlhf_core.catalog import Catalog
from rlhf_core.config import BUILTIN, RunConfig
from rlhf_core.errors import UserError
from rlhf_core.estimate.scorers import bind
from rlhf_core.estimate.shapes import config_of, find_shape
from rlhf_core.estimate.synthetic import Lengths, lengths_of
from rlhf_core.method import Method
from rlhf_core.models import checks, files
from rlhf_core.models.adapters import uses_lora
from rlhf_core.models.loading import ModelInfo, check_options
from rlhf_core.models.resolve import ModelReference, find, quiet_libraries
from rlhf_core.training import plan as planning

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from rlhf_core.data.chat_template import ChatTemplate

UNLIKELY = 3.5  # standard deviations
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5")  # ends of names of files
LOOKED_AT = 1000  # rows whose tokens are counted, and as many of the longest by their bytes


@dataclass(frozen=True)
class Planned:
    """`config` has the options that the run really uses, and a usual model's full name. `longest`: the mean of the rows
    that make up the largest forward pass; `mean`: of all; `rows`: how many there are, if data was given. `notes` say
    where lengths are from; `scorers` are the rewards' models.
    """

    config: RunConfig
    info: ModelInfo
    longest: Lengths
    mean: Lengths
    rows: int | None
    notes: list[str]
    scorers: Sequence[ModelInfo] = ()


def plan(config: RunConfig, method: Method, catalog: Catalog, folder: Path) -> Planned:
    """Resolve and check what a run would. A shipped shape is put into `folder`. Raises `UserError`."""
    shape = _shape(config)
    rewards, scorers = bind(config, catalog)
    if shape is None and (config.data != [BUILTIN] or config.model == BUILTIN):
        made = planning.make_plan(config, method, catalog, rewards)
        rows, options = made.data.train, made.config.options
        counted = lengths_of(_sample(rows), method.data, made.template, options)
        longest = _largest_pass(counted, method, options)
        return Planned(made.config, made.info, longest, _mean(counted), len(rows), [], scorers)
    with quiet_libraries():
        info = _read(config, method) if shape is None else _without_files(*shape, method, folder)
    options = config.options
    check_options(info, options)
    lora = uses_lora(options, info)
    options = method.resolve_options(options.model_copy(update={"lora": lora}), lora=lora)
    name = shape[0] if shape else config.model
    given = config.model_copy(update={"options": options, "model": name})
    count = None if config.data == [BUILTIN] else _count(config, method, catalog)
    note = "as long as the options allow; say otherwise with --prompt-tokens and --completion-tokens"
    if shape and count is not None:
        note = f"{config.model} is not here, or without weights, so lengths are {note}"
    allowed = limits(method, options)
    return Planned(given, info, allowed, allowed, count, [note], scorers)


def _shape(config: RunConfig) -> tuple[str, PreTrainedConfig] | None:
    """The name and configuration of a model of which nothing else is here: a usual one, or a folder without weights."""
    name, folder = config.model, Path(config.model).expanduser()
    if name == BUILTIN:
        return None
    if folder.exists():
        names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
        alone = files.CONFIG in names and not any(name.endswith((*WEIGHTS, files.ADAPTER_CONFIG)) for name in names)
        reference = find(name, "--model", trust_remote_code=config.trust_remote_code)
        return (name, files.read_config(reference)) if alone else None
    try:
        full, shape = find_shape(name)
        return full, config_of(shape)
    except UserError:
        if "/" in name:
            return None  # another Hub id
        raise


def _read(config: RunConfig, method: Method) -> ModelInfo:
    from rlhf_core.models.loading import inspect

    reference = find(config.model, "--model", trust_remote_code=config.trust_remote_code)
    return inspect(reference, method.task, chat_template=config.chat_template)


def _without_files(name: str, config: PreTrainedConfig, method: Method, folder: Path) -> ModelInfo:
    """A model of which there is but its configuration; it is given the built-in tokenizer."""
    reference = ModelReference(str(folder), str(folder), f"--model {name}")
    empty = checks.without_weights(config, method.task, reference)
    config.architectures = [type(empty).__name__]
    config.save_pretrained(folder)
    tokenizer = files.read_tokenizer(ModelReference(str(builtin.MODEL), str(builtin.MODEL), name))
    return ModelInfo(
        path=str(folder),
        config=config,
        tokenizer=tokenizer,
        parameters=empty.num_parameters(),
        task=method.task,
        empty=empty,
        complete=True,
        called=f"--model {name}",
        reference=reference,
    )


def _count(config: RunConfig, method: Method, catalog: Catalog) -> int:
    """Rows to train on, without the model's template."""
    from rlhf_core.data.loading import load

    data = load(config.data_specs, method.data, catalog, held_out=config.options.num_eval_prompts, seed=0)
    return len(data.train)


def limits(method: Method, options: Any) -> Lengths:
    """The longest row that the options allow."""
    if method.data == "conversations":
        return Lengths(options.max_length // 2, options.max_length - options.max_length // 2)
    return Lengths(options.max_prompt_length, options.max_completion_length)


def _sample(rows: Sequence[Any]) -> list[Any]:
    """All rows, or of many a sample and the longest by their bytes."""
    if len(rows) <= 2 * LOOKED_AT:
        return list(rows)
    chosen = random.Random(0).sample(range(len(rows)), min(len(rows), 50 * LOOKED_AT))
    by_size = sorted(chosen, key=lambda i: len(json.dumps(rows[i], ensure_ascii=False, default=str)), reverse=True)
    return [rows[i] for i in {*chosen[:LOOKED_AT], *by_size[:LOOKED_AT]}]


def longest_pass(rows: Sequence[Any], method: Method, template: ChatTemplate, options: Any) -> Lengths:
    """The mean lengths of the rows that make up the largest forward pass."""
    return _largest_pass(lengths_of(_sample(rows), method.data, template, options), method, options)


def _largest_pass(counted: Sequence[Lengths], method: Method, options: Any) -> Lengths:
    """The mean of the rows that go through the model together where they are longest: the longest row beside others,
    or what chance brings together once in some thousand passes. Of prompts, a group shares one.
    """
    group = options.num_generations if "num_generations" in type(options).model_fields else 1
    answers = 2 if method.data == "preferences" else group

    def tokens(one: Lengths) -> int:
        return one.prompt + answers * one.completion

    together = max(1, options.per_device_train_batch_size // group)
    ordered, mean = sorted(counted, key=tokens, reverse=True), _mean(counted)
    likely = tokens(mean) + UNLIKELY * statistics.pstdev(map(tokens, counted)) / math.sqrt(together)
    certain = (tokens(ordered[0]) + (together - 1) * tokens(mean)) / together
    most = _mean(ordered[:together])
    if max(likely, certain) >= tokens(most):
        return most
    share = max(likely, certain) / tokens(mean)
    return Lengths(math.ceil(mean.prompt * share), math.ceil(mean.completion * share))


def _mean(counted: Sequence[Lengths]) -> Lengths:
    count = len(counted)
    return Lengths(-(-sum(one.prompt for one in counted) // count), -(-sum(one.completion for one in counted) // count))
