"""`rlhf plugins`: every plugin with its state, and the commands that check, write, install and remove plugins.

Nothing here imports a plugin, so a broken one can always be listed and removed.
"""

from __future__ import annotations

from dataclasses import asdict

import click

from rlhf_core.catalog import HOOKS, Catalog
from rlhf_core.cli.lazy import LazyGroup
from rlhf_core.ui.table import print_json, table

# name -> (module, attribute, help line)
COMMANDS = {
    "list": ("plugins", "list_plugins", "List every plugin with its state."),
    "check": ("check", "check", "Test plugins by the rules of the conformance kit."),
    "new": ("new", "new", "Write the package of a new plugin."),
    "install": ("install", "install", "Install plugins, and leave the training libraries as they are."),
    "uninstall": ("install", "uninstall", "Remove plugins."),
    "freeze": ("freeze", "freeze", "Print the installed plugins as requirements."),
}


@click.group(cls=LazyGroup, table=COMMANDS, invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def plugins(ctx: click.Context, as_json: bool) -> None:
    """List all plugins and their state, or check, write, install and remove them."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_plugins, as_json=as_json)
    elif as_json:
        raise click.UsageError(f"--json goes after the command: rlhf plugins {ctx.invoked_subcommand} --json")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_plugins(as_json: bool) -> None:
    """List every plugin with its state, importing none.

    A plugin that is not ok has the reason in place of its summary.
    """
    catalog = Catalog()
    entries = [entry for kind in HOOKS for entry in catalog.entries(kind)]
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return
    if not entries:
        click.echo("No plugins are installed.")
        return
    rows = [(e.kind[:-1], e.name, e.distribution, e.version, e.state, e.detail) for e in entries]
    whole = [number for number, entry in enumerate(entries) if entry.problem]
    table(("KIND", "NAME", "DISTRIBUTION", "VERSION", "STATE", "SUMMARY"), rows, whole)
