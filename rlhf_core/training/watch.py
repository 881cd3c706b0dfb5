"""Stops a run that can't go on, at the step where that is seen, and says before it begins what will not act.

What is said while it trains is in `rlhf_core.diagnoses`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback

from rlhf_core.errors import RunStopped
from rlhf_core.models.trainable import share_too_large
from rlhf_core.models.weights import not_finite
from rlhf_core.unused import WITHOUT_WARMUP

if TYPE_CHECKING:
    from rlhf_core.training.run import Run

log = logging.getLogger("rlhf")


class Watch(TrainerCallback):
    """Stops a run whose loss or weights are no numbers. `told` is called first, with the step."""

    def __init__(self, trainer: Any, run: Run, told: Callable[[int], None] = lambda step: None) -> None:
        self.run, self.model, self.told = run, trainer.model, told
        self.loss: torch.Tensor | None = None  # the sum over the forward passes of this step
        self._training_step = trainer.training_step
        trainer.training_step = self._watched

    def _watched(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        loss = self._training_step(*arguments, **keywords)
        self.loss = loss.detach() if self.loss is None else self.loss + loss.detach()
        return loss

    def on_train_begin(self, args, state, control, **kwargs):
        options, steps = self.run.options, state.max_steps
        warmup = 0 if options.lr_scheduler_type in WITHOUT_WARMUP else args.get_warmup_steps(steps)
        if warmup >= steps and state.is_world_process_zero:
            rate = options.learning_rate * (steps - 1) / warmup
            log.warning(
                "--warmup-steps %g: all %d steps are warm-up, in which the learning rate rises from 0 to %g at most%s. "
                "Use --warmup-steps 0, or more steps",
                *(options.warmup_steps, steps, rate, "" if rate else ", so nothing is learned"),
            )

    def on_step_end(self, args, state, control, **kwargs):
        if self.loss is None:
            return
        loss, self.loss = reduce(self.loss.float(), "sum").item(), None  # of all processes, which stop together
        if not math.isfinite(loss):
            if state.is_world_process_zero:
                self.told(state.global_step)
            raise RunStopped(
                f"The loss of step {state.global_step} is {loss}: from here on nothing can be learned. Use --dtype "
                "bfloat16 or float32 where it is float16, or a smaller --learning-rate. If it is the first step, the "
                "model's files may hold weights that are no numbers."
            )

    def on_save(self, args, state, control, **kwargs):
        self._check_weights(state)

    def _check_weights(self, state: Any) -> None:
        """Before a checkpoint or the model counts as written. What shards weights has parts of them in each process."""
        if self.run.config.distributed in ("fsdp", "zero3"):
            return
        trained = [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]
        if wrong := not_finite(trained):
            raise RunStopped(
                f"After step {state.global_step} {wrong[0]} has values that are NaN or infinite (of {len(trained)} "
                f"trained weights {len(wrong)} have): a gradient was too large. Use a smaller --learning-rate, or "
                "--dtype bfloat16 or float32 where it is float16."
            )

    def on_train_end(self, args, state, control, **kwargs):
        if state.global_step == 0:
            raise RunStopped(
                f"Not one step was trained: the trainer made no batch of {len(self.run.train_rows):,} rows. Give more "
                "data, or smaller batches: --per-device-train-batch-size N --gradient-accumulation-steps N"
            )
        self._check_weights(state)


def warn_of_small_steps(trainer: Any, run: Run) -> None:
    """Say if a step is too small to change most weights. What shards weights may train them in another type.

    A step of Adam is the learning rate for each weight, of other optimizers less.
    """
    rate = trainer.args.learning_rate
    share = share_too_large(trainer.model, rate) if run.config.distributed == "ddp" else 0.0
    if share > 0.5 and trainer.is_world_process_zero():
        short = {weight.dtype for weight in trainer.model.parameters() if weight.requires_grad} != {torch.float32}
        log.warning(
            "--learning-rate %g: a step of it is under half a unit in the last place of %.0f %% of trained weights: "
            "they stay as they are. Use a larger rate%s",
            *(rate, 100 * share, ", or --dtype float32 or --lora, whose weights have more digits" if short else ""),
        )
