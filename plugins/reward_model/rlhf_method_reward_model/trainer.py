"""The place where the reward model's training touches what TRL keeps private, with a test that fails when it moves."""

from __future__ import annotations

import functools

import torch
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from trl import RewardTrainer

from rlhf_core.prefix import Group, completion_hidden, shares, unwrap


class SharedPrefixRewardTrainer(RewardTrainer):
    """TRL's trainer; both rows of a pair are computed behind what they have in common, where the model can share it."""

    def __init__(self, **arguments) -> None:
        super().__init__(**arguments)
        share_pairs(unwrap(self.accelerator.unwrap_model(self.model)))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, {**inputs, "in_pairs": True}, return_outputs, num_items_in_batch)


def share_pairs(model) -> None:
    """With `in_pairs`, let the model score TRL's batches, (2 × pairs, tokens), better rows and then worse, by pairs."""
    plain = model.forward

    @functools.wraps(plain)
    def forward(input_ids=None, attention_mask=None, in_pairs=False, **inputs):
        groups = pairs_of(input_ids, attention_mask) if in_pairs else []
        if not groups or not shares(model, groups):
            return plain(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        states = completion_hidden(model, groups).states
        half = len(groups)
        rows = torch.tensor([row for i in range(half) for row in (i, half + i)], device=states.device)
        prompts = torch.tensor([len(group.prompt) for group in groups for _ in range(2)], device=states.device)
        # Where transformers reads the score: at the last token that is not the padding token.
        places = torch.arange(input_ids.shape[1], device=states.device)
        last = ((input_ids != model.config.pad_token_id) * places).argmax(dim=1)[rows]
        chosen = states[torch.arange(2 * half, device=states.device), last - prompts + 1]
        return SequenceClassifierOutputWithPast(logits=model.score(chosen)[rows.argsort()])

    model.forward = forward


def pairs_of(input_ids, attention_mask) -> list[Group]:
    """Each pair of rows as a group: what both begin with, up to two tokens before the end, and how they go on.

    No groups at all if the rows of a pair begin differently.
    """
    half = len(input_ids) // 2
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
    groups = []
    for better, worse in zip(rows[:half], rows[half:], strict=True):
        alike = 0
        while alike < min(len(better), len(worse)) - 2 and better[alike] == worse[alike]:
            alike += 1
        if alike == 0:
            return []
        groups.append(Group(better[:alike], [better[alike:], worse[alike:]]))
    return groups
