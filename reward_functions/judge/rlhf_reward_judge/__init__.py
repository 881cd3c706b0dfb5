"""Scores by a language model behind an endpoint that speaks OpenAI's API: it reads a rubric and judges each answer.

    rlhf run --method grpo --reward judge:rubric=medical_zh,model=gpt-4o-mini,max_cost=5
    rlhf run --method grpo --reward judge_rank:rubric=./my.yaml,model=qwen,base_url=http://localhost:8000/v1

`judge` scores each answer by itself, `judge_rank` ranks the answers to a prompt in one call (Zheng et al., 2023:
https://arxiv.org/abs/2306.05685, on both). Left out on purpose: judges that use tools; and several judges that vote,
which are several rewards with weights.
"""

from rlhf_core import Reward, hookimpl
from rlhf_reward_judge.judging import SECONDS, Judge, JudgeRank
from rlhf_reward_judge.planning import before_run


@hookimpl
def rlhf_rewards():
    common = {
        "range": (0.0, 1.0),
        "timeout": SECONDS + 60,
        "optional": ("answer",),
        "deterministic": False,
        "before_run": before_run,
        "pairwise": Judge.compare,
        "describe": Judge.describe,
    }
    return [
        Reward(Judge, name="judge", **common),
        Reward(JudgeRank, name="judge_rank", batchwise=True, **common),
    ]
