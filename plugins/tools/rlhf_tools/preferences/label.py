"""`rlhf preferences label`: people say which of two answers is better, in the terminal or in a browser."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import Any

import click

from rlhf_core.numbers import COUNT, SEED, max_bad_rows

PORT = 8765


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", metavar="FILE")
@click.option("--labels", metavar="FILE", help="Where labels are added.  [FILE with .labels.jsonl as its ending]")
@click.option("--labeller", metavar="NAME", help="Who labels, in the terminal.  [the login name]")
@click.option(
    "--output", metavar="FILE", help="Write the pairs on which more than half agree, at the end: pairs.jsonl."
)
@click.option(
    "--serve", is_flag=True, help="A page in the browser, for one or several labellers, in place of the terminal."
)
@click.option("--port", type=click.IntRange(0, 65535), metavar="N", help=f"Of --serve; 0: any that is free.  [{PORT}]")
@click.option("--host", metavar="ADDRESS", help="Of --serve; any other needs the token in its address.  [127.0.0.1]")
@click.option(
    "--labels-per-row", type=COUNT, metavar="N", help="A row with so many labels is done.  [all label all rows]"
)
@click.option("--seed", type=SEED, default=0, metavar="N", help="Of the order of rows and sides, with the name.  [0]")
@max_bad_rows
@click.option("--json", "as_json", is_flag=True, help="What the labels come to as one JSON object, at the end.")
@click.option("--lang", metavar="en|zh", help="Language.  [that of RLHF_LANG, else en]")
def label(source: str, **given: Any) -> None:
    """Let people say which of two answers is better.

    FILE has pairs, in any format that `rlhf run` reads, or labels, to be labelled by others too. Nothing tells which
    answer was chosen, by which model it is or how it was scored; rows and sides come in an order of their own for each
    labeller. In the terminal keys are enough: ? lists them. Each label is on disk before the next row is shown: the
    same command goes on after any end. Ctrl-C ends --serve.

    rlhf preferences label pairs.jsonl --output labelled.jsonl
    """
    from rlhf_core.commands import language

    given["lang"] = language(given["lang"])
    sys.exit(run(source, **given))


def run(
    source: str, labels: str | None, labeller: str | None, output: str | None, serve: bool, port: int | None,
    host: str | None, labels_per_row: int | None, seed: int, max_bad_rows: float, as_json: bool, lang: str,
) -> int:  # fmt: skip
    """Returns the exit code."""
    from rlhf_core import Catalog, UserError
    from rlhf_core.commands import Screen, Terminal, check_writable, to_json
    from rlhf_tools.preferences import finishing, labelling
    from rlhf_tools.preferences.terminal import check_terminal, label_in_terminal
    from rlhf_tools.preferences.words import say

    for flag, value in (("--port", port), ("--host", host)):
        if value is not None and not serve:
            raise UserError(f"{flag} has no effect without --serve")
    if serve and labeller is not None:
        raise UserError("--labeller has no effect with --serve: the page asks each labeller for a name")
    screen = Screen(console=Terminal(stderr=True)) if as_json else Screen()
    if not serve:
        check_terminal(screen, lang)
    path = where(source, labels)
    check_writable(path, "--labels")
    pairs = None if output is None else finishing.check_output(output, path)
    with screen.working(say(lang, "Reading {file} …", file=source)) as progress:
        rows, warnings = labelling.read_rows(source, Catalog(), max_bad_rows, progress)
        work = labelling.Work(rows, path, seed, labels_per_row)
    for warning in [*warnings, *work.warnings()]:
        screen.say(f"{say(lang, 'Warning')}: {warning}", "yellow")
    if serve:
        from rlhf_tools.preferences.serving import serve as serve_page

        serve_page(work, host or "127.0.0.1", PORT if port is None else port, screen, lang)
        interrupted = False
    else:
        interrupted = label_in_terminal(work, name_of(labeller), screen, lang)
    result = finishing.result_of(work)
    if pairs is not None:
        result |= {"output": str(pairs), **finishing.write_pairs(work, pairs)}
    finishing.show(screen, result, lang)
    if as_json:
        click.echo(to_json(result))
    if not serve and work.next(name_of(labeller)) is not None:
        screen.say(say(lang, "The same command goes on where this ended."))
    return 130 if interrupted else 0


def where(source: str, labels: str | None) -> Path:
    """The file that labels are added to."""
    from rlhf_core import UserError
    from rlhf_core.commands import SUFFIX, DataSpec, labels_in, path_of

    if labels is not None:
        found = path_of(labels, "--labels")
        if found.suffix != ".jsonl":
            raise UserError(f"--labels {found}: the name has to end in .jsonl")
        if found.exists() and found.stat().st_size and not labels_in(found):
            raise UserError(f"--labels {found} holds no labels: labels would be added to another file's rows")
        return found
    path = path_of(source, "FILE")
    if labels_in(path):
        return path
    path = path_of(DataSpec.read(source).source, "FILE")
    if not path.is_file():
        raise UserError(f"{source}: no file. Say where labels are to be added: --labels NAME{SUFFIX}")
    return path.with_name(path.name.partition(".")[0] + SUFFIX)


def name_of(labeller: str | None) -> str:
    from rlhf_core import UserError

    if labeller is None:
        try:
            return getpass.getuser()
        except (KeyError, OSError) as error:  # a user without a name, in a container
            raise UserError("the login has no name: say who labels with --labeller NAME") from error
    if not (name := labeller.strip()) or not name.isprintable() or len(name) > 64:
        raise UserError(f"--labeller {labeller!r:.80}: a name has up to 64 characters that can be printed")
    return name
