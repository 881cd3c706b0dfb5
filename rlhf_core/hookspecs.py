"""Every hook of rlhf. A plugin implements one or more of them and names its module as an entry point.

| hook              | entry-point group  | loaded by          |
|-------------------|--------------------|--------------------|
| rlhf_methods      | `rlhf.methods`     | `--method NAME`    |
| rlhf_rewards      | `rlhf.rewards`     | `--reward NAME`    |
| rlhf_formatters   | `rlhf.formatters`  | the data's columns |
| rlhf_callbacks    | `rlhf.callbacks`   | `--callback NAME`  |
| rlhf_commands     | `rlhf.commands`    | typing its name    |

The entry point's name is what the user types; its value is the module that holds the implementation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click
    from transformers import TrainerCallback

    from rlhf_core.formatter import Formatter
    from rlhf_core.method import Method
    from rlhf_core.reward import Reward
    from rlhf_core.training.run import Run

# mypy: disable-error-code=empty-body

hookspec = pluggy.HookspecMarker("rlhf")
hookimpl = pluggy.HookimplMarker("rlhf")


@hookspec
def rlhf_methods() -> Iterable[type[Method]]:
    """Training methods: subclasses of `Method`, each with a `name`."""


@hookspec
def rlhf_rewards() -> Iterable[Reward]:
    """Rewards: functions that score completions, wrapped in `Reward`."""


@hookspec
def rlhf_formatters() -> Iterable[Formatter]:
    """Formatters: how rows of one data format become examples."""


@hookspec
def rlhf_callbacks(run: Run) -> Iterable[TrainerCallback]:
    """Observers of a run (trackers, alarms), added to its trainer."""


@hookspec
def rlhf_commands() -> Iterable[click.Command]:
    """Further commands of `rlhf`, imported when they are typed."""
