"""The correction of a loss for answers that another engine sampled than the one that trains.

vLLM computes the same weights in half precision with other kernels, so that it samples from another policy than the one
that trains: the behavior policy μ. The policy gradient of its answers is that of the trained model's probabilities at
the time, π_old, once each term is weighed by π_old(token) / μ(token), bounded so that a few tokens can't decide a step.
That a loss clips around π_old and is weighed against μ is the decoupled objective of Hilton et al., 2021:
https://arxiv.org/abs/2110.00641.

Truncated by token: Yao et al., 2025, https://fengyao.notion.site/off-policy-rl. Masked by sequence: Liu et al., 2025,
https://yingru.notion.site/When-Speed-Kills-Stability-Demystifying-RL-Collapse-from-the-Training-Inference-Mismatch-271211a558b7808d8b12d403fd15edda
The arithmetic is that of TRL 1.16, `GRPOTrainer._generate_and_score_completions`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

DIFFERENCE, RATIO = "sampling/sampling_logp_difference", "sampling/importance_sampling_ratio"  # TRL's names


def importance_weights(logps: Tensor, sampled: Tensor, mask: Tensor, arguments: Any) -> Tensor:
    """What each token's loss is multiplied by: (completions, tokens), or (completions, 1) in the `sequence_*` modes.

    `logps`: of the trained model as it was when it sampled; `sampled`: vLLM's, NaN where it told none, which counts as
    equal; `mask`: 1 for tokens of completions; all (completions, tokens). `arguments`: `VLLMArguments`. The ratio is of
    each token, or of the whole completion; outside of the bounds it is clamped to them (`*_truncate`), or 0 (`*_mask`).
    """
    mode = arguments.vllm_importance_sampling_mode
    low, high = arguments.vllm_importance_sampling_clip_min, arguments.vllm_importance_sampling_clip_max
    difference = ((logps - sampled) * mask).nan_to_num(nan=0.0)
    level, _, bound = mode.partition("_")
    ratio = (difference.sum(1, keepdim=True) if level == "sequence" else difference).exp()
    if bound == "truncate":
        return ratio.clamp(low, high)
    outside = (ratio < (float("-inf") if low is None else low)) | (ratio > (float("inf") if high is None else high))
    return ratio.masked_fill(outside, 0.0)


def mismatch(logps: Tensor, sampled: Tensor, mask: Tensor, weights: Tensor, accelerator: Any) -> dict[str, Tensor]:
    """How far vLLM's probabilities are from those of training, in all processes, under TRL's names, by which
    `rlhf diagnose` reads them. The weights are those of the loss, after their bounds.
    """
    of_tokens = mask.bool()
    apart = (logps - sampled).abs()[of_tokens]
    apart = apart[~apart.isnan()]
    apart = apart if len(apart) else apart.new_zeros(1)
    ratios = weights.flatten() if weights.shape[1] != mask.shape[1] else weights[of_tokens]
    everywhere = accelerator.gather
    return {
        f"{DIFFERENCE}/mean": everywhere(apart.mean()).mean(),
        f"{DIFFERENCE}/max": everywhere(apart.max()).max(),
        f"{RATIO}/min": everywhere(ratios.min()).min(),
        f"{RATIO}/mean": everywhere(ratios.mean()).mean(),
        f"{RATIO}/max": everywhere(ratios.max()).max(),
    }
