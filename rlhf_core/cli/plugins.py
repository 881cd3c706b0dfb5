"""`rlhf plugins`: every plugin with its state, and the commands that check, write, install and remove plugins.

Nothing here imports a plugin, so a broken one can always be listed and removed.
"""

from __future__ import annotations

import click

from rlhf_core.catalog import Catalog
from rlhf_core.cli.lazy import LazyGroup
from rlhf_core.cli.listings import JSON, show_entries

# name -> (module, attribute, help line)
COMMANDS = {
    "list": ("cli.plugins", "list_plugins", "List every plugin with its state."),
    "check": ("testing.commands", "check", "Test plugins by the rules of the conformance kit."),
    "new": ("testing.commands", "new", "Write the package of a new plugin."),
    "install": ("cli.install", "install", "Install plugins, and leave the training libraries as they are."),
    "uninstall": ("cli.install", "uninstall", "Remove plugins."),
    "freeze": ("cli.freeze", "freeze", "Print the installed plugins as requirements."),
}


@click.group(cls=LazyGroup, table=COMMANDS, invoke_without_command=True)
@JSON
@click.pass_context
def plugins(ctx: click.Context, as_json: bool) -> None:
    """List all plugins and their state, or check, write, install and remove them."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_plugins, as_json=as_json)
    elif as_json:
        raise click.UsageError(f"--json goes after the command: rlhf plugins {ctx.invoked_subcommand} --json")


@click.command()
@JSON
def list_plugins(as_json: bool) -> None:
    """List every plugin with its state, importing none.

    A plugin that is not ok has the reason in place of its summary.
    """
    show_entries(Catalog().all_entries(), "plugins", as_json)
