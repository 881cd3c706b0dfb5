"""ORPO's loss (Hong, Lee and Thorne, 2024: https://arxiv.org/abs/2403.07691) and its `transformers.Trainer`.

Both answers of a pair go through the model in one pass, and every pair of a step weighs the same, however the step is
divided into forward passes and processes.

Left out on purpose: the loss on the prompt's tokens, which other implementations add and the formula does not have.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import EvalPrediction, Trainer

from rlhf_core.prefix import Group, completion_logps

NEAREST = -1e-7  # float32 knows log-probabilities near 0 no finer; at 0 itself the odds and their slope are infinite
MEASURED = (
    "loss",
    "nll_loss",
    "log_odds_ratio",
    "log_odds",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)


class PairLosses(NamedTuple):
    """Of each pair, all (pairs,). `loss` is `nll` + lambda * `odds_ratio`; `log_odds` is the better answer's less the
    worse one's; `chosen` and `rejected` are mean token log-probabilities.
    """

    loss: Tensor
    nll: Tensor
    odds_ratio: Tensor
    log_odds: Tensor
    chosen: Tensor
    rejected: Tensor


def orpo_loss(
    chosen_logps: Tensor, rejected_logps: Tensor, chosen_mask: Tensor, rejected_mask: Tensor, lam: float
) -> PairLosses:
    """ORPO equations 3 to 7. `*_logps`: (pairs, tokens), log-probabilities in nats; `*_mask`: the same shape, 1 for
    tokens of the answer. The two answers may be padded to different widths.
    """
    chosen, rejected = mean_logp(chosen_logps, chosen_mask), mean_logp(rejected_logps, rejected_mask)
    log_odds = log_odds_of(chosen) - log_odds_of(rejected)
    nll, odds_ratio = -chosen, -logsigmoid(log_odds)
    return PairLosses(nll + lam * odds_ratio, nll, odds_ratio, log_odds, chosen, rejected)


def mean_logp(logps: Tensor, mask: Tensor) -> Tensor:
    """(completions,): the mean over the answer's tokens, equation 3."""
    return (logps * mask).sum(1) / mask.sum(1)


def log_odds_of(logp: Tensor) -> Tensor:
    """log(P / (1 - P)) of `logp` = log P, equation 4, of any shape.

    1 - P is -expm1(log P), which is exact near 0, where 1 - exp(log P) would round to 0. Values above `NEAREST` count
    as it and have no slope here; a softmax so sure has none in float32 either.
    """
    logp = logp.clamp(max=NEAREST)
    return logp - torch.log(-torch.expm1(logp))


class ORPOTrainer(Trainer):
    """Trains on rows of `prompt_ids`, `chosen_ids` and `rejected_ids`."""

    def __init__(self, *, lambda_orpo: float, **arguments) -> None:
        super().__init__(**arguments, data_collator=groups_of, compute_metrics=means_of)
        self.model_accepts_loss_kwargs = False  # so that the loss is divided by the accumulation steps
        self.lambda_orpo = lambda_orpo
        self.kept: list[Tensor] = []  # (pairs, MEASURED) of each forward pass since the last line of metrics

    def pair_losses(self, model, groups: list[Group]) -> PairLosses:
        """The losses of pairs, each a group of the better answer and the worse one, by one pass of `model`."""
        scored = completion_logps(model, groups)
        logps, mask = scored.logps, scored.mask
        return orpo_loss(logps[0::2], logps[1::2], mask[0::2], mask[1::2], self.lambda_orpo)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The forward passes of a step, with its number of pairs in all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        pairs = torch.tensor(float(sum(map(len, batches))), device=device)
        return batches, self.accelerator.reduce(pairs, "sum")

    def compute_loss(self, model, inputs: list[Group], return_outputs=False, num_items_in_batch=None):
        """This pass's part of the mean over the pairs of the step, or without their number, its own mean."""
        losses = self.pair_losses(model, inputs)
        self.kept.append(self.measured(losses))
        if num_items_in_batch is None:
            return losses.loss.mean()
        # The trainer divides by the passes of this step, and averaging gradients over processes by their number.
        return losses.loss.sum() * self.current_gradient_accumulation_steps * self.args.world_size / num_items_in_batch

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Gives what was measured of each pair, so that means are exact however pairs share passes and processes."""
        with torch.no_grad():
            measured = self.measured(self.pair_losses(model, inputs))
        return None, measured, measured  # without labels the trainer would not come to `means_of`

    def measured(self, losses: PairLosses) -> Tensor:
        """(pairs, MEASURED), without gradient."""
        gap = losses.chosen - losses.rejected
        margins = self.lambda_orpo * gap
        columns = (losses.loss, losses.nll, losses.odds_ratio, losses.log_odds, (gap > 0).float(), margins)
        return torch.stack([*columns, losses.chosen, losses.rejected], dim=1).detach()

    def log(self, logs, start_time=None) -> None:
        """Adds to a line of training the means over all pairs, in all processes, since the last one."""
        if "loss" in logs and self.kept:
            kept = torch.cat(self.kept)
            self.kept.clear()
            total = torch.cat([kept.sum(0), kept.new_tensor([len(kept)])])
            *sums, pairs = self.accelerator.reduce(total, "sum").tolist()
            means = dict(zip(MEASURED, (value / pairs for value in sums), strict=True))
            means["log_odds_chosen"] = means.pop("log_odds")
            logs = {**means, **logs}
        super().log(logs, start_time)


def groups_of(rows: list[dict[str, list[int]]]) -> list[Group]:
    """Each pair as a group: the better answer, then the worse one."""
    return [Group(row["prompt_ids"], [row["chosen_ids"], row["rejected_ids"]]) for row in rows]


def means_of(evaluated: EvalPrediction) -> dict[str, float]:
    """The means over all pairs of what `ORPOTrainer.measured` gave."""
    return dict(zip(MEASURED, evaluated.predictions.mean(0).tolist(), strict=True))
