"""`rlhf plugins new`: write the package of a new plugin, and say which function to edit."""

from __future__ import annotations

import string
from pathlib import Path

import click

from rlhf_core.testing import new_package


@click.command()
@click.argument("kind", type=click.Choice(list(new_package.KINDS)))
@click.argument("name")
@click.option("--output-dir", metavar="FOLDER", help="Folder to write.  [rlhf-KIND-NAME]")
def new(kind: str, name: str, output_dir: str | None) -> None:
    """Write the package of a new plugin: a small one that works, with its tests, to be changed.

    rlhf plugins new reward brevity
    """
    name = new_package.check_name(kind, name)
    folder = Path(output_dir or new_package.distribution(kind, name))
    files = new_package.write(kind, name, folder)
    _, function, _, use = new_package.KINDS[kind]
    click.echo(f"Written to {folder}: {', '.join(files)}\n")
    click.echo(f"1. Edit {function} in {folder / new_package.module_name(kind, name)}.py")
    click.echo(f"2. pip install -e {folder}")
    click.echo(f"3. {string.Template(use).substitute(name=name)}")
