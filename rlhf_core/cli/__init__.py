"""The command `rlhf`. A command's module is imported when the command is called, never for `--help`."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import click

from rlhf_core.environment import LAUNCHER, Ended, comes_again
from rlhf_core.errors import RunStopped, UserError
from rlhf_core.ui.streams import OF_DISKS, open_streams
from rlhf_core.ui.text import protect_output

# name -> (module, attribute, help line)
COMMANDS = {
    "run": ("cli.run", "run", "Train a model."),
    "estimate": ("cli.estimate", "estimate", "Tell a run's memory and time before it, and whether it fits."),
    "data": ("cli.data", "data", "Look at data, check it, count it or convert it."),
    "runs": ("cli.runs", "runs", "List the runs that are there, or remove some."),
    "diagnose": ("cli.diagnose", "diagnose", "Tell what is wrong with a run, and what to do."),
    "score": ("cli.score", "score", "Try rewards on completions, before any training."),
    "report": ("cli.report", "report", "Write a page about a run, or about several beside each other."),
    "pipeline": ("cli.pipeline", "pipeline", "Run several stages, each feeding the next."),
    "merge": ("cli.merge", "merge", "Merge a trained adapter into its base model."),
    "chat": ("cli.chat", "chat", "Talk with a model in the terminal."),
    "methods": ("cli.listings", "methods", "List the installed training methods, or show one."),
    "rewards": ("cli.listings", "rewards", "List the installed rewards, or show one."),
    "formatters": ("cli.listings", "formatters", "List the supported data formats, or show one."),
    "doctor": ("cli.doctor", "doctor", "Check this machine, and what is installed."),
    "plugins": ("cli.listings", "plugins", "List, check, create, install and remove plugins."),
}


class LazyGroup(click.Group):
    """A group of commands. `table`: name -> (module of `rlhf_core`, attribute, help line)."""

    def __init__(self, *arguments: Any, table: Mapping[str, tuple[str, str, str]], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.table = table

    def help_rows(self) -> list[tuple[str, str]]:
        """(name, help line) of every command."""
        return [(name, line) for name, (_, _, line) in self.table.items()]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, _ in self.help_rows()]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.table:
            return None
        module, attribute, _ = self.table[name]
        return getattr(importlib.import_module(f"rlhf_core.{module}"), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(self.help_rows())


class Commands(LazyGroup):
    """The commands in the table above, then those of installed plugins."""

    def help_rows(self) -> list[tuple[str, str]]:
        from rlhf_core.catalog import Catalog

        plugins = Catalog().entries("commands")
        return super().help_rows() + [(entry.name, entry.summary) for entry in plugins if entry.name not in self.table]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        from rlhf_core.catalog import Catalog

        catalog = Catalog()
        if name not in self.table and any(entry.name == name for entry in catalog.entries("commands")):
            return catalog.load("commands", name)[0]
        return super().get_command(ctx, name)


@click.command(
    cls=Commands,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": lambda t: t.replace("_", "-")},
    epilog="Start with: rlhf run --method grpo --reward medical_format",
)
@click.version_option(package_name="rlhf-core", prog_name="rlhf", message="%(prog)s %(version)s")
def rlhf() -> None:
    """Train language models from human feedback."""


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 a bug or a run that had to stop, 2 the user's mistake, 130 interrupted.
    """
    open_streams()
    protect_output()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # nohup ignores the last
            signal.signal(number, _interrupt)
    try:
        code = exit_code()
        sys.stdout.flush()
    except OSError as error:
        code = 1
        if error.errno != errno.EPIPE:  # whoever closes a pipe has read enough
            with suppress(OSError):
                click.echo(f"Error: {error.filename or 'the output'} can't be written: {error.strerror}", err=True)
    sys.exit(code)


def _interrupt(number: int, frame: Any) -> None:
    """End the command as Ctrl-C does, so that what was begun is cleaned up; once, if all processes get the signal."""
    if not comes_again():
        raise KeyboardInterrupt if number == signal.SIGINT else Ended


def exit_code(arguments: Sequence[str] | None = None) -> Any:
    """Carry out `rlhf ARGUMENTS`, those that were typed if none are given; what went wrong is said."""
    try:
        _check_current_folder()
        # color: else click removes codes, which would then not be seen
        return rlhf.main(args=arguments, standalone_mode=False, color=True)
    except SystemExit as error:
        return error.code
    except click.Abort as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            _say_interrupted()
        return 130
    except click.ClickException as error:
        with suppress(OSError):  # nobody may read it, but the code tells
            error.show()
        return error.exit_code
    except UserError as error:
        from rlhf_core.ui.screen import say_error

        with suppress(OSError):
            say_error(str(error))
        return 2
    except RunStopped as error:
        from rlhf_core.ui.screen import say_error

        with suppress(OSError):
            say_error(str(error))
        return 1
    except KeyboardInterrupt:
        _say_interrupted()
        return 130
    except PermissionError as error:  # of a folder that this user may not look into
        from rlhf_core.ui.screen import say_error

        with suppress(OSError):
            say_error(f"{error.filename or 'what the command needs'}: {error.strerror}")
        return 2
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.EPIPE, *OF_DISKS):
            raise
        with suppress(OSError):
            sys.stderr.write(traceback.format_exc())  # whole, so that no secret is missed
        return 1


def _check_current_folder() -> None:
    """Raise `UserError` if the current folder was deleted: libraries fail there in many ways."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(f"the current folder can't be used: {error.strerror}. Go to another one: cd FOLDER") from error


def _say_interrupted() -> None:
    """Not in one of several processes: the command that started them has ended it, and says why."""
    if LAUNCHER in os.environ:
        return
    with suppress(OSError):
        click.echo("Interrupted.", err=True)
