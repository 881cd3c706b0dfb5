"""Completions that share a prompt: sample them, and compute what a loss needs of them.

    rollouts = rollout(model, prompts, n, sampling)               # n of each prompt
    scored = completion_logps(model, groups, temperature=1.0)     # log-probability and entropy of each token
    states = completion_hidden(model, groups)                     # last hidden states, for value heads and scores

Every trainer of this project that computes its own loss is written against these three and knows nothing else of how
they do it. A model that was given to `share` computes each prompt once, any other each completion in a row of its own,
with its prompt, with the same results.

    groups.py      a prompt with its completions, and what is computed of them
    sharing.py     share(model), and which way completions are computed; self_check.py finds out whether it is right
    packed.py      groups as one row without padding, and the pass over it
    attention.py   one attention implementation: each completion sees its prompt and itself; kernels.py computes it
    two_phase.py   the prompt once, then its completions one by one, where memory is short
    padded.py      each completion in a row of its own: the reference, and the way out
    head.py        log-probabilities and entropies from hidden states, a part of the logits at a time
    rollouts.py    which engine samples
    decoding.py    sampling, with the keys and values of a prompt once for its group (cache.py)
"""

from rlhf_core.prefix.groups import CompletionHidden, CompletionLogps, Group, Rollout, Sampling, stacked
from rlhf_core.prefix.packed import pack_rows, unwrap
from rlhf_core.prefix.rollouts import eos_token_ids, rollout
from rlhf_core.prefix.sharing import completion_hidden, completion_logps, share, shares

__all__ = [
    "CompletionHidden",
    "CompletionLogps",
    "Group",
    "Rollout",
    "Sampling",
    "completion_hidden",
    "completion_logps",
    "eos_token_ids",
    "pack_rows",
    "rollout",
    "share",
    "shares",
    "stacked",
    "unwrap",
]
