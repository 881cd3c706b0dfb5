"""The places where GRPO touches what TRL keeps private, each with its reason and a test that fails when it moves."""

from __future__ import annotations

import torch
from trl import GRPOTrainer


class ResumableGRPOTrainer(GRPOTrainer):
    """TRL's trainer, whose prompt order after `--resume` is that of the run that was never stopped.

    TRL shuffles each epoch with one generator, made anew at every start: a run resumed in its second epoch would see
    the first one's order again. `epochs_done` orders are drawn and thrown away first.
    """

    epochs_done = 0

    def _get_train_sampler(self, dataset=None):
        sampler = super()._get_train_sampler(dataset)
        if sampler.shuffle:
            for _ in range(self.epochs_done):
                torch.randperm(sampler.num_samples, generator=sampler.generator)
        return sampler
