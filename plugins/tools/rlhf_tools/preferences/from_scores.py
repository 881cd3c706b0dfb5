"""`rlhf preferences from-scores`: answers that the data has rated, as pairs."""

from __future__ import annotations

from typing import Any

import click

from rlhf_core.numbers import max_bad_rows
from rlhf_tools.preferences.options import OWN_SEED, selection_options


@click.command("from-scores", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", metavar="FILE")
@click.option(
    "--score",
    metavar="COLUMN",
    help="What rates an answer: a column, or a key of an answer (annotations.helpfulness.Rating for one within "
    "another).  [overall_score, score(s), rating(s), fine-grained_score or rank(s)]",
)
@max_bad_rows
@selection_options
@OWN_SEED
def from_scores(source: str, output: str, **values: Any) -> None:
    """Make pairs of answers that the data has rated.

    FILE is what rlhf run --data takes. A row has a prompt and either a list of answers with a score each, as in
    UltraFeedback, or one answer and its score, as in HelpSteer: then rows with the same prompt belong together. A rank
    counts from the best, 1.

    rlhf preferences from-scores ultrafeedback.jsonl --score fine-grained_score --output pairs.jsonl
    """
    from rlhf_tools.preferences import reading_scores

    reading_scores.run(source, output, **values)
