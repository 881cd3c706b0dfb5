"""Which metrics a chart of the page has. A metric that no chart names is among the others."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rlhf_core.words import say

# Of a single reward these are the same as the metric named.
EACH = {"Each reward": "reward", "Spread of each reward": "reward_std"}
# (title, what it says, patterns of metrics, of training and with `eval_` of evaluations). A chart without a metric is
# left out; a reward's name may be anything.
CHARTS = (
    ("Reward", "mean of the answers in training, and on held-out prompts", (r"reward",)),
    ("Each reward", "mean of each reward", (r"rewards/.+/mean",)),
    ("Spread of rewards", "standard deviation of the reward", (r"reward_std",)),
    ("Spread of each reward", "standard deviation", (r"rewards/.+/std",)),
    ("Accuracy of pairs", "share of pairs whose chosen answer is preferred", (r"rewards/accuracies|accuracy",)),
    ("Margin", "how much more the chosen answer is preferred", (r"rewards/margins|margin", r"log_odds_chosen")),
    ("Rewards of pairs", "implicit rewards of both answers", (r"rewards/(chosen|rejected)",)),
    ("Log-probability of pairs", "of both answers, in nats", (r"logps/(chosen|rejected)",)),
    ("Scores of pairs", "of all answers", (r"(min|mean|max)_reward",)),
    ("Length", "tokens of an answer", (r"completions/(mean|max)_length",)),
    ("Cut at the limit", "share of answers that were cut", (r"completions/clipped_ratio",)),
    ("KL", "divergence from the reference, per token", (r"kl",)),
    ("Entropy", "of the distribution of a token, in nats", (r"entropy|policy/entropy_avg",)),
    ("Loss", "", (r"loss", r"loss/.+", r"nll_loss")),
    ("Accuracy of tokens", "share of tokens that are the likeliest", (r"mean_token_accuracy",)),
    ("Gradient norm", "before clipping", (r"grad_norm",)),
    ("Learning rate", "", (r"learning_rate",)),
    ("Without signal", "share of groups whose answers all score the same", (r"frac_reward_zero_std",)),
    ("Explained variance", "of the returns, by the value head", (r"val/explained_variance",)),
    ("Clipped", "share of tokens whose ratio was clipped", (r"(policy|val)/clipfrac_avg|clip_ratio/region_mean",)),
    ("Ratio", "probability now by probability when sampled", (r"val/ratio|sampling/importance_sampling_ratio/.+",)),
    ("Time of a step", "seconds", (r"time/(sampling|rewards|learning)",)),
    ("Memory", "GB", (r"memory/(peak|free)_gb",)),
    ("Failed rewards", "share of rows", (r"rewards/.+/(error|timeout)_rate",)),
    ("Spent", "dollars so far", (r".+/cost",)),
    ("Calls of an endpoint", "so far: made, and answered from the cache", (r".+/(calls|cached)",)),
    ("Time of a reward", "seconds for a batch", (r"rewards/.+/latency",)),
)
# Of evaluations and of the run as a whole: how long they took, and counts.
NOT_SHOWN = re.compile(r"(eval_)?(runtime|(samples|steps)_per_second|num_tokens|model_preparation_time)|episode")
QUIET = re.compile(r"rewards/.+/(error|timeout)_rate")  # of which only those that are not all 0 are shown


def charts(names: Iterable[str], zero: Iterable[str], lang: str) -> list[dict[str, Any]]:
    """The charts for metrics of these `names`, as JSON. `zero`: those that are 0 throughout."""
    known = [name for name in names if not NOT_SHOWN.fullmatch(name)]
    still, left = set(zero), known
    found = []
    for title, says, patterns in CHARTS:
        taken = [name for pattern in patterns for name in left if re.fullmatch(f"(eval_)?({pattern})", name)]
        taken = list(dict.fromkeys(taken))
        left = [name for name in left if name not in taken]
        taken = [name for name in taken if not (QUIET.fullmatch(name) and name in still)]
        if EACH.get(title) in known and sum(not name.startswith("eval_") for name in taken) == 1:
            continue
        if taken:
            found.append({"title": say(lang, title), "says": say(lang, says) if says else "", "names": taken})
    return [*found, *({"title": name, "says": "", "names": [name], "other": True} for name in sorted(left))]
