"""`rlhf methods`, `rewards` and `formatters`: what is installed, as its metadata says; `show NAME` loads that one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import click

from rlhf_core.catalog import Catalog, Entry
from rlhf_core.ui.table import print_json, table

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class Listing(click.Group):
    """Lists one kind of plugin; its command `show` takes the name of one."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        command = super().get_command(ctx, name)
        kind = str(self.name)
        if command is None and any(entry.name == name for entry in Catalog().entries(kind)):
            ctx.fail(f"to see one {kind[:-1]}: rlhf {kind} show {name}")
        return command


def _listing(kind: str, help_text: str, about: str) -> click.Group:
    @click.group(kind, cls=Listing, invoke_without_command=True, help=help_text)
    @JSON
    @click.pass_context
    def listing(ctx: click.Context, as_json: bool) -> None:
        if ctx.invoked_subcommand is None:
            show_entries(Catalog().entries(kind), kind, as_json)
        elif as_json:
            raise click.UsageError(f"--json goes after the name: rlhf {kind} show NAME --json")

    @listing.command(help=about, short_help=about.partition("\n")[0])
    @click.argument("name")
    @JSON
    def show(name: str, as_json: bool) -> None:
        from rlhf_core.cli.show import show

        show(kind, name, as_json)

    return listing


def show_entries(entries: Sequence[Entry], kind: str, as_json: bool) -> None:
    """Print plugins of one kind, or of all where `kind` is `plugins`. Of one with a problem, the reason is printed."""
    full = [number for number, entry in enumerate(entries) if entry.problem]
    if as_json:
        print_json([asdict(entry) for entry in entries])
    elif not entries:
        click.echo(f"No {kind} are installed.")
    elif kind == "plugins":
        header = ["KIND", "NAME", "DISTRIBUTION", "VERSION", "STATE", "SUMMARY"]
        rows = [[e.kind[:-1], e.name, e.distribution, e.version, e.state, e.detail] for e in entries]
        table(header, rows, full)
    else:
        rows = [[e.name, f"{e.distribution} {e.version}", e.detail] for e in entries]
        table(["NAME", "DISTRIBUTION", "SUMMARY"], rows, full)


methods = _listing("methods", "List the installed training methods, or show one.", "Show a method and its options.")
rewards = _listing("rewards", "List the installed rewards, or show one.", "Show a reward and what it takes.")
formatters = _listing("formatters", "List the data formats that are understood, or show one.", "Show a data format.")
