"""The frozen reference of DPO's loss and of a KL penalty: the model as the run starts from it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

REFERENCE_ADAPTER = "ref"


class ReferenceModel:
    """Made before training begins. `with reference() as model:` returns the model to compute with, without gradients.

    A fresh adapter is switched off; of an adapter that the run started from, a frozen copy is added. Without an adapter
    all weights are copied, and `prepare` shards that copy among processes as the trained model is.
    """

    def __init__(self, model: Any, *, fresh_adapter: bool) -> None:
        from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

        self.model, self.fresh_adapter = model, fresh_adapter
        self.copy: Any = None
        self.sharded = False
        if not isinstance(model, PeftModel):
            self.copy = copy.deepcopy(model).requires_grad_(False).eval()
        elif not fresh_adapter:
            model.add_adapter(REFERENCE_ADAPTER, model.peft_config["default"])
            set_peft_model_state_dict(model, get_peft_model_state_dict(model), adapter_name=REFERENCE_ADAPTER)
            model.set_adapter("default")

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
