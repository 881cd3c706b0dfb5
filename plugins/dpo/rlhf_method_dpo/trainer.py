"""The place where DPO touches what TRL keeps private, with tests that fail when it moves."""

from __future__ import annotations

import functools

import torch
from trl import DPOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from rlhf_core.prefix import Group, completion_logps, shares, unwrap

# Metrics that TRL takes from logits; with shared prompts the logits are never there as a whole.
NOT_MEASURED = ("logits/chosen", "logits/rejected", "mean_token_accuracy")


class SharedPrefixDPOTrainer(DPOTrainer):
    """TRL's trainer with two changes.

    Its data is tokenized already: its own tokenization would learn what follows the end token. And both answers of a
    pair are computed behind one prompt, where the model can share it.
    """

    def __init__(self, **arguments) -> None:
        super().__init__(**arguments)
        for model in (self.model, self.ref_model):
            if model is not None:
                share_pairs(unwrap(self.accelerator.unwrap_model(model)))

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset

    def _compute_loss(self, model, inputs, return_outputs):
        result = super()._compute_loss(model, inputs, return_outputs)
        for name in NOT_MEASURED:
            self._metrics["train" if self.model.training else "eval"].pop(name, None)
        return result


def share_pairs(model) -> None:
    """Where TRL asks the model for log-probabilities by its fused head, compute each pair behind one prompt."""
    fused = model.forward

    @functools.wraps(fused)
    def forward(*args, fused_lm_head=False, labels=None, **inputs):
        if not fused_lm_head:
            return fused(*args, labels=labels, **inputs)
        groups = pairs_of(inputs["input_ids"], inputs["attention_mask"], labels != -100)
        if not shares(model, groups) or inputs.get("output_router_logits"):
            return fused(*args, fused_lm_head=True, labels=labels, **inputs)
        scored = completion_logps(model, groups)
        half = len(groups)
        rows = torch.tensor([row for i in range(half) for row in (i, half + i)], device=labels.device)
        there = scored.mask.bool()
        learned = (labels[:, 1:] != -100)[rows]
        logps, entropies = (
            torch.zeros(learned.shape, device=labels.device).masked_scatter(learned, values[there])[rows.argsort()]
            for values in (scored.logps, scored.entropies)
        )
        nothing = torch.zeros_like(entropies)
        return FusedCausalLMOutput(
            log_probs=logps,
            entropy=entropies,
            mean_logits=nothing,
            is_top1=nothing.bool(),
            label_mask=labels[:, 1:] != -100,
        )

    model.forward = forward


def pairs_of(input_ids, attention_mask, completion_mask) -> list[Group]:
    """Groups of a better and a worse answer from TRL's batch (2 × pairs, tokens): the better ones, then the worse."""
    half = len(input_ids) // 2
    there, learned = attention_mask.bool(), completion_mask.bool()
    groups = []
    for i in range(half):
        prompt = input_ids[i][there[i] & ~learned[i]].tolist()
        groups.append(Group(prompt, [input_ids[row][learned[row]].tolist() for row in (i, half + i)]))
    return groups
