"""`rlhf recommend`: which method for this data, model and card, why, what it costs, and the command."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

import click

GOALS = {
    "quality": "the best answers that the data allows",
    "simplicity": "the fewest parts and settings",
    "speed": "the shortest run",
    "memory": "the least memory: 4-bit weights (QLoRA)",
    "tradition": "the classic RLHF: a reward model, then PPO",
}
SIZE = re.compile(r"\d+(\.\d+)?\s*[gm](i?b)?", re.I)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--data", multiple=True, metavar="SPEC", help="Data, as for rlhf run; repeatable.  [asked]")
@click.option("--model", metavar="MODEL", help="Model: a folder, a Hub id, or a usual one's name.  [asked, or builtin]")
@click.option("--gpu", metavar="NAME", help="Card, such as rtx3090.  [asked, or the device that is here]")
@click.option("--memory", metavar="SIZE", help="Memory of the card instead of its own, such as 12GB.")
@click.option("--goal", type=click.Choice(list(GOALS)), help="What matters most.  [asked, or quality]")
@click.option("--reward", metavar="SPEC", help="A reward that you have, as for rlhf run.")
@click.option("--reward-model", metavar="FOLDER", help="A trained reward model that you have.")
@click.option("--no-estimate", is_flag=True, help="Leave out memory and time.")
@click.option("--json", "as_json", is_flag=True, help="The result as one JSON object.")
def recommend(no_estimate: bool, as_json: bool, **given: Any) -> None:
    """Recommend a method for your data, model and card, and print the command.

    The data is read, and what it has decides: pairs of answers, answers that can be checked, conversations, or prompts
    alone. In a terminal, what is not given is asked. Memory and time are estimated without loading weights. Exit code 1
    if the data is not good enough, or if nothing fits.

    rlhf recommend --data pairs.jsonl --model Qwen/Qwen3-8B --gpu rtx3090
    """
    from rlhf_core import UserError

    for name in ("gpu", "memory"):
        if no_estimate and given[name]:
            raise UserError(f"--{name} has no effect with --no-estimate: leave one of them out")
    if given["reward"] and given["reward_model"]:
        raise UserError("--reward and --reward-model: give one, the other is added to the command by hand")
    if not as_json and in_terminal():
        given = {**given, **_ask(given, no_estimate)}
    if not given["data"]:
        raise UserError("which data? Write rlhf recommend --data FILE (a folder, a Hub id, or builtin)")
    from rlhf_core.commands import quiet_libraries

    with quiet_libraries():
        from rlhf_tools.recommending import run

        sys.exit(run(estimated=not no_estimate, as_json=as_json, **given))


def in_terminal() -> bool:
    return os.isatty(0) and os.isatty(1)


def _ask(given: dict[str, Any], no_estimate: bool) -> dict[str, Any]:
    """What a person types, with Enter for what stands in brackets, of what was not given."""
    found: dict[str, Any] = {}
    if not given["data"]:
        found["data"] = (click.prompt("Data: a file, a folder or a Hub id", default="builtin"),)
    if not given["model"]:
        found["model"] = click.prompt("Model: a folder or a Hub id, such as Qwen/Qwen3-8B", default="builtin")
    if not (given["gpu"] or given["memory"] or no_estimate):
        card = click.prompt("Card, such as rtx3090, or its memory, such as 24GB", default="what is here")
        if card != "what is here":
            found["memory" if SIZE.fullmatch(card.strip()) else "gpu"] = card.strip()
    if not given["goal"]:
        numbers = {str(number): goal for number, goal in enumerate(GOALS, start=1)}
        for number, goal in numbers.items():
            click.echo(f"{number}  {goal:12}{GOALS[goal]}")
        kind = click.Choice([*numbers, *GOALS])
        answer = click.prompt("What matters most", type=kind, show_choices=False, default="1")
        found["goal"] = numbers.get(answer, answer)
    return found
