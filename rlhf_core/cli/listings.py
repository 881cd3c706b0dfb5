"""`rlhf methods`, `rewards`, `formatters` and `plugins`: what is installed, according to its metadata.

No plugin is imported, so a broken one can always be listed and removed; only `show NAME` loads its plugin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import click

from rlhf_core.catalog import Catalog, Entry
from rlhf_core.cli import LazyGroup
from rlhf_core.ui.table import print_json, table

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _listing(kind: str, what: str) -> click.Command:
    @click.command(kind, help=f"List {what}, or show one.\n\nrlhf {kind} show NAME")
    @click.argument("words", nargs=-1, metavar="[show NAME]")
    @JSON
    def listing(words: tuple[str, ...], as_json: bool) -> None:
        if not words:
            show_entries(Catalog().entries(kind), kind, as_json)
        elif words[0] == "show" and len(words) == 2:
            from rlhf_core.cli.show import show

            show(kind, words[1], as_json)
        else:
            name = "NAME" if words[-1] == "show" else words[-1]
            raise click.UsageError(f"to see one {kind[:-1]}: rlhf {kind} show {name}")

    return listing


methods = _listing("methods", "the installed training methods")
rewards = _listing("rewards", "the installed rewards")
formatters = _listing("formatters", "the data formats that are understood")


def show_entries(entries: Sequence[Entry], kind: str, as_json: bool) -> None:
    """Print plugins of one kind, or of all where `kind` is `plugins`."""
    if as_json:
        print_json([asdict(entry) for entry in entries])
    elif not entries:
        click.echo(f"No {kind} are installed.")
    elif kind == "plugins":
        header = ["KIND", "NAME", "DISTRIBUTION", "VERSION", "STATE", "SUMMARY"]
        table(header, [[e.kind[:-1], e.name, e.distribution, e.version, e.state, e.detail] for e in entries])
    else:
        header = ["NAME", "DISTRIBUTION", "SUMMARY"]
        table(header, [[e.name, f"{e.distribution} {e.version}", e.detail] for e in entries])


# name -> (module, attribute, help line)
PLUGIN_COMMANDS = {
    "list": ("cli.listings", "list_plugins", "List every plugin with its state."),
    "check": ("testing.commands", "check", "Test plugins by the rules of the conformance kit."),
    "new": ("testing.commands", "new", "Write the package of a new plugin."),
    "install": ("cli.install", "install", "Install plugins, and leave the training libraries as they are."),
    "uninstall": ("cli.install", "uninstall", "Remove plugins."),
    "freeze": ("cli.freeze", "freeze", "Print the installed plugins as requirements."),
}


@click.group(cls=LazyGroup, table=PLUGIN_COMMANDS, invoke_without_command=True)
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
