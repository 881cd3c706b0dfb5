"""What a run will be: data, rewards and model configuration, resolved and checked in the order of what they cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rlhf_core.catalog import Catalog
from rlhf_core.config import RunConfig
from rlhf_core.data import lengths
from rlhf_core.data import loading as data_module
from rlhf_core.errors import UserError
from rlhf_core.method import Method
from rlhf_core.models import loading as models
from rlhf_core.rewards import smoke_test as tryout
from rlhf_core.rewards.runtime import RewardRuntime
from rlhf_core.rewards.spec import BoundReward
from rlhf_core.training.arguments import check_settings
from rlhf_core.ui.screen import Screen

if TYPE_CHECKING:
    import datasets


@dataclass
class Plan:
    """Everything a run needs but the weights."""

    data: data_module.Data
    info: models.ModelInfo
    rewards: RewardRuntime
    system_prompt: str | None
    system_prompt_from: str
    tried: tryout.Tried | None = None


def make_plan(config: RunConfig, method: Method, catalog: Catalog, rewards: list[BoundReward]) -> Plan:
    options = config.options
    check_settings(method.config, config.set, method.Options.model_fields)
    data = data_module.load(
        config.data_specs,
        method.data,
        catalog,
        eval_specs=config.eval_specs,
        held_out=options.num_eval_prompts,
        seed=options.seed,
        skip_bad_rows=config.skip_bad_rows,
    )
    info = models.inspect(config, method.task)
    runtime = RewardRuntime(rewards, lambda ids: info.tokenizer.decode(ids, skip_special_tokens=True))
    runtime.check_columns(data.columns, ", ".join(part.spec.source for part in data.parts))
    system_prompt, origin = system_prompt_for(config, rewards)
    if system_prompt:
        for rows in (data.train, data.held_out):
            data_module.add_system_prompt(rows, system_prompt)
    data = _limited(data, method, options, info)
    runtime.start()
    return Plan(data, info, runtime, system_prompt, origin)


def _limited(data: data_module.Data, method: Method, options: Any, info: models.ModelInfo) -> data_module.Data:
    """The data without what can't be trained on, by the rules of the options; what was left out is in its notes."""
    parts, notes = [], list(data.limit_notes)
    for rows, said in ((data.train, notes), (data.held_out, [])):
        if method.data != "conversations":
            count, rule = len(rows), options.overlong_prompts
            rows = lengths.limit_prompts(rows, info.tokenizer, options.max_prompt_length, rule)
            if len(rows) < count:
                said.append(f"left out {count - len(rows):,} of {count:,} rows, whose prompts are too long")
        if method.data == "preferences" and rows:
            rows, dropped = lengths.drop_pairs_without_difference(rows)
            limit, rule = options.max_completion_length, options.overlong_completions
            rows, cut = lengths.limit_answers(rows, info.tokenizer, limit, rule)
            said += dropped + cut
        if method.data == "conversations" and rows:
            rows, cut = lengths.limit_conversations(
                rows, info.tokenizer, options.max_length, options.overlong_completions
            )
            said += cut
        parts.append(rows)
    return replace(data, train=parts[0], held_out=parts[1], limit_notes=notes)


def system_prompt_for(config: RunConfig, rewards: list[BoundReward]) -> tuple[str | None, str]:
    """(system prompt, where it is from): the user's, or else what the rewards expect, one after the other."""
    if config.system_prompt is not None:
        return config.system_prompt or None, "--system-prompt"
    asking = {reward.name: reward.reward.instruction for reward in rewards if reward.reward.instruction}
    return "\n".join(dict.fromkeys(asking.values())) or None, "reward " + ", ".join(asking)


def summary(config: RunConfig, catalog: Catalog, plan: Plan) -> list[tuple[str, str]]:
    """The lines shown before the weights load."""
    import torch

    entry = catalog.find("methods", config.method)
    info, data = plan.info, plan.data
    lora = models.uses_lora(config.options, info)
    bits = "4-bit" if config.options.load_in_4bit else "8-bit" if config.options.load_in_8bit else ""
    dtype = bits or str(models.weight_dtype(config.options, lora)).removeprefix("torch.")
    trained = f"LoRA r={config.options.lora_r}" if lora else "all trained"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    rows = [
        ("Method", f"{config.method}: {entry.summary}"),
        ("Model", f"{config.model}, {_count(info.parameters)} parameters, {trained}, {dtype}"),
    ]
    for part in data.parts:
        rows.append(("Data", str(part)))
    rows[-1] = ("Data", f"{rows[-1][1]}; {len(data.held_out)} held out")
    for note in data.notes:
        rows.append(("Note", note))
    for reward in plan.rewards.rewards:
        origin = reward.distribution or "by path"
        rows.append(("Reward", f"{reward.spec} (weight {reward.weight:g}; {origin})"))
    rows += plan.tried.lines() if plan.tried else []
    if plan.system_prompt:
        rows.append(("System", f"“{plan.system_prompt}” (from {plan.system_prompt_from})"))
    if config.preset:
        values = ", ".join(f"{name} {value}" for name, value in config.preset.items())
        rows.append(("Preset", f"for the built-in model: {values}"))
    return [*rows, ("Device", device), ("Output", str(config.output_dir))]


def dataset(rows: list[dict[str, Any]]) -> datasets.Dataset:
    """`rows` as a data set. Raises `UserError` for a column whose values are of different types."""
    import datasets
    import pyarrow

    try:
        return datasets.Dataset.from_list(rows)
    except pyarrow.ArrowException as error:
        for name in rows[0]:
            kinds = sorted({type(row[name]).__name__ for row in rows if row[name] is not None})
            if len(kinds) > 1:
                raise UserError(
                    f"the data's column {name!r} holds values of different types: {', '.join(kinds)}"
                ) from error
        raise UserError(f"the data's columns don't fit a table: {str(error).splitlines()[0]}") from error


def _count(number: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)


def plugins_used(config: RunConfig, catalog: Catalog, plan: Plan) -> list[str]:
    """Method, rewards, formatters and callbacks with their distributions, for the manifest."""
    entries = [catalog.find("methods", config.method), *(catalog.find("callbacks", name) for name in config.callback)]
    layouts = {part.formatter for part in plan.data.parts}
    entries += [e for e in catalog.entries("formatters") if e.name in layouts and e.problem != "disabled"]
    found = [f"{entry.kind[:-1]} {entry.name}: {entry.distribution} {entry.version}" for entry in entries]
    rewards = plan.rewards.rewards
    return found + [f"reward {reward.spec}: {reward.distribution or 'by path'}" for reward in rewards]


def try_rewards(plan: Plan) -> tryout.Tried | None:
    """What the rewards say of the first rows' own answers."""
    tokenizer = plan.info.tokenizer
    return tryout.try_rewards(
        plan.data.train, plan.rewards, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    )


def dry_run(plan: Plan, screen: Screen) -> None:
    """The rewards on the first rows and one rendered prompt."""
    if tried := plan.tried:
        kind = "a made-up" if tried.made_up else "the reference"
        for name, column in tried.columns.items():
            for answer, score, error in zip(tried.answers, column.scores, column.errors, strict=True):
                screen.say(f"reward {name} of {kind} answer {answer[:60]!r}: {error or score}")
    first = plan.data.train[0]
    screen.say("\nThe first prompt, as the model gets it:\n")
    prompt = first.get("prompt") or first["messages"]
    screen.say(plan.info.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))
    screen.say("Everything resolves. Nothing was trained (--dry-run).", "bold")
