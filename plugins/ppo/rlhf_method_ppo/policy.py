"""The model that PPO trains: a policy and its value head in one module, saved to one folder."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor, nn

from rlhf_core import switch_off_dropout
from rlhf_core.prefix import Group, completion_hidden, completion_logps, hidden_size

VALUE_HEAD, VALUE_MODEL = "value_head.safetensors", "value_model"


class PolicyWithValue(nn.Module):
    """The policy and its value head: a linear layer, zero at first, on the policy's last hidden states or on those of a
    trained copy of the policy. Dropout is off: the probabilities of an answer are those that it was sampled at.
    """

    def __init__(self, policy, *, separate: bool) -> None:
        super().__init__()
        switch_off_dropout(policy, adapters=True)
        self.policy = policy
        self.value_head = nn.Linear(hidden_size(policy), 1, dtype=torch.float32, device=policy.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.value_model = copy.deepcopy(policy) if separate else None

    def forward(self, groups: list[Group], temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """(log-probabilities, entropies, values), each (completions, tokens); the value is of the state before the
        token.
        """
        scored = completion_logps(self.policy, groups, temperature=temperature, hidden=self.value_model is None)
        states = scored.hidden if self.value_model is None else completion_hidden(self.value_model, groups).states
        with torch.autocast(states.device.type, enabled=False):  # which would round values to half precision
            values = self.value_head(states[:, :-1].to(self.value_head.weight.dtype))[..., 0]
        return scored.logps, scored.entropies, values

    def save(self, folder: Path) -> None:
        """Save the policy as any model or adapter, with the value head and the value model beside it."""
        adapters = {"selected_adapters": ["default"]} if isinstance(self.policy, PeftModel) else {}
        self.policy.save_pretrained(folder, **adapters)
        save_file(self.value_head.state_dict(), folder / VALUE_HEAD)
        if self.value_model is not None:
            self.value_model.save_pretrained(folder / VALUE_MODEL, **adapters)

    def load(self, folder: Path) -> None:
        """Load what `save` wrote, in place."""
        _load(self.policy, folder)
        self.value_head.load_state_dict(load_file(folder / VALUE_HEAD))
        if self.value_model is not None:
            _load(self.value_model, folder / VALUE_MODEL)


def _load(model, folder: Path) -> None:
    """Load the weights of a saved model or adapter into `model`, in place."""
    if isinstance(model, PeftModel):
        model.load_adapter(str(folder), "default", is_trainable=True)
    else:
        load_model(model, folder / "model.safetensors", strict=False)  # tied weights are saved once
