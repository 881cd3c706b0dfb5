"""`rlhf methods`, `rewards`, `formatters` and `plugins`: what is installed, according to its metadata.

No plugin is imported, so a broken one can always be listed and removed; only `show NAME` loads its plugin, and
`rlhf formatters` the formatters, which say what columns they read.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from rlhf_core.catalog import Catalog, Entry
from rlhf_core.cli import LazyGroup
from rlhf_core.errors import UserError
from rlhf_core.ui.screen import Terminal, text
from rlhf_core.ui.text import shown, to_json

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
UNLIMITED = 10_000  # for a pipe: nothing is wrapped that another program reads
NARROW = 34  # if the last column has less room than this, it is printed under its row


def _listing(kind: str, what: str) -> click.Command:
    @click.command(kind, help=f"List {what}, or show one.\n\nrlhf {kind} show NAME")
    @click.argument("words", nargs=-1, metavar="[show NAME]")
    @JSON
    def listing(words: tuple[str, ...], as_json: bool) -> None:
        if not words and kind == "formatters":
            list_formatters(as_json)
        elif not words:
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
formatters = _listing("formatters", "the supported data formats")


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


def list_formatters(as_json: bool) -> None:
    """Print each installed format with its columns, or why it can't be used."""
    catalog = Catalog()
    found: list[dict[str, Any]] = []
    for entry in catalog.entries("formatters"):
        columns, names, summary = [], {}, ""
        try:
            formatter = catalog.load("formatters", f"{entry.distribution}/{entry.name}")[0]
            columns = sorted(formatter.columns)
            names = {column: list(others) for column, others in formatter.names.items()}
            docstring = (inspect.getdoc(formatter.convert) or entry.summary).partition("\n\n")[0]
            summary = " ".join(docstring.split())
        except UserError as error:
            summary = str(error)
        found.append({**asdict(entry), "columns": columns, "names": names, "summary": summary})
    if as_json:
        print_json(found)
    elif not found:
        click.echo("No formatters are installed.")
    else:
        several = len({each["distribution"] for each in found}) > 1
        header = ["NAME", "COLUMNS", *["DISTRIBUTION"] * several, "SUMMARY"]
        rows = [[e["name"], ", ".join(e["columns"]), *[e["distribution"]] * several, e["summary"]] for e in found]
        table(header, rows)


# name -> (module, attribute, help line)
PLUGIN_COMMANDS = {
    "list": ("cli.listings", "list_plugins", "List every plugin with its state."),
    "check": ("testing.commands", "check", "Check plugins against the rules of their kind."),
    "new": ("testing.commands", "new", "Create the package of a new plugin."),
    "install": ("cli.packages", "install", "Install plugins without changing torch and the training libraries."),
    "uninstall": ("cli.packages", "uninstall", "Remove plugins."),
    "freeze": ("cli.packages", "freeze", "Print the installed plugins as requirements."),
}


@click.group(cls=LazyGroup, table=PLUGIN_COMMANDS, invoke_without_command=True)
@JSON
@click.pass_context
def plugins(ctx: click.Context, as_json: bool) -> None:
    """List all plugins and their state, or check, create, install and remove them."""
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
    show_entries(Catalog().entries(), "plugins", as_json)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print `rows` with the last column wrapped beside the others, or under them where the terminal is narrow."""
    rows = [[shown(cell) for cell in row] for row in rows]
    limit = shutil.get_terminal_size((UNLIMITED, 24)).columns
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header) - 1)]
    left = sum(widths) + 2 * len(widths)
    for *cells, last in [header, *rows]:
        names = "".join(cell.ljust(width + 2) for cell, width in zip(cells, widths, strict=True))
        if limit - left >= NARROW:
            _print_wrapped(names, last, left, limit)
        else:
            _print_wrapped("", names, 0, limit)
            _print_wrapped("", last, 4, limit)


def facts(rows: Sequence[tuple[str, str]]) -> None:
    """Print names with their texts wrapped beside them; a fact without text is left out."""
    limit = min(shutil.get_terminal_size((100, 24)).columns, 120)
    left = max(len(name) for name, _ in rows) + 2
    for name, value in rows:
        for i, line in enumerate(value.split("\n") if value else ()):
            _print_wrapped("" if i else name, line, left, limit, hanging=4)


def _print_wrapped(name: str, content: str, left: int, limit: int, hanging: int = 0) -> None:
    """Print `content` to the right of `name`, which has `left` columns. Lines after the first begin `hanging` later."""
    lines = text(content).wrap(Terminal(), max(20, limit - left - hanging))
    for i, line in enumerate(lines):
        click.echo(((" " * (left + hanging) if i else name.ljust(left)) + line.plain).rstrip())


def print_json(value: Any) -> None:
    """As JSON for other programs; values that JSON can't represent are printed as text."""
    click.echo(to_json(value, indent=2))
