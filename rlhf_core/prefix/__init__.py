"""Completions that share a prompt: sample them, and compute what a loss needs of them.

    rollouts = rollout(model, prompts, n, sampling)               # n of each prompt
    scored = completion_logps(model, groups, temperature=1.0)     # log-probability and entropy of each token
    states = completion_hidden(model, groups)                     # last hidden states, for value heads and scores

Every trainer of this project that computes its own loss is written against these three and knows nothing else of how
they do it. A model that was given to `share` computes each prompt once, any other each completion in a row of its own,
with its prompt, with the same results.
"""

from rlhf_core.prefix.groups import CompletionHidden, CompletionLogps, Group, Rollout, Sampling, on_device, stacked
from rlhf_core.prefix.packed import evaluating, hidden_size, pack_rows, unwrap
from rlhf_core.prefix.rollouts import eos_token_ids, own_generation_config, rollout
from rlhf_core.prefix.sharing import completion_hidden, completion_logps, gives_logps, share, shares

__all__ = [
    "CompletionHidden",
    "CompletionLogps",
    "Group",
    "Rollout",
    "Sampling",
    "completion_hidden",
    "completion_logps",
    "eos_token_ids",
    "evaluating",
    "gives_logps",
    "hidden_size",
    "on_device",
    "own_generation_config",
    "pack_rows",
    "rollout",
    "share",
    "shares",
    "stacked",
    "unwrap",
]
