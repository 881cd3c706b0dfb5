"""Simple Preference Optimization (Meng, Xia and Chen, 2024): https://arxiv.org/abs/2405.14734

    rlhf run --method simpo
    rlhf run --method simpo --model MODEL --data pairs.jsonl --gamma 0.5

An answer's reward is the mean log-probability of its tokens, which is what sampling goes by, so there is no reference
model; the chosen answer of a pair is to earn more than the rejected one by a margin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from rlhf_core import Method, TrainingOptions, hookimpl
from rlhf_core.settings import PAIRS

if TYPE_CHECKING:
    from torch import Tensor

    from rlhf_core import PairLogps


@hookimpl
def rlhf_methods():
    return [SimPO]


class Options(TrainingOptions, defaults={"learning_rate": 1e-6, "lr_scheduler_type": "cosine", "warmup_steps": 0.1}):
    beta: Annotated[float, Field(gt=0)] = Field(2.0, description="scale of the rewards")
    gamma: Annotated[float, Field(ge=0)] = Field(1.0, description="margin by which the chosen answer is to win")


class SimPO(Method):
    name, data, rewards = "simpo", "preferences", "optional"
    Options, settings = Options, PAIRS
    builtin_preset = {  # noqa: RUF012 - a class constant
        "learning_rate": 3e-4,
        "max_steps": 30,
        "per_device_train_batch_size": 16,
    }

    def trainer(self, run):
        """Build the trainer. torch is imported here and in the loss, so that listings stay quick."""
        from rlhf_core import PairTrainer

        return PairTrainer.from_run(run, lambda pairs: simpo_loss(pairs, run.options.beta, run.options.gamma))


def simpo_loss(pairs: PairLogps, beta: float, gamma: float) -> tuple[Tensor, dict[str, Tensor]]:
    """(losses, metrics), each (pairs,): equation 6. Log-probabilities are means over an answer's tokens."""
    from torch.nn.functional import logsigmoid

    chosen, rejected = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    margins = beta * (chosen - rejected)
    metrics = {
        "rewards/chosen": beta * chosen,
        "rewards/rejected": beta * rejected,
        "rewards/accuracies": (margins > 0).float(),
        "rewards/margins": margins,
        "logps/chosen": chosen,
        "logps/rejected": rejected,
    }
    return -logsigmoid(margins - gamma), metrics
