"""The method's trainer: tried as far as it needs no weights, so that mistakes are found before they load, and built."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from rlhf_core.errors import REFUSALS, UserError, first_line, raised_by_library
from rlhf_core.method import Method
from rlhf_core.models.resolve import quiet_libraries
from rlhf_core.training import launch, run_folder
from rlhf_core.ui.screen import Screen

if TYPE_CHECKING:
    import transformers

    from rlhf_core.training.run import Run


class ModelNeeded(BaseException):
    """What is built before weights load asked for the model: what comes before is right. No plugin's error."""


def try_to_build(run: Run, method: Method, screen: Screen) -> None:
    """Build the trainer up to where it asks for the model. Raises `UserError` as a run would.

    Not for several processes: what their number decides can't be known in one.
    """
    if run.config.num_processes * run.config.num_machines > 1:
        return
    run.loads_weights = False
    with run_folder.shown_warnings(screen.say), quiet_libraries(), contextlib.suppress(ModelNeeded):
        _trainer(run, method)


def _trainer(run: Run, method: Method) -> transformers.Trainer:
    """The method's trainer. What a library says of a value that it was given is raised as `UserError`."""
    try:
        return method.trainer(run)
    except REFUSALS as error:
        if raised_by_library(error):
            raise UserError(f"the trainer can't be built: {first_line(error)}") from error
        raise


def build(run: Run, method: Method, plugins: list[str]) -> transformers.Trainer:
    """The method's trainer; also writes config.yaml and manifest.json."""
    import transformers

    from rlhf_core.models import trainable
    from rlhf_core.training.watch import warn_of_small_steps

    transformers.set_seed(run.options.seed)
    try:
        trainer = _trainer(run, method)
    except Exception as error:
        if not isinstance(error, UserError) or error.__cause__:
            logging.getLogger(__name__).error("the trainer could not be built", exc_info=error)
        raise
    trainable.use_float32(trainer, run)
    if run.config.distributed != "ddp":
        trainable.save_tied_once(trainer.model)
    warn_of_small_steps(trainer, run)
    launch.check(run.config, trainer)
    if trainer.is_world_process_zero():
        run_folder.begin(run, plugins)
    trainer.accelerator.wait_for_everyone()
    return trainer
