"""The options that `make`, `from-run` and `from-scores` share. Imports click alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from rlhf_core.numbers import SEED, Number

OPTIONS = (
    click.option("--output", required=True, metavar="FILE", help="The pairs; their data sheet is FILE.sheet.json."),
    click.option(
        "--all-pairs", is_flag=True, help="All pairs of a prompt's answers, not only the best with the worst."
    ),
    click.option(
        "--margin",
        type=Number(0, 1e9),
        metavar="X",
        help="By how much the scores of a pair differ at least.  [a twentieth of the spread of all scores]",
    ),
    click.option(
        "--balance-length",
        is_flag=True,
        help="As many pairs whose chosen answer is longer as such whose chosen answer is shorter: other pairs of a "
        "prompt are taken, then pairs with the smallest margins left out.",
    ),
    click.option("--keep-refusals", is_flag=True, help="Keep short answers that refuse to answer."),
    click.option("--json", "as_json", is_flag=True, help="The data sheet as one JSON object."),
    click.option("--lang", metavar="en|zh", help="Language.  [that of RLHF_LANG, else en]"),
)
OWN_SEED = click.option(
    "--seed", type=SEED, default=42, metavar="N", help="Which of equal pairs --balance-length leaves out.  [42]"
)


def selection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command all of them, in this order."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command
