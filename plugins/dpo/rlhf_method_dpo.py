"""Direct Preference Optimization (Rafailov et al., 2023): https://arxiv.org/abs/2305.18290

    rlhf run --method dpo
    rlhf run --method dpo --model MODEL --data pairs.jsonl --load-in-4bit

The loss of a pair is -log sigmoid(beta * margin), where the margin is how much more the policy prefers the chosen
answer to the rejected one than the reference model does. `--loss-type` has three others: ipo (Azar et al., 2023:
https://arxiv.org/abs/2310.12036), hinge (SLiC, Zhao et al., 2023: https://arxiv.org/abs/2305.10425) and robust
(Chowdhury et al., 2024: https://arxiv.org/abs/2403.00409). `--label-smoothing` alone gives conservative DPO (Mitchell,
2023: https://ericmitchell.ai/cdpo.pdf), `--sft-weight` RPO (Pang et al., 2024: https://arxiv.org/abs/2404.19733).

Left out on purpose: other divergences than the KL divergence, and references that change during training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AliasChoices, Field, model_validator

from rlhf_core import Method, TrainingOptions, hookimpl
from rlhf_core.settings import PAIRS

if TYPE_CHECKING:
    from torch import Tensor

    from rlhf_core import PairLogps


@hookimpl
def rlhf_methods():
    return [DPO]


class Options(TrainingOptions, defaults={"learning_rate": 5e-6, "num_train_epochs": 3.0, "max_prompt_length": 1024}):
    beta: Annotated[float, Field(gt=0)] = Field(0.1, description="how closely the policy is held to the reference")
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust"] = Field("sigmoid", description="loss of a pair")
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="share of pairs taken as mislabelled, for the losses sigmoid and robust"
    )
    sft_weight: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="weight of supervised fine-tuning on the chosen answer, added to the loss",
        validation_alias=AliasChoices("sft_weight", "rpo_alpha"),
    )

    @model_validator(mode="after")
    def _smoothing_acts(self) -> Options:
        if self.label_smoothing and self.loss_type not in ("sigmoid", "robust"):
            raise ValueError(f"label_smoothing is for the losses sigmoid and robust, not for {self.loss_type}")
        return self


class DPO(Method):
    name, data, rewards = "dpo", "preferences", "optional"
    Options, settings = Options, PAIRS
    measures = ("rewards/accuracies", "rewards/margins")
    full_rate = 5e-7  # TRL and the alignment handbook, whose rate with LoRA is 5e-6
    builtin_preset = {  # noqa: RUF012 - a class constant
        "learning_rate": 2e-4,
        "max_steps": 60,
        "per_device_train_batch_size": 16,
    }

    def trainer(self, run):
        from rlhf_core import PairTrainer

        o = run.options
        loss = lambda pairs: dpo_loss(pairs, o.beta, o.loss_type, o.label_smoothing, o.sft_weight)  # noqa: E731
        return PairTrainer.from_run(run, loss, reference=True)


def dpo_loss(
    pairs: PairLogps, beta: float, loss_type: str = "sigmoid", label_smoothing: float = 0.0, sft_weight: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """(losses, metrics), each (pairs,). Rewards are `beta` times the log-ratios of policy and reference.

    IPO takes log-ratios per token, as its authors confirmed to TRL. The fine-tuning term is the mean over the chosen
    answer's tokens, so that each pair has the same weight.
    """
    from torch.nn.functional import logsigmoid

    chosen, rejected = pairs.chosen - pairs.ref_chosen, pairs.rejected - pairs.ref_rejected
    margins, eps = beta * (chosen - rejected), label_smoothing
    if loss_type == "ipo":
        losses = (chosen / pairs.chosen_tokens - rejected / pairs.rejected_tokens - 1 / (2 * beta)) ** 2
    elif loss_type == "hinge":
        losses = (1 - margins).relu()
    elif loss_type == "robust":
        losses = ((1 - eps) * -logsigmoid(margins) + eps * logsigmoid(-margins)) / (1 - 2 * eps)
    else:
        losses = (1 - eps) * -logsigmoid(margins) - eps * logsigmoid(-margins)
    metrics = {
        "rewards/chosen": beta * chosen,
        "rewards/rejected": beta * rejected,
        "rewards/accuracies": (margins > 0).float(),
        "rewards/margins": margins,
        "logps/chosen": pairs.chosen,
        "logps/rejected": pairs.rejected,
    }
    if sft_weight:
        metrics["nll_loss"] = -pairs.chosen / pairs.chosen_tokens
        losses = losses + sft_weight * metrics["nll_loss"]
    return losses, metrics
