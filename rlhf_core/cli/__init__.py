"""The command `rlhf`. A command's module is imported when the command is called, never for `--help`."""

from __future__ import annotations

import sys
import traceback

import click

from rlhf_core.cli.lazy import LazyGroup
from rlhf_core.errors import UserError

# name -> (module, attribute, help line)
COMMANDS = {
    "run": ("cli.run", "run", "Train a model."),
    "score": ("cli.score", "score", "Try rewards on completions, before any training."),
    "pipeline": ("cli.pipeline", "pipeline", "Run several stages, each feeding the next."),
    "merge": ("cli.merge", "merge", "Put a trained adapter into its base model."),
    "chat": ("cli.chat", "chat", "Talk with a model in the terminal."),
    "methods": ("cli.listings", "methods", "List the installed training methods, or show one."),
    "rewards": ("cli.listings", "rewards", "List the installed rewards, or show one."),
    "formatters": ("cli.listings", "formatters", "List the data formats that are understood, or show one."),
    "plugins": ("cli.plugins", "plugins", "List, check, write, install and remove plugins."),
}


class Commands(LazyGroup):
    """The commands in the table above, then those of installed plugins."""

    def help_rows(self) -> list[tuple[str, str]]:
        rows = super().help_rows()
        return rows + [(e.name, e.summary) for e in _plugin_commands() if e.name not in self.table]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.table and any(entry.name == name for entry in _plugin_commands()):
            from rlhf_core.catalog import Catalog

            return Catalog().load("commands", name)[0]
        return super().get_command(ctx, name)


def _plugin_commands() -> list:
    from rlhf_core.catalog import Catalog

    return Catalog().entries("commands")


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
    try:
        code = rlhf.main(standalone_mode=False)
    except click.Abort:
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except UserError as error:
        click.echo(f"{click.style('Error:', fg='red', bold=True)} {error}", err=True)
        code = 2
    except KeyboardInterrupt:
        click.echo("Interrupted.", err=True)
        code = 130
    except Exception:
        traceback.print_exc()
        code = 1
    sys.exit(code)
