"""`rlhf estimate`: the memory and time of a run, before it. Its flags are those of `rlhf run`, and a few of its own."""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from rlhf_core.catalog import Catalog
from rlhf_core.cli.run import RunCommand, pairs
from rlhf_core.config import RunConfig, read_file, resolve
from rlhf_core.errors import UserError
from rlhf_core.method import Method
from rlhf_core.numbers import COUNT

UNITS = {"GB": 10**9, "GIB": 2**30, "MB": 10**6, "MIB": 2**20, "G": 10**9, "M": 10**6, "": 10**9}
REWARD = "rlhf_core.estimate.synthetic:score"  # a run needs one; what it scores does not matter here
OWN = ("gpu", "memory", "as_json", "prompt_tokens", "completion_tokens")


class EstimateCommand(RunCommand):
    """The flags of a run that say what it is, and the ones below."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["typed"] = list(args)
        return super().parse_args(ctx, args)

    def more_flags(self) -> list[click.Parameter]:
        return [
            click.Option(["--config"], metavar="FILE", help="YAML file with the same keys as these flags; flags win."),
            click.Option(["--gpu"], metavar="NAME", help="Card, such as rtx3090; unset: the device that is there."),
            click.Option(["--memory"], metavar="SIZE", help="Memory of the card instead of its own, such as 12GB."),
            click.Option(["--prompt-tokens"], type=COUNT, help="Tokens of the longest prompts; unset: the data's."),
            click.Option(["--completion-tokens"], type=COUNT, help="Tokens of the longest answers; unset: the same."),
            click.Option(["--json", "as_json"], is_flag=True, help="The result as one JSON object."),
        ]


@click.command(cls=EstimateCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def estimate(ctx: click.Context, **values: Any) -> None:
    """Tell how much memory and time a run takes, and whether it fits, without loading weights.

    Exit code 1 if it does not fit.

    rlhf estimate --method grpo --model Qwen/Qwen3-8B --load-in-4bit --gpu rtx3090
    """
    own = {name: values.pop(name) for name in OWN}
    config_file = values.pop("config")
    given = {name: value for name, value in values.items() if value is not None and value != ()}
    if "set" in given:
        given["set"] = pairs(given["set"])
    under = [read_file(config_file)] if config_file else []
    named = any(layer.get("reward") or layer.get("reward_model") for layer in (*under, given))
    method = ctx.obj.load("methods", given["method"])[0] if isinstance(given.get("method"), str) else None
    if method is not None and method.rewards == "required" and not named:
        given["reward"] = [REWARD]
    config, method = resolve(given, ctx.obj, under=under)
    sys.exit(_estimate(config, method, ctx.obj, ctx.meta["typed"], **own))


def _estimate(
    config: RunConfig,
    method: Method,
    catalog: Catalog,
    typed: list[str],
    gpu: str | None,
    memory: str | None,
    as_json: bool,
    prompt_tokens: int | None,
    completion_tokens: int | None,
) -> int:
    size = None if memory is None else size_of(memory)
    from rlhf_core import environment

    environment.prepare()
    from rlhf_core.estimate import showing
    from rlhf_core.estimate.estimating import Estimate, steps_of
    from rlhf_core.estimate.estimating import estimate as estimate_run
    from rlhf_core.estimate.fitting import Tried, try_remedies
    from rlhf_core.estimate.hardware import find_card, here
    from rlhf_core.estimate.planning import plan
    from rlhf_core.ui.screen import Screen
    from rlhf_core.ui.text import gb, to_json

    device = find_card(gpu) if gpu else here()
    if size is not None:
        device = (
            replace(device, memory=size)
            if gpu or device.is_gpu
            else replace(device, memory=size, is_gpu=True, name="a GPU")
        )
    screen = Screen(quiet=as_json)
    with tempfile.TemporaryDirectory() as folder:
        with screen.working("Reading the model's configuration and the data …"):
            planned = plan(config, method, catalog, Path(folder))
        rows = replace(
            planned.longest,
            prompt=prompt_tokens or planned.longest.prompt,
            completion=completion_tokens or planned.longest.completion,
        )

        def measured(changes: dict[str, Any]) -> Estimate:
            options = planned.config.options.model_copy(update=changes)
            if changes.get("load_in_4bit") or changes.get("lora"):
                options = method.resolve_options(options.model_copy(update={"lora": True}), lora=True)
            shorter = replace(rows, completion=min(rows.completion, _most(options)))
            return estimate_run(
                planned.config.model_copy(update={"options": options}), method, planned.info, catalog, shorter, device
            )

        with screen.working("Running a step without weights …"):
            first = measured({})
        share = planned.mean.total / planned.longest.total
        steps = steps_of(first, planned.config.options, planned.rows)
        screen.say("")
        for line in (_model(planned), _rows(planned, rows), f"Device   {device.name}, {gb(device.memory)}"):
            screen.say(line)
        screen.console.print(showing.table(first, screen.console.width))
        screen.say(showing.verdict(first, memory or f"the {gb(device.memory)} of {device.name}"), "bold")
        for line in showing.time_lines(first, steps, share):
            screen.say(line)
        tried: list[Tried] = []
        if not first.fits:
            for one in try_remedies(planned.config.options, planned.info, measured, first=first):
                tried.append(one)
                screen.say(showing.remedy(one))
        fits = first.fits or bool(tried and tried[-1].estimate.fits)
        command = _command(typed, tried[-1].flags() if tried and fits else [])
        if not fits:
            screen.say("Nothing makes it fit: take a smaller model, or a larger card.")
        screen.say(f"\n{'Run' if first.fits else 'Then'}: {shlex.join(command)}" if fits else "")
        if as_json:
            click.echo(to_json(showing.as_dict(first, tried, command if fits else [], steps, share)))
    return 0 if first.fits else 1


def _most(options: Any) -> int:
    return options.max_length if "max_length" in type(options).model_fields else options.max_completion_length


def _model(planned: Any) -> str:
    options, size = planned.config.options, planned.info.parameters
    kind = "4-bit" if options.load_in_4bit else "8-bit" if options.load_in_8bit else options.dtype
    trained = f"LoRA r={options.lora_r}" if options.lora else "all trained"
    return f"Model    {planned.config.model}, {size / 1e9:.2g} B parameters, {trained}, {kind}"


def _rows(planned: Any, rows: Any) -> str:
    count = "" if planned.rows is None else f"{planned.rows:,} rows; "
    notes = f" ({'; '.join(planned.notes)})" if planned.notes else ""
    return f"Rows     {count}the longest: prompts of {rows.prompt:,} tokens, answers of {rows.completion:,}{notes}"


def _command(typed: list[str], changes: list[str]) -> list[str]:
    """`rlhf run` with the flags that were typed, but for this command's own."""
    words, skip = [], False
    for word in typed:
        name = word.partition("=")[0].replace("_", "-")
        if skip:
            skip = False
        elif name in ("--gpu", "--memory", "--prompt-tokens", "--completion-tokens"):
            skip = "=" not in word
        elif name != "--json":
            words.append(word)
    return ["rlhf", "run", *words, *changes]


def size_of(text: str) -> int:
    """Bytes of a size such as 12GB. Raises `UserError`."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text, re.I)
    unit = found[2].upper() if found else None
    if found is None or unit not in UNITS or not float(found[1]):
        raise UserError(f"--memory {text}: write a size, such as 12GB or 24GiB")
    return round(float(found[1]) * UNITS[unit])
