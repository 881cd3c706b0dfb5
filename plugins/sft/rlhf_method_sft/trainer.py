"""Batches in one row without padding: the only override of TRL in SFT, with tests that fail when TRL changes."""

from __future__ import annotations

from typing import Any

import torch
from trl import SFTTrainer

from rlhf_core import IGNORED
from rlhf_core.prefix import pack_rows


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
