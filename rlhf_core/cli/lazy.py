"""A group of commands given by a table: a command's module is imported when it is called, never for `--help`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click


class LazyGroup(click.Group):
    """`table`: name -> (module of `rlhf_core`, attribute, help line)."""

    def __init__(self, *arguments: Any, table: Mapping[str, tuple[str, str, str]], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.table = table

    def help_rows(self) -> list[tuple[str, str]]:
        """(name, help line) of every command."""
        return [(name, line) for name, (_, _, line) in self.table.items()]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, _ in self.help_rows()]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.table:
            return None
        module, attribute, _ = self.table[name]
        return getattr(importlib.import_module(f"rlhf_core.{module}"), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(self.help_rows())
