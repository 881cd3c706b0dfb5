"""`rlhf compare`: the same prompts through several models, and the rewards' scores of their answers."""

from __future__ import annotations

from typing import Any

import click

from rlhf_core.numbers import COUNT
from rlhf_tools.options import asking_options


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("models", nargs=-1, required=True, metavar="A B [C …]")
@asking_options
@click.option("--prompts", type=COUNT, default=64, metavar="N", help="How many prompts, at most.  [64]")
@click.option(
    "--judge",
    metavar="SPEC",
    help="A reward that compares two answers, such as judge:model=gpt-4o. It reads each model's answers beside "
    "the first one's, in both orders.",
)
@click.option("--output", metavar="FOLDER", help="Folder for comparison.json and comparison.html.  [compare-TIME]")
def compare(models: tuple[str, ...], trust_remote_code: bool, **values: Any) -> None:
    """Ask several models the same prompts and compare their answers.

    Each of A, B, … is a run's folder, its checkpoint (RUN@120, RUN@best), a model's or an adapter's folder, a Hub id or
    `builtin`; NAME=PATH gives it a name. All others are compared with the first. Each answers greedily and sampled; the
    win rate is how often a model's answer scores higher than the first one's, with ties as half. With --judge there is
    a second one: how often the judge prefers it, whichever of the two it reads first.

    rlhf compare builtin runs/grpo-20260101-120000
    """
    from rlhf_core import Catalog
    from rlhf_core.commands import quiet_libraries, read_kwargs
    from rlhf_tools.candidates import find_candidates

    catalog = Catalog()
    candidates = find_candidates(models, catalog, trust_remote_code)
    kwargs = values.pop("chat_template_kwargs")
    with quiet_libraries():
        from rlhf_tools.comparing import run

        run(candidates, catalog, chat_template_kwargs=None if kwargs is None else read_kwargs(kwargs), **values)
