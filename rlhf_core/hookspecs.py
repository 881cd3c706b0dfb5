"""Every hook of rlhf. A plugin implements one or more of them and names its module as an entry point.

The entry-point group of the hook `rlhf_methods` is `rlhf.methods`, and so on. The entry point's name is what the user
types, its value is the module with the implementation.
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
    """Training methods for `--method NAME`: subclasses of `Method`, each with a `name`."""


@hookspec
def rlhf_rewards() -> Iterable[Reward]:
    """Rewards for `--reward NAME`: functions that score completions, wrapped in `Reward`."""


@hookspec
def rlhf_formatters() -> Iterable[Formatter]:
    """Formatters: how rows of one data format become examples. Chosen by the columns of the data."""


@hookspec
def rlhf_callbacks(run: Run) -> Iterable[TrainerCallback]:
    """Observers of a run (trackers, alarms) for `--callback NAME`, added to its trainer.

    Called before weights load and before the run's folder exists, in a dry run too: what takes either belongs into
    `on_train_begin`. A hook that asks for `run.model` is called again when it has loaded.
    """


@hookspec
def rlhf_commands() -> Iterable[click.Command]:
    """More commands of `rlhf`, imported when they are called."""
