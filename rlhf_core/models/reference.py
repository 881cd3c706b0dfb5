"""The frozen reference of DPO's loss and of a KL penalty: the model as the run starts from it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from rlhf_core.errors import UserError
from rlhf_core.inputs import library_errors
from rlhf_core.models.adapters import uses_lora
from rlhf_core.models.checks import with_adapter
from rlhf_core.models.files import read_adapter_config
from rlhf_core.models.resolve import quiet_libraries

if TYPE_CHECKING:
    from rlhf_core.training.run import Run

REFERENCE_ADAPTER = "ref"  # TRL's name, too


class ReferenceModel:
    """Made before training begins. `with reference() as model:` returns the model to compute with, without gradients.

    A fresh adapter is switched off; of an adapter that the run started from, a frozen copy is added. Without an adapter
    all weights are copied, and `prepare` shards that copy among processes as the trained model is. With ZeRO-3, where a
    copy would have no values, `load` loads them again.
    """

    def __init__(self, model: Any, *, fresh_adapter: bool, load: Callable[[], Any] | None = None) -> None:
        from peft import PeftModel

        from rlhf_core.prefix.packed import is_sharded

        self.model, self.fresh_adapter = model, fresh_adapter
        self.copy: Any = None
        self.sharded = False
        if not isinstance(model, PeftModel):
            start = load() if load is not None and is_sharded(model) else copy.deepcopy(model)
            self.copy = start.requires_grad_(False).eval()
        elif not fresh_adapter:
            model.add_adapter(REFERENCE_ADAPTER, model.peft_config["default"])
            self.copy_adapter(model)
            model.set_adapter("default")

    @staticmethod
    def check(run: Run) -> None:
        """Before weights load: raise `UserError` if the run trains on from an adapter of which no copy can be added."""
        if run.info.adapter is None or run.info.empty is None or not uses_lora(run.options, run.info):
            return
        config = read_adapter_config(run.info.adapter, run.info.called)
        config.inference_mode = False  # it is trained
        called = f"{run.info.called}: the reference would be a frozen copy of this adapter, which PEFT can't add"
        try:
            with library_errors(called), quiet_libraries():
                with_adapter(run.info.empty, config).add_adapter(REFERENCE_ADAPTER, config, low_cpu_mem_usage=True)
        except UserError as error:
            raise UserError(
                f"{error} Add --no-lora, which merges it into the weights and trains all of them, or make a merged "
                "model to begin with: rlhf merge"
            ) from error

    @staticmethod
    def copy_adapter(model: Any) -> None:
        """Give the adapter `ref` of a `PeftModel` the values of the one that is trained."""
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        set_peft_model_state_dict(model, get_peft_model_state_dict(model), adapter_name=REFERENCE_ADAPTER)

    def prepare(self, accelerator: Any) -> None:
        """Shard the copy, if there is one, as FSDP or DeepSpeed shard the trained model."""
        from accelerate import DistributedType

        kind = accelerator.distributed_type
        if self.copy is None or kind not in (DistributedType.DEEPSPEED, DistributedType.FSDP):
            return
        from trl.models import prepare_deepspeed, prepare_fsdp

        self.copy = (prepare_fsdp if kind == DistributedType.FSDP else prepare_deepspeed)(self.copy, accelerator)
        self.sharded = True

    @contextmanager
    def __call__(self) -> Iterator[Any]:
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                if self.copy is not None:
                    yield self.copy if self.sharded else self.copy.to(self.model.device)
                elif self.fresh_adapter:
                    with self.model.disable_adapter():
                        yield self.model
                else:
                    self.model.set_adapter(REFERENCE_ADAPTER)
                    yield self.model
        finally:
            if self.copy is None and not self.fresh_adapter:
                self.model.set_adapter("default")
            self.model.train(training)
