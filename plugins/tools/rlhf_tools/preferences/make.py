"""`rlhf preferences make`: answers sampled to prompts and judged, as pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from rlhf_core.numbers import COUNT
from rlhf_tools.options import OPTIONS
from rlhf_tools.preferences.options import selection_options

SELECTION = ("margin", "all_pairs", "balance_length", "keep_refusals")


def asking(*names: str) -> Callable[..., Any]:
    """Give a command those of the options of commands that ask models questions."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(names):
            command = OPTIONS[name](command)
        return command

    return add


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--data", multiple=True, required=True, metavar="SPEC", help="Prompts, as for rlhf run. Repeatable.")
@click.option(
    "--model",
    multiple=True,
    required=True,
    metavar="MODEL",
    help="Who answers: a run's folder, its checkpoint, a model's or an adapter's folder, a Hub id, builtin, or "
    "endpoint:model=gpt-4o,base_url=…; NAME=MODEL gives it a name. Repeatable.",
)
@click.option(
    "--judge",
    multiple=True,
    metavar="SPEC",
    help="What rates the answers: rewards as for rlhf run; of several the weighted sum. A trained reward model: "
    "reward_model:path=FOLDER.  [those of the first run that has any]",
)
@click.option(
    "--pairwise",
    is_flag=True,
    help="The judge compares the answers to a prompt two at a time, each with each, in both orders; the score is the "
    "share of wins.",
)
@click.option("--n", type=click.IntRange(1, 1000), default=4, metavar="N", help="Answers of each model.  [4]")
@click.option("--prompts", type=COUNT, metavar="N", help="How many prompts, at most.  [all]")
@asking("temperature", "max_completion_length", "system_prompt", "chat_template_kwargs", "max_bad_rows", "seed")
@asking("load_in_4bit", "trust_remote_code")
@selection_options
@click.option("--dry-run", is_flag=True, help="Check everything, show the plan and three prompts, and sample nothing.")
def make(output: str, as_json: bool, lang: str | None, dry_run: bool, **values: Any) -> None:
    """Make pairs to learn from: models answer prompts, a judge rates the answers.

    What was sampled and judged is kept in FILE.making, and the same command goes on there when it was stopped, to the
    same file. Left out are ties, answers cut at the limit, refusals, and answers that the judge failed on; the data
    sheet counts them. One model is in memory at a time.

    rlhf preferences make --data builtin --model builtin --judge medical_keyword --output pairs.jsonl
    """
    from rlhf_core.commands import quiet_libraries

    selection = {name: values.pop(name) for name in SELECTION}
    with quiet_libraries():
        from rlhf_tools.preferences.making import run

        run(output, as_json, lang, dry_run, selection, **values)
