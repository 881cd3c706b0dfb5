"""`rlhf estimate`: the memory and time of a run, before it. Its flags are those of `rlhf run`, and a few of its own."""

from __future__ import annotations

import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlhf_core import environment
from rlhf_core.catalog import Catalog
from rlhf_core.cli.run import RunCommand, pairs
from rlhf_core.config import RunConfig, read_file, resolve
from rlhf_core.errors import UserError, first_line
from rlhf_core.estimate.answer import REWARD
from rlhf_core.method import Method
from rlhf_core.numbers import COUNT

if TYPE_CHECKING:
    from rlhf_core.estimate.answer import Answer, Question
    from rlhf_core.ui.screen import Screen

OWN = ("gpu", "memory", "as_json", "prompt_tokens", "completion_tokens", "probe")


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
            click.Option(["--probe"], is_flag=True, help="Run three steps on the device that is here, for their time."),
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
    probe: bool,
) -> int:
    from rlhf_core.estimate.answer import Question
    from rlhf_core.estimate.hardware import device_of
    from rlhf_core.ui.screen import Screen
    from rlhf_core.ui.text import gb, to_json

    if probe and gpu:
        raise UserError("--probe runs steps on the device that is here: leave out --gpu")
    if probe and config.num_processes * config.num_machines > 1:
        raise UserError("--probe runs steps in one process: leave out --num-processes and --num-machines")
    with environment.starting():
        device = device_of(gpu, memory)
    screen = Screen(quiet=as_json)
    with tempfile.TemporaryDirectory() as folder:
        with environment.starting(), screen.working("Reading the model's configuration and the data …"):
            question = Question(config, method, catalog, device, Path(folder), prompt_tokens, completion_tokens)
        with screen.working("Running a step without weights …"):
            answer = question.answer()
        from rlhf_core.estimate import showing

        planned, first = answer.planned, answer.first
        screen.say("")
        for line in (_model(planned), _rows(planned, answer.longest), f"Device   {device.name}, {gb(device.memory)}"):
            screen.say(line)
        screen.console.print(showing.table(first, screen.console.width))
        screen.say(showing.verdict(first, memory or f"the {gb(device.memory)} of {device.name}"), "bold")
        if probe:
            _probe(question, answer, config, Path(folder), screen)
        for line in showing.time_lines(answer):
            screen.say(line)
        for one in question.remedies(answer):
            screen.say(showing.remedy(one))
    command = _command(typed, config.model, planned.config.model, answer.flags)
    if not answer.fits:
        screen.say("Nothing makes it fit: take a smaller model, or a larger card.")
    needs = " (and your --reward)" if config.reward == [REWARD] else ""
    screen.say(f"\n{'Run' if first.fits else 'Then'}: {shlex.join(command)}{needs}" if answer.fits else "")
    if as_json:
        shown = command if answer.fits else []
        click.echo(to_json(showing.as_dict(answer, shown)))
    return 0 if first.fits and not (probe and answer.probe is None) else 1


def _probe(question: Question, answer: Answer, config: RunConfig, folder: Path, screen: Screen) -> None:
    """Run a few real steps, if the estimate says that there is memory for them."""
    if not answer.first.fits:
        screen.say("No step is run (--probe), since it does not fit.")
        return
    import torch

    from rlhf_core.estimate.probe import probe

    full = config.model_copy(update={"model": question.planned.config.model})
    try:
        with screen.working("Running three steps …"):
            answer.probe = probe(full, question.method, question.catalog, folder / "probe")
    except torch.OutOfMemoryError as error:
        screen.say(f"The steps ran out of memory: {first_line(error)}", "bold")


def _model(planned: Any) -> str:
    options, size = planned.config.options, planned.info.parameters
    kind = "4-bit" if options.load_in_4bit else "8-bit" if options.load_in_8bit else options.dtype
    trained = f"LoRA r={options.lora_r}" if options.lora else "all trained"
    return f"Model    {planned.config.model}, {size / 1e9:.2g} B parameters, {trained}, {kind}"


def _rows(planned: Any, rows: Any) -> str:
    count = "" if planned.rows is None else f"{planned.rows:,} rows; "
    notes = f" ({'; '.join(planned.notes)})" if planned.notes and rows == planned.longest else ""
    return f"Rows     {count}the longest: prompts of {rows.prompt:,} tokens, answers of {rows.completion:,}{notes}"


def _command(typed: list[str], model: str, full: str, changes: list[str]) -> list[str]:
    """`rlhf run` with the flags that were typed, but for this command's own, and with a usual model's full name."""
    words, skip = [], False
    for word in typed:
        name = word.partition("=")[0].replace("_", "-")
        if skip:
            skip = False
        elif name in ("--gpu", "--memory", "--prompt-tokens", "--completion-tokens"):
            skip = "=" not in word
        elif name not in ("--json", "--probe"):
            words.append({model: full, f"--model={model}": f"--model={full}"}.get(word, word))
    return ["rlhf", "run", *words, *changes]
