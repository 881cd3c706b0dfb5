"""Odds Ratio Preference Optimization (Hong, Lee and Thorne, 2024): https://arxiv.org/abs/2403.07691

    rlhf run --method orpo
    rlhf run --method orpo --model MODEL --data pairs.jsonl --load-in-4bit

The loss of a pair is that of supervised fine-tuning on the chosen answer, plus a penalty where its odds do not exceed
those of the rejected one. There is no reference model, so a step is one pass of one model.

Left out on purpose: the loss on the prompt's tokens, which other implementations add and the formula does not have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from rlhf_core import Method, TrainingOptions, hookimpl
from rlhf_core.settings import PAIRS

if TYPE_CHECKING:
    from torch import Tensor

    from rlhf_core import PairLogps

NEAREST = -1e-7  # float32 has no finer log-probabilities near 0; at 0 itself the odds and their gradient are infinite


@hookimpl
def rlhf_methods():
    return [ORPO]


class Options(TrainingOptions, defaults={"num_train_epochs": 3.0, "max_prompt_length": 1024}):
    lambda_orpo: Annotated[float, Field(ge=0)] = Field(0.1, description="weight of the odds ratio against fine-tuning")


class ORPO(Method):
    name, data, rewards = "orpo", "preferences", "optional"
    Options, settings = Options, PAIRS
    measures = ("rewards/accuracies", "rewards/margins", "log_odds_chosen")
    full_rate = 8e-6  # the paper
    builtin_preset = {  # noqa: RUF012 - a class constant
        "learning_rate": 3e-4,
        "max_steps": 60,
        "per_device_train_batch_size": 16,
    }

    def trainer(self, run):
        from rlhf_core import PairTrainer

        return PairTrainer.from_run(run, lambda pairs: orpo_loss(pairs, run.options.lambda_orpo))


def orpo_loss(pairs: PairLogps, lambda_orpo: float) -> tuple[Tensor, dict[str, Tensor]]:
    """(losses, metrics), each (pairs,). Equations 3 to 7; `logps/*` are means over an answer's tokens, equation 3."""
    from torch.nn.functional import logsigmoid

    chosen, rejected = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    log_odds = log_odds_of(chosen) - log_odds_of(rejected)
    nll, odds_ratio = -chosen, -logsigmoid(log_odds)
    metrics = {
        "nll_loss": nll,
        "log_odds_ratio": odds_ratio,
        "log_odds_chosen": log_odds,
        "rewards/chosen": lambda_orpo * chosen,
        "rewards/rejected": lambda_orpo * rejected,
        "rewards/accuracies": (chosen > rejected).float(),
        "rewards/margins": lambda_orpo * (chosen - rejected),
        "logps/chosen": chosen,
        "logps/rejected": rejected,
    }
    return nll + lambda_orpo * odds_ratio, metrics


def log_odds_of(logp: Tensor) -> Tensor:
    """log(P / (1 - P)) of `logp` = log P, equation 4, of any shape.

    1 - P is -expm1(log P), which is exact near 0, where 1 - exp(log P) would round to 0. Values above `NEAREST` count
    as it and have no gradient here; in float32 a softmax that close to 1 has none either.
    """
    logp = logp.clamp(max=NEAREST)
    return logp - (-logp.expm1()).log()
