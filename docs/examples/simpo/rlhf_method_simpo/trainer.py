"""SimPO's loss (Meng, Xia and Chen, 2024: https://arxiv.org/abs/2405.14734) and its `transformers.Trainer`.

Left out on purpose: exact weights of pairs where a step's last forward pass is smaller than the others. There each
pass, not each pair, weighs the same.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import EvalPrediction, Trainer

from rlhf_core.prefix import Group, completion_logps

MEASURED = ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")


def simpo_loss(chosen: Tensor, rejected: Tensor, beta: float, gamma: float) -> Tensor:
    """(pairs,), equation 6. `chosen` and `rejected`: (pairs,), mean log-probabilities of the answers' tokens."""
    return -logsigmoid(beta * chosen - beta * rejected - gamma)


class SimPOTrainer(Trainer):
    """Trains on rows of `prompt_ids`, `chosen_ids` and `rejected_ids`."""

    def __init__(self, *, beta: float, gamma: float, **arguments) -> None:
        super().__init__(**arguments, data_collator=groups_of, compute_metrics=means_of)
        self.model_accepts_loss_kwargs = False  # so that the loss is divided by the accumulation steps
        self.beta, self.gamma = beta, gamma
        self.kept: list[Tensor] = []  # (pairs, MEASURED) of each forward pass since the last line of metrics

    def measured(self, model, groups: list[Group]) -> Tensor:
        """(pairs, MEASURED) by one pass of `model`; the loss, in the first column, is differentiable."""
        scored = completion_logps(model, groups)
        means = (scored.logps * scored.mask).sum(1) / scored.mask.sum(1)
        chosen, rejected = means[0::2], means[1::2]
        gap = (chosen - rejected).detach()
        loss = simpo_loss(chosen, rejected, self.beta, self.gamma)
        return torch.stack([loss, (gap > 0).float(), self.beta * gap, chosen.detach(), rejected.detach()], dim=1)

    def compute_loss(self, model, inputs: list[Group], return_outputs=False, num_items_in_batch=None):
        measured = self.measured(model, inputs)
        self.kept.append(measured.detach())
        return measured[:, 0].mean()

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Gives what was measured of each held-out pair as the prediction."""
        with torch.no_grad():
            measured = self.measured(model, inputs)
        return None, measured, measured  # without labels the trainer would not come to `means_of`

    def log(self, logs, start_time=None) -> None:
        """Adds to a line of training the means over its pairs, in all processes."""
        if "loss" in logs and self.kept:
            means = self.accelerator.reduce(torch.cat(self.kept).mean(0), "mean")
            self.kept.clear()
            logs = {**dict(zip(MEASURED, means.tolist(), strict=True)), **logs}
        super().log(logs, start_time)


def groups_of(rows: list[dict[str, list[int]]]) -> list[Group]:
    """Each pair as a group: the better answer, then the worse one. The prompt is computed once for both."""
    return [Group(row["prompt_ids"], [row["chosen_ids"], row["rejected_ids"]]) for row in rows]


def means_of(evaluated: EvalPrediction) -> dict[str, float]:
    """The means over all held-out pairs."""
    return dict(zip(MEASURED, evaluated.predictions.mean(0).tolist(), strict=True))
