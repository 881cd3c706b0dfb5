"""A reward model from pairs of answers (Bradley and Terry, 1952; Ouyang et al., 2022: https://arxiv.org/abs/2203.02155),
and the reward that scores answers with it.

    rlhf run --method reward_model --model MODEL --data pairs.jsonl
    rlhf run --method ppo --reward-model runs/reward_model-20260101-120000/model --model MODEL --data prompts.jsonl

The loss of a pair is -log sigmoid(score of the chosen answer - score of the rejected one). The score is a linear layer
on the last hidden state of the end token, or of the token before it if the tokenizer pads with its end token.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from rlhf_core import Method, Reward, TrainingOptions, hookimpl
from rlhf_core.settings import PAIRS

if TYPE_CHECKING:
    from torch import Tensor

    from rlhf_core import PairScores


@hookimpl
def rlhf_methods():
    return [RewardModel]


@hookimpl
def rlhf_rewards():
    return [Reward(RewardModelScore, name="reward_model")]


class Options(
    TrainingOptions,
    defaults={
        "learning_rate": 2e-5,
        "num_train_epochs": 3.0,
        "per_device_train_batch_size": 2,
        "max_prompt_length": 1024,
    },
):
    center_rewards_coefficient: Annotated[float, Field(ge=0)] | None = Field(
        None, description="weight of a penalty on the squared sum of a pair's scores, which keeps them around zero"
    )


class RewardModel(Method):
    name, data, rewards = "reward_model", "preferences", "none"
    task, generates = "sequence_classification", False
    Options, settings = Options, PAIRS
    measures = ("accuracy", "margin")
    full_rate = 1e-5  # TRL, whose rate with LoRA is 1e-4
    builtin_preset = {  # noqa: RUF012 - a class constant
        "learning_rate": 2e-3,
        "max_steps": 430,
        "per_device_train_batch_size": 16,
        "max_completion_length": 128,
        "num_eval_prompts": 128,
    }

    def trainer(self, run):
        from rlhf_core import PairTrainer

        center = run.options.center_rewards_coefficient
        return PairTrainer.from_run(run, lambda pairs: reward_loss(pairs, center))


def reward_loss(pairs: PairScores, center: float | None) -> tuple[Tensor, dict[str, Tensor]]:
    """(losses, metrics), each (pairs,). `center` weighs (Eisenstein et al., 2023: https://arxiv.org/abs/2312.09244) the
    squared sum of a pair's scores. `min_reward` and `max_reward` are those of the forward pass.
    """
    from torch import cat
    from torch.nn.functional import logsigmoid

    chosen, rejected = pairs
    losses = -logsigmoid(chosen - rejected)
    if center is not None:
        losses = losses + center * (chosen + rejected) ** 2
    scores = cat([chosen, rejected])
    metrics = {
        "accuracy": (chosen > rejected).float(),
        "margin": chosen - rejected,
        "min_reward": scores.min().expand_as(chosen),
        "mean_reward": (chosen + rejected) / 2,
        "max_reward": scores.max().expand_as(chosen),
    }
    return losses, metrics


def _writable(text: str) -> str:
    """The text without lone surrogates, which data may have and tokenizers refuse."""
    return text.encode("utf-8", "replace").decode()


def _template_kwargs(path: str) -> dict[str, Any]:
    """The variables of the chat template with which the model was trained, if it is a run's."""
    from rlhf_core.commands import find_model, read_config

    run = find_model(path).run
    file = run / "config.yaml" if run else None
    return read_config(file).get("chat_template_kwargs", {}) if file and file.is_file() else {}


class RewardModelScore:
    """The score of a trained reward model for a prompt with its answer: any number, higher is better.

    `path` is the folder of a run or of its model, or a Hub id: with a score head, or an adapter with one. The weights
    load when they are first needed. `trust_remote_code` runs the code that a model brings.
    """

    def __init__(self, *, path: str, batch_size: int = 8, trust_remote_code: bool = False) -> None:
        from rlhf_core import check_scorer

        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: needs a number above 0")
        self.info = check_scorer(path, trust_remote_code=trust_remote_code)
        self.batch_size, self.kwargs = batch_size, _template_kwargs(path)
        for warning in self.info.warnings:
            logging.getLogger("rlhf").warning(warning)
        self.model, self.tokenizer = None, self.info.tokenizer
        self.most = min(self.info.max_tokens or self.tokenizer.model_max_length, self.tokenizer.model_max_length)

    def __call__(self, prompts, completions: list[str], finished=None, **_) -> list[float]:
        import torch

        if self.model is None:
            self._load()
        rows = self.encode(prompts, completions, finished)
        scores: list[float] = []
        with torch.no_grad():
            for start in range(0, len(rows), self.batch_size):
                batch = self.tokenizer.pad({"input_ids": rows[start : start + self.batch_size]}, return_tensors="pt")
                scores += self.model(**batch.to(self.model.device)).logits[:, 0].float().tolist()
        return scores

    def encode(self, prompts, completions: list[str], finished=None) -> list[list[int]]:
        """Token ids of each prompt with its answer and, if it is finished, an end token, as in training; of those too
        many for the model the last.
        """
        from rlhf_core import ChatTemplate, encode_answer

        rows, template = [], ChatTemplate(self.tokenizer, self.kwargs)
        finished = [True] * len(prompts) if finished is None else finished
        for prompt, text, ended in zip(prompts, completions, finished, strict=True):
            turns = [{**message, "content": _writable(message["content"])} for message in prompt]
            reply = [{"role": "assistant", "content": _writable(text)}]
            before, answer, _ = encode_answer(template, turns, reply)
            rows.append((before + (answer if ended else answer[:-1]))[-self.most :])
        return rows

    def _load(self) -> None:
        from rlhf_core import load_scorer

        self.model, self.tokenizer = load_scorer(self.info)
