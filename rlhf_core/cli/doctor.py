"""`rlhf doctor`: whether this machine can train, a line for each check."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import click

from rlhf_core.doctor import Check, examine
from rlhf_core.errors import UserError
from rlhf_core.ui.screen import Terminal, showing, text
from rlhf_core.ui.text import to_json

COLOURS = {"ok": "green", "missing": "dim", "warn": "yellow", "fail": "bold red"}
STATUS, NAME = 9, 15  # columns
NARROW = 34  # with less room than this beside the name, the text is below it


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--output-dir", metavar="FOLDER", default="runs", help="Where runs would write.  [runs]")
@click.option("--report", "as_report", is_flag=True, help="The text that a bug report needs, without secrets.")
@click.option("--json", "as_json", is_flag=True, help="The result as one JSON object.")
def doctor(output_dir: str, as_report: bool, as_json: bool) -> None:
    """Check this machine: versions, devices, memory, disks, limits and plugins.

    Each line is ok, missing (something optional, with what can't be done without it), warn, or fail: then training
    can't work, and the exit code is 1. Two steps are trained on the built-in model, quantized weights are multiplied,
    and every installed plugin is loaded, in a process of their own. No network is used.

    rlhf doctor --report
    """
    if as_report and as_json:
        raise click.UsageError("--report or --json, not both")
    folder = _folder(output_dir)
    console = Terminal()
    checks = []
    for check in _examine(folder, console):
        checks.append(check)
        if not (as_report or as_json):
            show(console, check)
    from rlhf_core.doctor import report

    if as_json:
        click.echo(to_json(report.as_dict(checks), indent=2))
    elif as_report:
        click.echo(report.as_text(checks))
    else:
        _conclude(console, checks)
    if not report.works(checks):
        raise SystemExit(1)


def _folder(given: str) -> Path:
    try:
        folder = Path(given).expanduser()
        there = folder.exists()
    except (RuntimeError, ValueError, OSError) as error:  # no such user, a zero byte, a name that is too long
        raise UserError(f"--output-dir {given!r} is no folder: {error}") from error
    if not given or (there and not folder.is_dir()):
        raise UserError(f"--output-dir {given!r} is no folder: give one, which need not be there yet")
    return folder


def _examine(folder: Path, console: Terminal) -> Iterator[Check]:
    """The checks; in a terminal, what takes its time is shown meanwhile."""
    status = console.status("Looking …")
    with showing(status) if console.is_terminal else nullcontext():
        for found in examine(folder):
            if isinstance(found, Check):
                yield found
            else:
                status.update(text(f"Looking at {found} …"))


def show(console: Terminal, check: Check) -> None:
    """Print a check: on one line in a pipe, else wrapped beside its name, or below it in a narrow terminal."""
    head = text("") + text(check.status.ljust(STATUS), COLOURS[check.status]) + text(check.name.ljust(NAME))
    parts = [text(part) for part in (check.text, check.advice) if part]
    if not console.is_terminal:
        console.print(head + text(". ").join(parts), soft_wrap=True)
        return
    left, room = STATUS + NAME, console.width - STATUS - NAME - 1
    if room < NARROW and (len(parts) > 1 or parts[0].cell_len > room):
        head.rstrip()
        console.print(head, soft_wrap=True)
        head, left, room = text("    "), 4, max(8, console.width - 5)
    for number, line in enumerate(line for part in parts for line in part.wrap(console, room)):
        line.rstrip()
        console.print((text(" " * left) if number else head) + line, soft_wrap=True)


def _conclude(console: Terminal, checks: list[Check]) -> None:
    failed = [check.name for check in checks if check.status == "fail"]
    warned = sum(check.status == "warn" for check in checks)
    if failed:
        said = text(f"Training can't work here: {', '.join(failed)}.", "bold red")
    else:
        said = text("Training works here" + (f"; warnings: {warned}." if warned else "."), "bold")
    console.print(said, soft_wrap=not console.is_terminal)
    console.print(text("For a bug report: rlhf doctor --report"))
