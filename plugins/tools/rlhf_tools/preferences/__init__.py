"""`rlhf preferences`: pairs of a better and a worse answer, made, labelled and checked.

A subcommand is a line of `SUBCOMMANDS` and a module of its own, which is imported when the subcommand is called.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

# name -> (module of this package, attribute, help line)
SUBCOMMANDS: dict[str, tuple[str, str, str]] = {
    "make": ("make", "make", "Make pairs of answers that models give to prompts."),
    "from-run": ("from_run", "from_run", "Make pairs of the answers that a run sampled."),
    "from-scores": ("from_scores", "from_scores", "Make pairs of answers that the data has rated."),
    "audit": ("audit", "audit", "Look for pairs that contradict people, or each other."),
    "label": ("label", "label", "Let people say which of two answers is better."),
}


class Subcommands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in SUBCOMMANDS:
            return None
        module, attribute, _ = SUBCOMMANDS[name]
        command: Any = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if SUBCOMMANDS:
            with formatter.section("Commands"):
                formatter.write_dl([(name, line) for name, (_, _, line) in SUBCOMMANDS.items()])


@click.group(cls=Subcommands, context_settings={"help_option_names": ["-h", "--help"]})
def preferences() -> None:
    """Make pairs of a better and a worse answer to learn from, label them, and check them."""
