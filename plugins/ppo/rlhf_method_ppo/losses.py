"""The arithmetic of PPO, as pure functions of tensors shaped (completions, tokens). `mask` is 1 for completion tokens.

Schulman et al., 2016 (GAE): https://arxiv.org/abs/1506.02438; Schulman et al., 2017 (PPO):
https://arxiv.org/abs/1707.06347; Ziegler et al., 2019 (KL penalty and its controller): https://arxiv.org/abs/1909.08593
"""

from __future__ import annotations

import torch
from torch import Tensor


def kl_penalty(logps: Tensor, ref_logps: Tensor, estimator: str = "k1") -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens the policy sampled, in nats.

    `k1` is the log-ratio, unbiased; `k3` is never negative and varies less: http://joschu.net/blog/kl-approx.html
    """
    log_ratio = logps - ref_logps
    return log_ratio if estimator == "k1" else torch.expm1(-log_ratio) + log_ratio


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Minus `kl_coef` times each token's KL, and at a completion's last token its score. `scores`: (completions,)."""
    rewards = -kl_coef * kl * mask
    last = mask.sum(1).long() - 1
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """(advantages, returns), GAE equations 11 to 16. Beyond the last token of a completion the value is 0."""
    values, rewards = values * mask, rewards * mask
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        after = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(following)
        delta = rewards[:, t] + gamma * after - values[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        advantages[:, t] = following
    return advantages, advantages + values


def whiten(values: Tensor, mask: Tensor, mean: Tensor, variance: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Scaled to unit variance, and to mean 0 with `shift_mean`, with moments that the caller computed over all
    processes.
    """
    scaled = (values - mean) * torch.rsqrt(variance + 1e-8)
    return (scaled if shift_mean else scaled + mean) * mask


def policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, cliprange: float, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(loss, 1 where the clipped term is the larger) of each token: PPO equation 7, negated.

    `weights`, where another policy sampled the tokens than that of `old_logps`: each loss is multiplied by its own, the
    decoupled objective (Hilton et al., 2021, equation 3: https://arxiv.org/abs/2110.00641).
    """
    ratio = torch.exp(logps - old_logps)
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    loss = torch.maximum(plain, clipped)
    return loss if weights is None else loss * weights, (clipped > plain).float()


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, cliprange: float) -> tuple[Tensor, Tensor]:
    """(loss, 1 where the clipped term is the larger) of each token: half the squared error, clipped around the old
    value.
    """
    near = old_values + (values - old_values).clamp(-cliprange, cliprange)
    plain, clipped = (values - returns) ** 2, (near - returns) ** 2
    return 0.5 * torch.maximum(plain, clipped), (clipped > plain).float()


def adapted_kl_coef(kl_coef: float, kl: float, target: float, completions: int, horizon: int) -> float:
    """The next KL coefficient: up where the KL of a completion is above `target`, down below (Ziegler, section 2.2)."""
    error = min(0.2, max(-0.2, kl / target - 1))
    return kl_coef * (1 + error * completions / horizon)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 if the values predict the returns exactly, 0 if they do no better than the mean of the returns."""
    chosen = mask.bool()
    if chosen.sum() < 2:
        return torch.zeros(0)
    return 1 - (returns - values)[chosen].var() / returns[chosen].var().clamp(min=1e-8)
