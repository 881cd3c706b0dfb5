"""`rlhf eval`: one model's answers to the prompts of a file, scored, with intervals."""

from __future__ import annotations

from typing import Any

import click

from rlhf_core.numbers import COUNT, Number
from rlhf_tools.options import asking_options


@click.command("eval", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", metavar="MODEL")
@asking_options
@click.option("--prompts", type=COUNT, metavar="N", help="How many prompts, at most.  [all]")
@click.option(
    "--threshold",
    type=Number(-1e9, 1e9),
    metavar="X",
    help="Score from which an answer passes, for pass@k.  [the highest that the reward gives]",
)
@click.option("--fresh", is_flag=True, help="Answer anew, also where the same was asked before.")
@click.option("--output", metavar="FOLDER", help="Folder for eval.json and eval.html.  [eval-TIME]")
def evaluate(model: str, trust_remote_code: bool, **values: Any) -> None:
    """Ask a model the prompts of a file, and score its answers.

    MODEL is a run's folder, its checkpoint (RUN@120, RUN@best), a model's or an adapter's folder, a Hub id or
    `builtin`. It answers each prompt greedily, and --samples times sampled: means with 95% intervals over prompts,
    pass@k, and a majority vote where the data has answers. What was asked before is answered from a cache.

    rlhf eval runs/grpo-20260101-120000 --data exam.jsonl --reward verifier --samples 8
    """
    from rlhf_core import Catalog
    from rlhf_core.commands import quiet_libraries, read_kwargs
    from rlhf_tools.candidates import find_candidate

    catalog = Catalog()
    candidate = find_candidate(model, catalog, trust_remote_code)
    kwargs = values.pop("chat_template_kwargs")
    with quiet_libraries():
        from rlhf_tools.evaluating import run

        run(candidate, catalog, chat_template_kwargs=None if kwargs is None else read_kwargs(kwargs), **values)
