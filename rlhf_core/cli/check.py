"""`rlhf plugins check`: import plugins, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import click

from rlhf_core.plugins import HOOKS, Catalog, Entry


@click.command()
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
