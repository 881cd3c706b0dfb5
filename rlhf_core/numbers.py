"""Numbers that options of commands take. Imports click alone, so that `--help` stays quick."""

from __future__ import annotations

import math
from typing import Any

import click


class Number(click.FloatRange):
    """A number of a range. click's own also takes NaN."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value} is no number.", param, ctx)
        return number


TEMPERATURE = Number(0.001, 1000)
SHARE = Number(0, 1, min_open=True)
COUNT = click.IntRange(1, 10**9)
EXAMPLES = click.IntRange(0, 100)
SEED = click.IntRange(0, 2**32 - 1)

MAX_BAD_ROWS = 0.05
MAX_BAD_ROWS_HELP = (
    "malformed rows of a source that are left out: a share below 1, or a number of rows; more are an error"
)
max_bad_rows = click.option(
    "--max-bad-rows", type=Number(0, 10**12), default=MAX_BAD_ROWS, metavar="N",
    help=f"{MAX_BAD_ROWS_HELP[0].upper()}{MAX_BAD_ROWS_HELP[1:]}.  [{MAX_BAD_ROWS}]",
)  # fmt: skip
