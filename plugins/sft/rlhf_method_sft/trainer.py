"""What SFT changes of TRL, with tests that fail when TRL changes: batches in one row without padding, and the loss of
models whose head TRL does not know.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from trl import SFTTrainer
from trl.trainer.utils import FusedCausalLMOutput

from rlhf_core import IGNORED
from rlhf_core.prefix import gives_logps, pack_rows, unwrap


class ConcatenatingSFTTrainer(SFTTrainer):
    """TRL's trainer, which with `concatenates` trains on batches that `concatenate_rows` makes.

    Evaluation stays padded: transformers weights the loss of a batch by its number of rows.
    """

    concatenates = False

    def get_train_dataloader(self):
        padding = self.data_collator
        if self.concatenates:
            self.data_collator = concatenate_rows
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = padding

    def reasons_for_trls_batches(self) -> list[str]:
        """The settings that ask for batches as TRL makes them."""
        arguments = self.args
        reasons = {
            "packing": arguments.packing and arguments.packing_strategy == "wrapped",  # which cuts conversations
            "padding_free": arguments.padding_free,
            "pad_to_multiple_of": arguments.pad_to_multiple_of,
            "neftune_noise_alpha": arguments.neftune_noise_alpha,  # the noise depends on a row's length
        }
        return [name for name, holds in reasons.items() if holds]


def concatenate_rows(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of conversations as one row without padding; each attends only to itself.

    The first token of each has no label: no token before it predicts it. A row that TRL packed has several
    conversations, whose lengths are its `seq_lengths`.
    """
    ids, labels = [], []
    for row in rows:
        end = 0
        for length in row.get("seq_lengths") or [len(row["input_ids"])]:
            start, end = end, end + length
            ids.append(row["input_ids"][start:end])
            labels += [IGNORED, *row["labels"][start + 1 : end]]
    return {**pack_rows(ids), "labels": torch.tensor([labels])}


def keep_the_models_head(model: Any) -> None:
    """TRL computes logits from the last states and the weights of the output layer. In some families more lies between
    them or after them (BERT's, ModernBERT's, RecurrentGemma's, …): these get the loss of their own logits.
    """
    if gives_logps(model, _trls_logps, "TRL does not know this model's head, so its logits are computed in full"):
        return
    plain = unwrap(model)
    before = plain.forward

    @functools.wraps(before)
    def forward(*args: Any, fused_lm_head: bool = False, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if not fused_lm_head or labels is None:
            return before(*args, labels=labels, **kwargs)
        kwargs.pop("num_items_in_batch", None)
        output = before(*args, **{**kwargs, "use_cache": False})
        following = labels[:, 1:].to(output.logits.device)
        mask = following != IGNORED
        distribution = output.logits[:, :-1].float().log_softmax(-1)
        logps = distribution.gather(-1, following.clamp(min=0)[..., None])[..., 0] * mask
        with torch.no_grad():
            entropy = -(distribution.exp() * distribution).sum(-1) * mask
            top = (distribution.argmax(-1) == following) & mask
        aux_loss = output.get("aux_loss")
        return FusedCausalLMOutput(log_probs=logps, entropy=entropy, is_top1=top, label_mask=mask, aux_loss=aux_loss)

    plain.forward = forward


def _trls_logps(model: Any, row: list[int]) -> torch.Tensor:
    ids = torch.tensor([row], device=model.device)
    return model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs[0]
