"""The kit in the shell: `rlhf plugins check`, which checks each plugin in its own process, and `rlhf plugins new`."""

from __future__ import annotations

import string
from collections.abc import Iterator
from typing import Any

import click

from rlhf_core.catalog import Catalog, Entry
from rlhf_core.errors import UserError, did_you_mean
from rlhf_core.inputs import path_of
from rlhf_core.testing import new_package
from rlhf_core.testing.process import examine_in_process
from rlhf_core.testing.report import Report
from rlhf_core.ui.text import to_json

Subject = tuple[str, str, Entry | None]  # kind, what to check, its entry if it is installed


@click.command()
@click.argument("names", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print the reports as JSON.")
def check(names: tuple[str, ...], as_json: bool) -> None:
    """Check plugins against the rules of their kind, and say what to fix.

    NAMES are installed plugins, as NAME or DISTRIBUTION/NAME, or rewards as --reward takes them: length:min=100 or
    ./my_rewards.py:brief. With names, every rule is shown; without, all plugins are checked, a line each.
    """
    found: list[tuple[Subject, Report]] = []
    for subject in list(_named(names) if names else _all()):
        report = examine_in_process(*subject[:2])
        found.append((subject, report))
        if not as_json:
            click.echo(_text(subject, report) if names else _line(subject, report))
    broken = sum(bool(report.failed) for _, report in found)
    if as_json:
        click.echo(to_json([_values(*each) for each in found], indent=1))
    elif not names:
        click.echo(f"{len(found)} plugins, {broken} of them with broken rules")
        if broken:
            click.echo("What to fix: rlhf plugins check NAME")
    # A plugin that was named but could not be checked is a failure too.
    if broken or (names and not all(report.ok for _, report in found)):
        raise SystemExit(1)


def _all() -> Iterator[Subject]:
    for entry in Catalog().entries():
        if entry.problem != "disabled":
            yield entry.kind, f"{entry.distribution}/{entry.name}", entry


def _named(names: tuple[str, ...]) -> Iterator[Subject]:
    """The plugins of these names, whatever their kind. Raises `UserError` for one that is not installed."""
    catalog = Catalog()
    entries = catalog.entries()
    for name in names:
        if ":" in name or name.endswith(".py"):
            yield "rewards", name, None
            continue
        short = name.rpartition("/")[2]
        kinds = dict.fromkeys(entry.kind for entry in entries if entry.name == short)
        if not kinds:
            known = {entry.name for entry in entries}
            raise UserError(f"there is no plugin {name!r}.{did_you_mean(short, known)} rlhf plugins lists them.")
        for kind in kinds:
            yield kind, name, catalog.find(kind, name)


def _title(subject: Subject) -> str:
    kind, target, entry = subject
    return f"{kind[:-1]} {entry.name} ({entry.distribution} {entry.version})" if entry else f"{kind[:-1]} {target}"


def _text(subject: Subject, report: Report) -> str:
    lines = [line for result in report.results for line in result.lines()]
    return "\n".join([_title(subject), *lines, f"{_mark(report)} {report.verdict}\n"])


def _line(subject: Subject, report: Report) -> str:
    first = (
        f"; the first: {report.failed[0].rule}: {report.failed[0].faults[0].splitlines()[0]}" if report.failed else ""
    )
    return f"{_mark(report)} {_title(subject)}: {report.verdict}{first}"


def _mark(report: Report) -> str:
    return "–" if report.unmet else "✗" if report.failed else "✓"


def _values(subject: Subject, report: Report) -> dict[str, Any]:
    _, target, entry = subject
    origin = {"distribution": entry.distribution, "version": entry.version} if entry else {}
    return {**report.as_dict(), "name": entry.name if entry else target, **origin}


@click.command()
@click.argument("kind", type=click.Choice(list(new_package.KINDS)))
@click.argument("name")
@click.option("--output-dir", metavar="FOLDER", help="Folder to write.  [rlhf-KIND-NAME]")
def new(kind: str, name: str, output_dir: str | None) -> None:
    """Write the package of a new plugin: a small one that works, with its tests, to be changed.

    rlhf plugins new reward brevity
    """
    name = new_package.check_name(kind, name)
    default = new_package.distribution(kind, name)
    folder = path_of(default if output_dir is None else output_dir, "--output-dir")
    files = new_package.write(kind, name, folder)
    _, function, _, use = new_package.KINDS[kind]
    click.echo(f"Written to {folder}: {', '.join(files)}\n")
    click.echo(f"1. Edit {function} in {folder / new_package.module_name(kind, name)}.py")
    click.echo(f"2. pip install -e {folder}")
    click.echo(f"3. {string.Template(use).substitute(name=name)}")
