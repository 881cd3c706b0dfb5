"""`rlhf methods`, `rewards`, `formatters` and `plugins`: what is installed, told from metadata without importing it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence

import click

from rlhf_core.plugins import HOOKS, Catalog, Entry


def _table(rows: Sequence[tuple[str, ...]], header: tuple[str, ...]) -> None:
    """Columns as wide as they need, the last one cut to the terminal."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    limit = shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else 10_000
    for row in [header, *rows]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        click.echo(line if len(line) <= limit else line[: limit - 1] + "…")


def _list(kind: str) -> None:
    entries = Catalog().entries(kind)
    if not entries:
        click.echo(f"No {kind} are installed.")
        return
    rows = [(e.name, f"{e.distribution} {e.version}", e.problem or e.summary) for e in entries]
    _table(rows, ("NAME", "DISTRIBUTION", "SUMMARY"))


@click.command()
def methods() -> None:
    """List the installed training methods."""
    _list("methods")


@click.command()
def rewards() -> None:
    """List the installed rewards."""
    _list("rewards")


@click.command()
def formatters() -> None:
    """List the data layouts that are understood."""
    _list("formatters")


@click.group(invoke_without_command=True)
@click.pass_context
def plugins(ctx: click.Context) -> None:
    """List all plugins and their state, or check them."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_plugins)


@plugins.command("list")
def list_plugins() -> None:
    """List every plugin with its state, importing none."""
    rows = [
        (kind[:-1], e.name, e.distribution, e.version, e.problem or "ok")
        for kind in HOOKS
        for e in Catalog().entries(kind)
    ]
    _table(rows, ("KIND", "NAME", "DISTRIBUTION", "VERSION", "STATE"))


@plugins.command()
@click.argument("names", nargs=-1)
def check(names: tuple[str, ...]) -> None:
    """Import plugins, each in a process of its own, and report those that fail. Without NAMES, all of them."""
    catalog = Catalog()
    entries = [
        e for kind in HOOKS if kind != "callbacks" for e in catalog.entries(kind) if not names or e.name in names
    ]
    if unknown := set(names) - {e.name for e in entries}:
        raise click.UsageError(f"not installed: {', '.join(sorted(unknown))}")
    failed = [entry for entry in entries if entry.problem != "disabled" and not _check(entry)]
    if failed:
        raise SystemExit(1)


def _check(entry: Entry) -> bool:
    code = (
        "import sys; from rlhf_core.plugins import Catalog; from rlhf_core.errors import UserError\n"
        "try: Catalog().load(*sys.argv[1:])\n"
        "except UserError as error: sys.exit(str(error))"
    )
    command = [sys.executable, "-c", code, entry.kind, f"{entry.distribution}/{entry.name}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    state = "ok" if result.returncode == 0 else (result.stderr.strip() or f"ended with code {result.returncode}")
    click.echo(f"{entry.kind[:-1]} {entry.name} ({entry.distribution}): {state}")
    return result.returncode == 0
