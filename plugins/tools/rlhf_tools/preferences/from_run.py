"""`rlhf preferences from-run`: the answers that a run sampled and scored, as pairs."""

from __future__ import annotations

from typing import Any

import click

from rlhf_tools.preferences.options import OWN_SEED, selection_options


@click.command("from-run", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run", metavar="RUN")
@click.option("--steps", metavar="A-B", help="Only answers of these steps: 100-200, 100- or -200.  [all]")
@selection_options
@OWN_SEED
def from_run(run: str, steps: str | None, output: str, **values: Any) -> None:
    """Make pairs of the answers that a run sampled and its rewards scored.

    RUN is the folder of a run of grpo or ppo. Answers to the same prompt are compared, also those of different steps,
    by the weighted sum of the run's rewards. No model is loaded.

    rlhf preferences from-run runs/grpo-20260101-120000 --output pairs.jsonl
    """
    from rlhf_tools.preferences import reading_run

    reading_run.run(run, steps, output, **values)
