"""`rlhf runs`: the runs that are there, and `rlhf runs rm`. What is known of a run is read by `rlhf_core.runs`."""

from __future__ import annotations

import itertools
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from rlhf_core import runs as past
from rlhf_core.cli.listings import UNLIMITED, print_json
from rlhf_core.errors import UserError
from rlhf_core.runs import PastRun
from rlhf_core.ui.screen import Terminal, number
from rlhf_core.ui.text import duration, gb, shown

LINES = {"\n": "␊", "\r": "␍", "\t": "␉"}  # as `shown` writes other control characters
GAP, NARROWEST = 2, 8  # columns between two columns, and of one that is cut
NARROW_NAME = 12  # characters of a metric's name where there is little room
WIDE = 100  # columns from which on models and data have room
COMMANDS_SHOWN = 5
STYLES = {past.TRAINING: "cyan", past.DONE: "green", past.STOPPED: "magenta", past.FAILED: "red", past.DAMAGED: "red"}
# What --sort takes: the order of a run, and whether the highest comes first.
ORDERS: dict[str, tuple[Callable[[PastRun], Any], bool]] = {
    "age": (lambda run: run.changed, True),
    "name": (lambda run: run.name, False),
    "method": (lambda run: (run.method, -run.changed), False),
    "state": (lambda run: (past.STATES.index(run.state), -run.changed), False),
    "steps": (lambda run: run.steps, True),
    "metric": (lambda run: (run.metric, float("-inf") if run.after is None else run.after), True),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("words", nargs=-1, metavar="[FOLDER]... | rm NAME...")
@click.option("--sort", type=click.Choice([*ORDERS]), help="What decides the order.  [age]")
@click.option("--method", metavar="NAME", help="Only runs of this method.")
@click.option("--state", type=click.Choice(past.STATES), help="Only runs in this state.")
@click.option("--tag", multiple=True, metavar="TAG", help="Only runs with this tag; repeatable: with all of them.")
@click.option("--find", metavar="TEXT", help="Only runs with this text in name, model, data, rewards or tags.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--yes", is_flag=True, help="With rm: do not ask.")
def runs(words: tuple[str, ...], yes: bool, **values: Any) -> None:
    """List the runs in folders and below them, the latest first; without a folder those in runs/.

    For each: how far it came, and its main metric before and after training, on held-out rows where it has some. The
    states: training (now), done, stopped (by hand, or killed), failed (by an error), new (no step is done), damaged.

    rlhf runs rm NAME removes a run: all that it wrote, and nothing else.
    """
    if words[:1] == ("rm",):
        if given := next((name for name, value in values.items() if value), None):
            raise UserError(f"--{given.removeprefix('as_')} has no effect with rlhf runs rm")
        remove(words[1:], yes=yes)
    elif yes:
        raise UserError("--yes has no effect without rm: rlhf runs rm NAME --yes")
    else:
        _list(words, **values)


def _list(words: Sequence[str], sort: str | None, as_json: bool, **filters: Any) -> None:
    if not words and not Path("runs").is_dir():
        found: list[PastRun] = []
    else:
        found = [past.read(folder) for folder in past.find([Path(word) for word in words or ("runs",)])]
    key, highest_first = ORDERS[sort or "age"]
    chosen = sorted((run for run in found if _matches(run, **filters)), key=key, reverse=highest_first)
    if as_json:
        print_json([run.as_dict() for run in chosen])
    elif not chosen:
        where = ", ".join(words) or "runs/"
        click.echo(f"None of the {len(found)} runs in {where} is of this kind." if found else f"No runs in {where}.")
    else:
        _show(chosen, Path(words[0]) if len(words) == 1 else Path("runs") if not words else Path())


def _matches(run: PastRun, method: str | None, state: str | None, tag: Sequence[str], find: str | None) -> bool:
    texts = [run.folder, run.name, run.model, *run.data, *run.rewards, *run.tags]
    return (
        (method is None or run.method == method)
        and (state is None or run.state == state)
        and {*tag} <= {*run.tags}
        and (find is None or any(find.casefold() in each.casefold() for each in texts))
    )


def _show(found: Sequence[PastRun], within: Path) -> None:
    """The table: of all their columns where there is room for them. Folders are told as seen from `within`."""
    screen = Terminal()
    room = screen.width if screen.is_terminal else UNLIMITED
    wide = room >= WIDE
    header = ["NAME", "METHOD", "STATE", "STEPS", "BEFORE → AFTER", "AGE", *(["MODEL", "DATA", "TAGS"] * wide)]
    rows = [[plain(cell) for cell in _cells(run, within, wide=wide)] for run in found]
    widths = [max(map(cell_len, column)) for column in zip(header, *rows, strict=True)]
    while (over := sum(widths) + GAP * (len(widths) - 1) - room) > 0 and max(widths) > NARROWEST:
        widest = widths.index(max(widths))
        widths[widest] = max(NARROWEST, widths[widest] - over, sorted(widths)[-2] - 1)
    lines = []
    for row, styles in zip([header, *rows], [{}, *({2: STYLES.get(run.state, "")} for run in found)], strict=True):
        cells = [_fit(cell, width) + " " * GAP for cell, width in zip(row, widths, strict=True)]
        line = Text.assemble(
            *((cell, styles.get(i, "")) for i, cell in enumerate(cells)), style="" if styles else "bold"
        )
        line.rstrip()
        lines.append(line)
    screen.print(Text("\n").join(lines), soft_wrap=True)
    if any(run.in_training and run.metric for run in found):
        click.echo("* as it was logged in training: it has no held-out rows")
    _advise(found)


def _fit(cell: str, width: int) -> str:
    """`cell` in `width` columns; one that is longer ends with a sign that it does."""
    return set_cell_size(cell, width) if cell_len(cell) <= width else set_cell_size(cell, width - 1) + "…"


def _cells(run: PastRun, within: Path, *, wide: bool) -> list[str]:
    told = [
        _name(run, within),
        run.method,
        run.state,
        _steps(run),
        _metric(run, UNLIMITED if wide else NARROW_NAME),
        _age(run),
    ]
    return told + [_short(run.model), ", ".join(map(_short, run.data)), ", ".join(run.tags)] * wide


def _name(run: PastRun, within: Path) -> str:
    folder = Path(run.folder)
    name = str(folder.relative_to(within)) if folder != within and folder.is_relative_to(within) else run.folder
    return name if run.name == folder.name else f"{run.name} ({name})"


def plain(cell: str) -> str:
    """Text of a file for one line of a terminal; all its spaces are there, which a command needs."""
    return "".join(LINES.get(sign, " " if sign.isspace() else sign) for sign in shown(cell))


def _steps(run: PastRun) -> str:
    return f"{run.steps}/{run.max_steps}" if run.max_steps else str(run.steps) if run.steps else ""


def _metric(run: PastRun, most: int) -> str:
    """The main metric before and after, its name in at most `most` characters."""
    if run.problem or not run.metric:
        return run.problem
    name = run.metric if len(run.metric) <= most else run.metric[: most - 1] + "…"
    return f"{name}{'*' * run.in_training} {number(run.before)} → {number(run.after)}"


def _age(run: PastRun) -> str:
    seconds = max(0.0, time.time() - run.changed)
    return "" if not run.changed else duration(seconds) if seconds >= 120 else f"{seconds:.0f} s"


def _short(name: str) -> str:
    """The end of a path, which tells most of it."""
    path, colon, settings = name.partition(":")
    return "/".join(Path(path).parts[-2:]).removeprefix("/") + colon + settings


def _advise(found: Sequence[PastRun]) -> None:
    """How to go on with those that can be resumed, and how to compare two."""
    resumable = [run for run in found if run.resume]
    for i, run in enumerate(resumable[:COMMANDS_SHOWN]):
        click.echo("\nTo go on:" * (not i) + "\n" * (not i) + f"  {plain(str(run.resume))}")
    if more := resumable[COMMANDS_SHOWN:]:
        click.echo(f"  and so on for {len(more)} more: rlhf run --resume FOLDER")
    done = [run for run in found if run.state == past.DONE]
    if len(done) > 1:
        click.echo("\nTo compare two:")
    answering = list(itertools.islice((run for run in done if run.answers), 2))
    for command, two in (("report", done[:2]), ("compare", answering)):
        if len(two) > 1:
            click.echo(f"  {plain(shlex.join(['rlhf', command, *(run.folder for run in two)]))}")


def remove(names: Sequence[str], *, yes: bool) -> None:
    """Remove runs, after a question. Raises `UserError` before anything is removed if one of them may not be."""
    from rlhf_core.training.removing import remove_run, size

    if not names:
        raise UserError("which runs? Write rlhf runs rm NAME")
    chosen = {folder.resolve(): folder for folder in map(_resolve, names)}
    sizes = {folder: size(folder) for folder in chosen.values()}
    for folder, bytes_ in sizes.items():
        run = past.read(folder)
        about = ", ".join(filter(None, (run.method, run.state, f"{_steps(run)} steps" if run.steps else "")))
        click.echo(plain(f"{folder}  ({about})  {gb(bytes_)}"))
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("rlhf runs rm asks before it removes, and nobody can answer here: write --yes")
        click.confirm(f"Remove {'it' if len(sizes) == 1 else f'these {len(sizes)}'}? It can't be undone.", abort=True)
    for folder in sizes:
        for name in remove_run(folder.resolve()):  # the current one can't be removed as `.`
            click.echo(plain(f"{folder / name} stays: the run did not write it."))
    click.echo(f"{gb(sum(sizes.values()))} are free.")


def _resolve(name: str) -> Path:
    """The folder of the run called `name`: a folder, one in runs/, or the name of a run there. Raises `UserError`."""
    folders = [folder for folder in (Path(name), Path("runs") / name) if past.looks_like_run(folder)]
    if not folders and Path("runs").is_dir():
        with suppress(UserError):
            folders = [folder for folder in past.find([Path("runs")]) if past.read(folder).name == name]
    if not folders:
        there = Path(name).exists() or (Path("runs") / name).exists()
        raise UserError(f"{name}: {'this is not a run' if there else 'there is no such run'}: see rlhf runs")
    if len(folders) > 1 and folders[0].resolve() != folders[1].resolve():
        raise UserError(f"{name}: {len(folders)} runs have this name: write the folder, such as {folders[0]}")
    if folders[0].is_symlink():
        raise UserError(f"{name} is a link: write the folder that it leads to, {folders[0].resolve()}")
    if past.is_training(folders[0]):
        raise UserError(f"{name} is training now: stop it first (touch {folders[0] / 'stop'})")
    return folders[0]
