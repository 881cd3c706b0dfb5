"""`rlhf chat`: talk with a model. Lines come from a terminal or a pipe; `rlhf_core.chat.conversation` acts on them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from rlhf_core.errors import UserError

if TYPE_CHECKING:
    from rlhf_core.chat.conversation import Chat
    from rlhf_core.chat.streaming import Write


POSITIVE, SHARE = click.FloatRange(0, min_open=True), click.FloatRange(0, 1, min_open=True)
COUNT = click.IntRange(1)


@click.command()
@click.argument("model", metavar="RUN_OR_MODEL")
@click.option("--system", metavar="TEXT", help="System message; '' for none; unset: the run's, else the rewards'.")
@click.option("--reward", multiple=True, metavar="SPEC", help="Reward for /reward; repeatable; unset: the run's.")
@click.option("--temperature", type=POSITIVE, default=0.7, metavar="X", help="Lower is less random.  [0.7]")
@click.option("--top-p", type=SHARE, default=1.0, metavar="X", help="Share of likeliest tokens to sample.  [1.0]")
@click.option("--max-new-tokens", type=COUNT, default=512, metavar="N", help="Longest answer, in tokens.  [512]")
@click.option("--greedy", is_flag=True, help="Always take the likeliest token.")
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), metavar="N", help="Seed of the answers; unset: a random one."
)
@click.option("--chat-template", metavar="FILE", help="Chat template (Jinja), for a model without one.")
def chat(**values: Any) -> None:
    """Talk with a model in the terminal.

    RUN_OR_MODEL is the folder of a run, a model or an adapter, a Hub id, or `builtin`. In the chat, /help lists the
    commands: sample an answer again, remove it, save the conversation, show the rewards' scores.

    rlhf chat runs/grpo-20260101-120000
    """
    from rlhf_core.chat.conversation import Settings
    from rlhf_core.chat.opening import open_chat

    choice = {name: values.pop(name) for name in ("temperature", "top_p", "max_new_tokens", "greedy", "seed")}
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    with open_chat(**values, settings=Settings(**choice), write=_writer(terminal), terminal=terminal) as conversation:
        if terminal:
            _introduce(conversation, values["model"])
        _converse(conversation, terminal)


def _writer(terminal: bool) -> Write:
    """Write pieces as they come; to a terminal in colour, with control characters escaped."""
    if not terminal:
        return lambda text, style="": click.echo(text, nl=False)
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    styles = {"": "", "thought": "dim", "line": "", "note": "yellow", "bold": "bold"}

    def write(text: str, style: str = "") -> None:
        visible = text.replace("\x1b", "␛").replace("\x9b", "␛")
        console.print(Text(visible, style=styles[style]), end="", soft_wrap=style in ("", "thought"))

    return write


def _introduce(conversation: Chat, model: str) -> None:
    try:
        import readline  # noqa: F401  (gives `input` its editing and history)
    except ImportError:  # not on every platform
        pass
    conversation.write(f"{model}\n", "bold")
    conversation.write("/help lists the commands; /quit or Ctrl-D ends.\n", "line")
    if conversation.system:
        conversation.write(f"System: {conversation.system}\n", "line")


def _converse(conversation: Chat, terminal: bool) -> None:
    """Read and do, until /quit, the end of the input, or Ctrl-C and a yes."""
    if not terminal:
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    while True:
        if terminal:
            conversation.write("\n")
        try:
            line = _read(terminal)
        except EOFError:
            if terminal:
                conversation.write("\n")
            return
        except KeyboardInterrupt:
            conversation.write("\n")
            if not terminal or _wants_to_quit():
                return
            continue
        try:
            if not conversation.do(line):
                return
        except KeyboardInterrupt:
            conversation.write("\nStopped.\n", "note")
        except UserError as error:
            conversation.write(f"{error}\n", "note")


def _read(terminal: bool) -> str:
    """One line, or several where each but the last ends with a backslash."""
    line = input("> " if terminal else "")
    while line.endswith("\\"):
        try:
            line = line[:-1] + "\n" + input("… " if terminal else "")
        except EOFError:
            return line[:-1]
    return line.encode("utf-8", "replace").decode()  # a terminal can hand over half a character


def _wants_to_quit() -> bool:
    try:
        return input("Leave the chat? [y/N] ").strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        click.echo()
        return True
