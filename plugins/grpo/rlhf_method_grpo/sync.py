"""The way of weights to vLLM and of answers back, around TRL's `VLLMGeneration`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from rlhf_core import RunStopped, UserError


def guard(generation: Any, model: torch.nn.Module, server: str | None) -> None:
    """Make `generation` (TRL's `VLLMGeneration`) leave frozen weights as they are, and end the run where vLLM fails.

    Its methods stay those of TRL; it calls `sync_weights` itself after vLLM has slept.
    """
    keep = Frozen(model)
    stop = functools.partial(_stopping, where=f"the vLLM server {server}" if server else "vLLM")
    generation.sync_weights = stop(keep.unchanged(generation.sync_weights))
    generation.generate = stop(generation.generate)


class Frozen:
    """The weights that an adapter is merged into and taken out of again for vLLM, which rounds each of them twice: in
    bfloat16 they would drift away step by step. They are copied once, to the host's memory, and put back after it.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.copies: list[torch.Tensor] | None = None

    def weights(self) -> Iterator[torch.Tensor]:
        """Each once, in the same order every time."""
        layers = (module.get_base_layer() for module in self.model.modules() if isinstance(module, BaseTunerLayer))
        found = {id(weight): weight for layer in layers for weight in layer.parameters() if not weight.requires_grad}
        yield from found.values()

    def unchanged(self, sync: Any) -> Any:
        @functools.wraps(sync)
        def synced() -> None:
            if self.copies is None:
                self.copies = [weight.detach().to("cpu", copy=True) for weight in self.weights()]
            try:
                sync()
            finally:
                with torch.no_grad():
                    for weight, copy in zip(self.weights(), self.copies, strict=True):
                        weight.copy_(copy)

        return synced


def _stopping(call: Any, where: str) -> Any:
    """`call`, whose failures end the run with one message, and can be resumed from."""

    @functools.wraps(call)
    def guarded(*arguments: Any, **named: Any) -> Any:
        try:
            return call(*arguments, **named)
        except (UserError, RunStopped, torch.OutOfMemoryError):
            raise
        except Exception as error:  # TRL raises `Exception`, and vLLM and a server whatever they do
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise RunStopped(
                f"{where} failed while it was sent weights or sampled: {type(error).__name__}: {first}. See its own "
                "log; the run goes on from its last checkpoint when it is there again"
            ) from error

    return guarded
