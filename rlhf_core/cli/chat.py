"""`rlhf chat`: talk with a model. Lines come from a terminal or a pipe; `rlhf_core.chat` acts on them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext, suppress
from typing import Any

import click
from rich.text import Text

from rlhf_core.catalog import Catalog
from rlhf_core.chat import Chat, Settings, Write
from rlhf_core.config import TRUST_REMOTE_CODE, read_file, read_rewards
from rlhf_core.data.chat_template import ChatTemplate
from rlhf_core.environment import Ended
from rlhf_core.errors import UserError
from rlhf_core.method import TrainingOptions, read_kwargs
from rlhf_core.models.resolve import ModelReference, find, quiet_libraries
from rlhf_core.numbers import COUNT, SEED, SHARE, TEMPERATURE
from rlhf_core.rewards.batch import TEXT_PROMPT
from rlhf_core.rewards.binding import BoundReward, bind_all
from rlhf_core.rewards.runtime import RewardRuntime
from rlhf_core.ui.screen import Screen, Terminal
from rlhf_core.ui.text import ShownPieces


@click.command()
@click.argument("model", metavar="RUN_OR_MODEL")
@click.option("--system", metavar="TEXT", help="System message; '' for none; unset: the run's, else the rewards'.")
@click.option("--reward", multiple=True, metavar="SPEC", help="Reward for /reward; repeatable; unset: the run's.")
@click.option("--temperature", type=TEMPERATURE, default=0.7, metavar="X", help="Lower is less random.  [0.7]")
@click.option("--top-p", type=SHARE, default=1.0, metavar="X", help="Share of likeliest tokens to sample.  [1.0]")
@click.option("--max-new-tokens", type=COUNT, default=512, metavar="N", help="Longest answer, in tokens.  [512]")
@click.option("--greedy", is_flag=True, help="Always take the likeliest token.")
@click.option("--seed", type=SEED, metavar="N", help="Seed of the answers; unset: a random one.")
@click.option("--chat-template", metavar="FILE", help="Chat template (Jinja), for a model without one.")
@click.option(
    "--chat-template-kwargs", type=read_kwargs, metavar="JSON", help="Variables of the chat template; unset: the run's."
)
@click.option("--trust-remote-code", is_flag=True, help=TRUST_REMOTE_CODE)
def chat(
    model: str,
    system: str | None,
    reward: tuple[str, ...],
    chat_template: str | None,
    chat_template_kwargs: dict[str, Any] | None,
    trust_remote_code: bool,
    **sampling: Any,
) -> None:
    """Talk with a model in the terminal.

    RUN_OR_MODEL is the folder of a run, a model or an adapter, a run's checkpoint (RUN@120, RUN@best), a Hub id, or
    `builtin`. In the chat, /help lists the commands: sample an answer again, remove it, save the conversation, show the
    rewards' scores.

    rlhf chat runs/grpo-20260101-120000
    """
    settings, terminal = Settings(**sampling), sys.stdin.isatty() and Terminal().is_terminal
    reference = find(model, trust_remote_code=trust_remote_code)
    catalog, write = Catalog(), _writer(terminal)
    if reference.is_reward_model:
        raise UserError(
            f"{model} is a reward model: it scores answers and writes none. Chat with a language model, and have its "
            f"answers scored: rlhf chat MODEL --reward reward_model:path={reference.path}"
        )
    file = reference.run / "config.yaml" if reference.run else None
    ran = read_file(file) if file and file.is_file() else {}
    kwargs = read_kwargs(ran.get("chat_template_kwargs", {})) if chat_template_kwargs is None else chat_template_kwargs
    rewards = bind_all(read_rewards(reward), catalog) if reward else _rewards_of_run(ran, catalog, write)
    with quiet_libraries(), ExitStack() as opened:
        from rlhf_core.training.plan import system_prompt_for

        with Screen().working("Loading the model …") if terminal else nullcontext():
            escape = ran.get("control_tokens") == "escape"
            loaded, template = _load(reference, chat_template, kwargs, settings, write, escape)
            texts: dict[str, Any] = {"opening": template.opening, "finished": template.finished}
            texts["text_prompts"] = _had_text_prompts(reference)
            runtimes = {r.name: RewardRuntime([r], template.decode, **texts) for r in rewards}
            for runtime in runtimes.values():
                opened.callback(runtime.close)
                runtime.start()
        prompt, _ = system_prompt_for(ran.get("system_prompt") if system is None else system, rewards)
        conversation = Chat(loaded, template, write, settings, prompt, runtimes)
        if terminal:
            write(f"{model}\n", "bold")
            write("/help lists the commands; /quit or Ctrl-D ends.\n", "line")
            if conversation.system:
                write(f"System: {conversation.system}\n", "line")
        _converse(conversation, terminal)


def _rewards_of_run(ran: Mapping[str, Any], catalog: Catalog, write: Write) -> list[BoundReward]:
    """The rewards that a run's config.yaml names. One that is no longer installed is reported and left out."""
    rewards = []
    for spec in read_rewards(ran.get("reward") or [], ran.get("reward_model")):
        try:
            rewards += bind_all([spec], catalog)
        except UserError as error:
            write(f"The run's reward {spec} is left out: {error}\n", "note")
    return rewards


def _had_text_prompts(reference: ModelReference) -> bool:
    """Whether the prompts of the run's data were plain text, of which its samples tell."""
    samples = reference.run / "samples.jsonl" if reference.run else None
    if samples is None or not samples.is_file():
        return False
    with samples.open(encoding="utf-8", errors="replace") as lines:
        return f'"{TEXT_PROMPT}": true' in next(lines, "")


def _load(
    reference: ModelReference,
    chat_template: str | None,
    kwargs: dict[str, Any],
    settings: Settings,
    write: Write,
    escape: bool,
) -> tuple[Any, ChatTemplate]:
    """(model, chat template), an adapter beside its base, on the fastest device."""
    import torch
    import transformers

    from rlhf_core.models import loading as models
    from rlhf_core.models.template import template_of

    info = models.inspect(reference, chat_template=chat_template)
    template = template_of(info, kwargs, escape=escape)
    for warning in info.warnings:
        write(f"{warning}\n", "note")
    # With `lora` an adapter is not merged, and the weights are in bfloat16 if the device has it.
    model = models.load(info, TrainingOptions(lora=True))
    if settings.seed is None:
        torch.seed()
    else:
        transformers.set_seed(settings.seed)
    return model.eval().requires_grad_(False).to(models.device()), template


def _writer(terminal: bool) -> Write:
    """Write pieces as they come, with control characters shown; to a terminal in colour."""
    console, pieces = Terminal(), ShownPieces()
    styles = {"": "", "thought": "dim", "line": "", "note": "yellow", "bold": "bold"}

    def write(content: str, style: str = "") -> None:
        if terminal:
            piece = Text(pieces.shown(content), style=styles[style])
            console.print(piece, end="", soft_wrap=style in ("", "thought"))
        else:
            click.echo(pieces.shown(content), nl=False)

    return write


def _converse(conversation: Chat, terminal: bool) -> None:
    """Read and do, until /quit, the end of the input, or Ctrl-C and a yes."""
    if terminal:
        with suppress(ImportError):  # not on every platform
            import readline  # noqa: F401  (gives `input` its editing and history)
    else:
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
        except Ended:
            raise
        except KeyboardInterrupt:
            conversation.write("\n")
            if not terminal or _wants_to_quit():
                return
            continue
        try:
            if not conversation.do(line):
                return
        except Ended:
            raise
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
    with suppress(click.Abort):
        return click.confirm("Leave the chat?")
    return True
