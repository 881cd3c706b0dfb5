"""Completions that share a prompt: sample them, and compute what a loss needs of them.

    rollouts = rollout(model, prompts, n, sampling)               # n of each prompt
    scored = completion_logps(model, groups, temperature=1.0)     # log-probability and entropy of each token
    states = completion_hidden(model, groups)                     # last hidden states, for value heads and scores

Every trainer of this project that computes its own loss is written against these three and knows nothing else of how
they do it. `padded.py` is the plain computation: each completion stands in a row of its own, with its prompt.
"""

from rlhf_core.prefix.groups import Group, stacked
from rlhf_core.prefix.padded import CompletionHidden, CompletionLogps, completion_hidden, completion_logps
from rlhf_core.prefix.rollouts import Rollout, Sampling, end_tokens, rollout

__all__ = [
    "CompletionHidden",
    "CompletionLogps",
    "Group",
    "Rollout",
    "Sampling",
    "completion_hidden",
    "completion_logps",
    "end_tokens",
    "rollout",
    "stacked",
]
