"""What a run will be: data, options and model configuration, resolved and checked in the order of what they cost."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rlhf_core.catalog import Catalog
from rlhf_core.config import RunConfig
from rlhf_core.data import lengths
from rlhf_core.data import loading as data_module
from rlhf_core.data.chat_template import ESCAPE, ChatTemplate
from rlhf_core.data.checks import Checks
from rlhf_core.data.encoding import encode_conversation, tools_of
from rlhf_core.data.preparing import Preparation
from rlhf_core.data.progress import Progress, silent
from rlhf_core.data.projecting import PROJECTED, Need, prompt_of
from rlhf_core.data.stored import View
from rlhf_core.errors import UserError
from rlhf_core.method import SAMPLING, Method, TrainingOptions
from rlhf_core.models import loading as models
from rlhf_core.models import router
from rlhf_core.models.adapters import uses_lora
from rlhf_core.models.context import context_length
from rlhf_core.models.precision import left_unquantized
from rlhf_core.models.resolve import ModelReference, find
from rlhf_core.models.template import template_of
from rlhf_core.rewards.batch import columns_left_out
from rlhf_core.rewards.binding import ROW, BoundReward, check_columns
from rlhf_core.rewards.smoke_test import SmokeTest
from rlhf_core.training import arguments, best, launch, rates
from rlhf_core.ui.screen import Screen
from rlhf_core.unused import LORA, given_options

if TYPE_CHECKING:
    import datasets


# Options of an adapter, by PEFT's names.
ADAPTER = dict(zip(LORA, ("r", "lora_alpha", "lora_dropout", "target_modules"), strict=True))
Rows = Sequence[dict[str, Any]]
SIZES = ((1e9, "B"), (1e6, "M"), (1e3, "k"))


@dataclass
class Plan:
    """Everything a run needs but the weights.

    `config` has the options that are really used, `chosen` those that the method chose because they were unset. `gpus`
    says which of several are not used.
    """

    config: RunConfig
    chosen: dict[str, Any]
    data: data_module.Data
    info: models.ModelInfo
    template: ChatTemplate
    rewards: Sequence[BoundReward]
    system_prompt: str | None
    system_prompt_from: str
    gpus: Sequence[tuple[str, str]] = ()


def make_plan(
    config: RunConfig,
    method: Method,
    catalog: Catalog,
    rewards: Sequence[BoundReward],
    progress: Progress = silent,
) -> Plan:
    """Resolve and check. Raises `UserError`. `progress` is told what is being read."""
    for name in config.callback:
        catalog.find("callbacks", name)
    warnings = arguments.check_settings(method, config)
    system_prompt, origin = system_prompt_for(config.system_prompt, rewards)

    gpus: list[tuple[str, str]] = []

    @functools.cache
    def inspected() -> tuple[models.ModelInfo, TrainingOptions, Checks]:
        """Importing transformers, so after all rows are read."""
        gpus.extend(launch.use_one_gpu(config))
        info, options = _model_and_options(config, method)
        escape = options.control_tokens == "escape"
        template = template_of(info, options.chat_template_kwargs, escape=escape)
        prepare = Preparation(template, method.data, system_prompt, options.control_tokens)
        return info, options, Checks(prepare, lengths.Limits(method.data, options, template))

    data = data_module.load(
        config.data_specs,
        method.data,
        catalog,
        eval_specs=config.eval_specs,
        held_out=config.options.num_eval_prompts,
        seed=config.options.seed,
        max_bad_rows=config.max_bad_rows,
        preparation=lambda: inspected()[2],
        progress=progress,
    )
    info, given, checks = inspected()
    options, template = method.resolve_options(given, lora=bool(given.lora)), checks.template
    before = given.model_dump()
    chosen = {name: value for name, value in options.model_dump().items() if value != before[name]}
    for source, columns in data.columns:
        check_columns(rewards, columns, source)
    asked = {name for reward in rewards for name in (*reward.signature.columns, *reward.signature.optional)}
    unused = [text for part in data.parts for text in part.warn(asked)]
    warnings += [*info.warnings, *data.warnings, *unused, *checks.warnings()]
    method.check_rows(config.model_copy(update={"options": options}), len(data.train))
    answered = any(map(prompt_of, data.held_out))
    best.check(options, method, [r.name for r in rewards], rows=len(data.held_out), prompts=answered)
    explicit = given_options(config, method)
    warnings += [*_not_evaluated(method, config, explicit, data.held_out), *router.left_out(info.config, method)]
    warnings += [*rates.low_for_adapter(config, method, options), *left_unquantized(info.empty, options, info.called)]
    warnings += _check_context(info, method, options, template, data.train, data.held_out)
    warnings += columns_left_out(list(data.train[0])) if rewards else []
    data = replace(data, warnings=warnings)
    config = config.model_copy(update={"options": options})
    return Plan(config, chosen, data, info, template, rewards, system_prompt, origin, gpus)


def _model_and_options(config: RunConfig, method: Method) -> tuple[models.ModelInfo, TrainingOptions]:
    """What the model's files say, and the options with whether LoRA is used. Raises `UserError` for what can't be."""
    model = find(config.model, "--model", trust_remote_code=config.trust_remote_code)
    info = models.inspect(model, method.task, chat_template=config.chat_template)
    arguments.check_names(config.options)
    models.check_options(info, config.options, config.distributed)
    options = _with_adapter(config.options, info, model, given_options(config, method))
    if options.dtype == "float16" and not options.lora:
        raise UserError(
            "--dtype float16: all weights are trained, whose small gradients float16 can't hold. Use --dtype bfloat16 "
            "or float32, or train an adapter: --lora"
        )
    return info, options


def _with_adapter(options: TrainingOptions, info: models.ModelInfo, model: ModelReference, given: Any) -> Any:
    """The options with whether LoRA is used, and with those of the adapter that is trained further.

    Raises `UserError` for options of an adapter that are `given` and would have no effect.
    """
    lora = uses_lora(options, info)
    its = {name: model.adapter.get(key) for name, key in ADAPTER.items()} if lora and model.adapter else {}
    its = {name: sorted(value) if isinstance(value, list) else value for name, value in its.items()}
    for name in ADAPTER:
        wanted = sorted(given[name]) if isinstance(given.get(name), list) else given.get(name)
        shown = ",".join(wanted) if isinstance(wanted, list) else wanted
        flag = f"--{name.replace('_', '-')} {shown}"
        if name in given and not lora:
            raise UserError(f"{flag} has no effect: the model is trained without an adapter. Add --lora")
        if name in given and model.adapter and wanted != its[name]:
            raise UserError(
                f"{flag}: {model.called} is an adapter with {ADAPTER[name]} {its[name]}, which is trained further. "
                f"Leave it out; or merge the adapter (rlhf merge {model.path}) and train a new one on the merged model"
            )
    its = {name: value for name, value in its.items() if value is not None}
    return options.model_copy(update={"lora": lora, **its})


LONGEST_ANSWER = 2**20  # tokens; memory for the random numbers of a batch is taken before sampling


def _check_context(
    info: models.ModelInfo, method: Method, options: Any, template: ChatTemplate, train: Rows, held_out: Rows
) -> list[str]:
    """Raise `UserError` for rows that are longer, with their answers, than the model can read at all; returns warnings
    for those that are longer than it was made for.
    """
    sampled = method.data == "prompts" or (method.generates and bool(held_out))
    if sampled and options.max_completion_length > LONGEST_ANSWER:
        raise UserError(
            f"--max-completion-length {options.max_completion_length}: at most {LONGEST_ANSWER} tokens are sampled"
        )
    limit = info.max_tokens or context_length(info.config)
    if limit is None:
        return []
    allowed = options.max_length if method.data == "conversations" else options.max_prompt_length
    allowed += 0 if method.data == "conversations" else options.max_completion_length
    rows = () if allowed <= limit else train  # none has more than it may have
    answered = [{"prompt": prompt} for row in held_out if (prompt := prompt_of(row))] if method.generates else []
    prompts = lengths.most_tokens(answered, "prompts", options, template, limit)
    trained = lengths.most_tokens(rows, method.data, options, template, limit)
    if max(prompts, trained) <= limit:
        return []
    flags = "--max-completion-length, or a smaller --max-prompt-length with --overlong-prompts drop"
    if trained > limit and method.data == "conversations":
        flags = f"--max-length: at most {limit}"
    can = "can read" if info.max_tokens else "was made to read"
    longest = max(prompts, trained)
    what = "the longest row of the data" if trained == longest else "the longest held-out prompt"
    text = f"the model {can} {limit:,} tokens, and {what} has {longest:,}, with its answer. Use a smaller {flags}"
    if info.max_tokens:
        raise UserError(text)
    return [text]


def _not_evaluated(method: Method, config: RunConfig, given: Collection[str], held_out: Sequence[Any]) -> list[str]:
    """Warnings for what only answers to held-out prompts would use, where there are none."""
    if method.data == "prompts" or any(map(prompt_of, held_out)):
        return []
    names = [*SAMPLING, *(["max_completion_length"] if method.data == "conversations" else [])]
    flags = ["--" + name.replace("_", "-") for name in names if name in given] + ["--reward"] * bool(config.reward)
    return [f"{', '.join(flags)}: no effect, because no held-out prompts are answered"] if flags else []


def system_prompt_for(given: str | None, rewards: Sequence[BoundReward]) -> tuple[str | None, str]:
    """(system prompt, where it is from): the one `given`, '' for none; else those that the rewards expect, joined."""
    if given is not None:
        return given or None, "--system-prompt"
    asking = {reward.name: reward.reward.system_prompt for reward in rewards if reward.reward.system_prompt}
    return "\n".join(dict.fromkeys(asking.values())) or None, "reward " + ", ".join(asking)


def summary(plan: Plan, tested: SmokeTest | None, catalog: Catalog) -> list[tuple[str, str]]:
    """The lines shown before the weights load."""
    import torch

    config, data, options = plan.config, plan.data, plan.config.options
    entry = catalog.find("methods", config.method)
    bits = "4-bit" if options.load_in_4bit else "8-bit" if options.load_in_8bit else ""
    dtype = bits or plan.info.quantized or str(models.weight_dtype(options, bool(options.lora))).removeprefix("torch.")
    trained = f"LoRA r={options.lora_r}" if options.lora else "all trained"
    threads = torch.get_num_threads()
    cpu = f"CPU, {threads} thread{'s' * (threads > 1)}"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    size = next((f"{plan.info.parameters / n:.1f} {u}" for n, u in SIZES if plan.info.parameters >= n), "<1 k")
    rows = [("Method", f"{config.method}: {entry.summary}")]
    rows += [("Model", f"{config.model}, {size} parameters, {trained}, {dtype}")]
    for part in data.parts:
        held_out = f"; {len(data.held_out)} held out" if part is data.parts[-1] else ""
        rows += [("Data", f"{part}{held_out}"), ("Columns", part.columns())]
    rows += [("Warning", text) for text in data.warnings]
    rows += [("Reward", f"{r.spec} (weight {r.weight:g}; {r.distribution or 'by path'})") for r in plan.rewards]
    rows += tested.lines() if tested else []
    if plan.system_prompt:
        rows.append(("System", f"“{plan.system_prompt}” (from {plan.system_prompt_from})"))
    for label, why, values in (
        ("Options", "chosen by the method", plan.chosen),
        ("Preset", "for the built-in model", config.preset),
    ):
        if values:
            rows.append((label, f"{why}: " + ", ".join(f"{name} {value}" for name, value in values.items())))
    return [*rows, ("Device", device), *plan.gpus, ("Output", str(config.output_dir))]


def dataset(rows: Sequence[dict[str, Any]], need: Need, first: int = 0) -> datasets.Dataset:
    """What a method that needs `need` trains on, and the rows' numbers from `first` on in the column `ROW`.

    Messages, and the tools that a row's prompt shows, are stored as JSON: as Arrow's structures each would get the keys
    of all others. No other column is in it, whatever it holds. Rows on disk are looked up when they are asked for.
    """
    import datasets

    if isinstance(rows, View):
        numbers = datasets.Dataset.from_dict({ROW: range(first, first + len(rows))})
        return numbers.with_transform(lambda batch: _looked_up(rows, need, first, batch[ROW]))
    columns = {name: [row[name] for row in rows] for name in PROJECTED[need]}
    tools = [tools_of(row) for row in rows]
    columns |= {"tools": tools} if any(tools) else {}
    kinds = {**dict.fromkeys(columns, datasets.Json()), ROW: datasets.Value("int64")}
    return datasets.Dataset.from_dict({**columns, ROW: range(first, first + len(rows))}, datasets.Features(kinds))


def _looked_up(rows: Sequence[dict[str, Any]], need: Need, first: int, numbers: list[int]) -> dict[str, list[Any]]:
    found = [rows[number - first] for number in numbers]
    columns = {name: [row[name] for row in found] for name in PROJECTED[need]}
    return {**columns, "tools": [tools_of(row) for row in found], ROW: numbers}


def plugins_used(plan: Plan, catalog: Catalog) -> list[str]:
    """Method, rewards, formatters and callbacks with their distributions, for the manifest."""
    entries = [catalog.find("methods", plan.config.method)]
    entries += [catalog.find("callbacks", name) for name in plan.config.callback]
    parts = plan.data.parts
    paths = {part.spec.formatter for part in parts if part.spec.formatter and ":" in part.spec.formatter}
    formats = {name for part in parts for name in part.formats if part.spec.formatter not in paths}
    entries += [e for e in catalog.entries("formatters") if e.name in formats and e.problem != "disabled"]
    found = [f"{entry.kind[:-1]} {entry.name}: {entry.distribution} {entry.version}" for entry in entries]
    found += [f"formatter {path}: by path" for path in sorted(paths)]
    return found + [f"reward {reward.spec}: {reward.distribution or 'by path'}" for reward in plan.rewards]


def dry_run(plan: Plan, tested: SmokeTest | None, screen: Screen) -> None:
    """Show the scores of the first rows and one rendered prompt, or conversation."""
    if tested:
        kind = "a placeholder" if tested.placeholder else "the reference"
        for name, column in tested.columns.items():
            for answer, score, error in zip(tested.answers, column.scores, column.errors, strict=True):
                screen.say(f"reward {name} of {kind} answer {answer[:60]!r}: {error or score}")
    first = plan.data.train[0]
    prompt = first.get("prompt")
    screen.say(f"\nThe first {'prompt' if prompt else 'conversation'}, as the model gets it:\n")
    tools = tools_of(first)
    if prompt:
        shown = plan.template.prompt(prompt, tools)
    else:  # up to its last answer, with thoughts that the template leaves out
        shown = plan.template.tokenizer.decode(encode_conversation(plan.template, first["messages"], tools)[-1][0])
    screen.say(shown.replace(ESCAPE, ""))
    result = "A reward failed on every row, see above." if tested and tested.failed else "All checks passed."
    screen.say(f"{result} Nothing was trained (--dry-run).", "bold")
