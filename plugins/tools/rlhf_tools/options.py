"""The options of commands that ask models questions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from rlhf_core.numbers import COUNT, SEED, TEMPERATURE, max_bad_rows

# By name, for commands that take some of them.
OPTIONS = {
    "data": click.option(
        "--data",
        multiple=True,
        metavar="SPEC",
        help="Prompts: any of its rows may be used, also those that a model was trained on; of `builtin` only "
        "the held-out part. Repeatable.  [what the run held out, of several the first; without a run: builtin]",
    ),
    "max_bad_rows": max_bad_rows,
    "reward": click.option(
        "--reward",
        multiple=True,
        metavar="SPEC",
        help="Reward, NAME or NAME:key=value,…, by installed name or as ./file.py:function. Repeatable.  [those of the "
        "first run that has any]",
    ),
    "samples": click.option(
        "--samples", type=click.IntRange(1, 1000), default=1, metavar="N", help="Sampled answers to each prompt.  [1]"
    ),
    "temperature": click.option(
        "--temperature",
        type=TEMPERATURE,
        default=1.0,
        metavar="X",
        help="Of the sampled answers.  [1.0]",
    ),
    "max_completion_length": click.option(
        "--max-completion-length",
        type=COUNT,
        metavar="N",
        help="Longest answer, in tokens.  [the run's, else 256]",
    ),
    "system_prompt": click.option(
        "--system-prompt",
        metavar="TEXT",
        help="System message where a row has none; '' for none at all.  [the run's, else the rewards']",
    ),
    "chat_template_kwargs": click.option(
        "--chat-template-kwargs",
        metavar="JSON",
        help="Variables of the chat templates, such as '{\"enable_thinking\": false}'.  [each run's own]",
    ),
    "seed": click.option("--seed", type=SEED, default=42, metavar="N", help="Of the sampling and the intervals.  [42]"),
    "load_in_4bit": click.option(
        "--load-in-4bit",
        is_flag=True,
        help="4-bit NF4 weights, as for rlhf run, of all models that are loaded here.",
    ),
    "trust_remote_code": click.option(
        "--trust-remote-code",
        is_flag=True,
        help="Run the code that a model brings with it; read it first, it can do all that you can.",
    ),
}


def asking_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command all of them, in this order."""
    for option in reversed(OPTIONS.values()):
        command = option(command)
    return command
