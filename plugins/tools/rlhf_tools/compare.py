"""`rlhf compare`: the same prompts through several models, and the rewards' scores of their answers."""

from __future__ import annotations

from typing import Any

import click

from rlhf_core.numbers import COUNT, SEED, TEMPERATURE, max_bad_rows


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("models", nargs=-1, required=True, metavar="A B [C …]")
@click.option(
    "--data",
    multiple=True,
    metavar="SPEC",
    help="Prompts: any of its rows may be used, also those that a model was trained on; of `builtin` only "
    "the held-out part. Repeatable.  [what the first given run held out; without a run: builtin]",
)
@max_bad_rows
@click.option("--prompts", type=COUNT, default=64, metavar="N", help="How many prompts, at most.  [64]")
@click.option(
    "--reward",
    multiple=True,
    metavar="SPEC",
    help="Reward, NAME or NAME:key=value,…, by installed name or as ./file.py:function. Repeatable.  [those of the "
    "first given run that has any]",
)
@click.option(
    "--samples", type=click.IntRange(1, 1000), default=1, metavar="N", help="Sampled answers to each prompt.  [1]"
)
@click.option(
    "--temperature",
    type=TEMPERATURE,
    default=1.0,
    metavar="X",
    help="Of the sampled answers.  [1.0]",
)
@click.option(
    "--max-completion-length",
    type=COUNT,
    metavar="N",
    help="Longest answer, in tokens.  [the run's, else 256]",
)
@click.option(
    "--system-prompt",
    metavar="TEXT",
    help="System message where a row has none; '' for none at all.  [the run's, else the rewards']",
)
@click.option(
    "--chat-template-kwargs",
    metavar="JSON",
    help="Variables of the chat templates, such as '{\"enable_thinking\": false}'.  [each run's own]",
)
@click.option("--seed", type=SEED, default=42, metavar="N", help="Of the sampling and the intervals.  [42]")
@click.option("--output", metavar="FOLDER", help="Folder for comparison.json and comparison.html.  [compare-TIME]")
@click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Run the code that a model brings with it; read it first, it can do all that you can.",
)
def compare(models: tuple[str, ...], trust_remote_code: bool, **values: Any) -> None:
    """Ask several models the same prompts and compare their answers.

    Each of A, B, … is a run's folder, its checkpoint (RUN@120, RUN@best), a model's or an adapter's folder, a Hub id or
    `builtin`; NAME=PATH gives it a name. All others are compared with the first. Each answers greedily and sampled; the
    win rate is how often a model's answer scores higher than the first one's, with ties as half.

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
