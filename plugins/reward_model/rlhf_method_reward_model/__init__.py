"""A reward model from pairs of answers (Bradley and Terry, 1952; Ouyang et al., 2022: https://arxiv.org/abs/2203.02155),
and the reward that scores answers with it.

    rlhf run --method reward_model --model MODEL --data pairs.jsonl
    rlhf run --method ppo --reward-model runs/reward_model-20260101-120000/model --model MODEL --data prompts.jsonl

The loss of a pair is -log sigmoid(score of the better answer - score of the worse one). The score is a linear layer on
the last hidden state of the end token; where the tokenizer pads with its end token, of the token before it. The trainer
is TRL's, given token ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from rlhf_core import Method, Reward, TrainingOptions, hookimpl


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
    name, data, rewards, config = "reward_model", "preferences", "none", "trl:RewardConfig"
    task, generates = "sequence_classification", False
    Options = Options
    builtin_preset = {  # noqa: RUF012 - a class constant
        "learning_rate": 2e-3,
        "max_steps": 430,
        "per_device_train_batch_size": 16,
        "max_completion_length": 128,
        "num_eval_prompts": 128,
    }

    def trainer(self, run):
        from trl import RewardConfig

        from rlhf_method_reward_model.trainer import SharedPrefixRewardTrainer

        trainer = SharedPrefixRewardTrainer(
            model=run.model,
            args=run.arguments(
                RewardConfig, center_rewards_coefficient=run.options.center_rewards_coefficient, max_length=None
            ),
            train_dataset=_joined(run.train_dataset, run),
            eval_dataset=run.eval_dataset and _joined(run.eval_dataset, run),
            processing_class=run.tokenizer,
            peft_config=run.peft_config,
        )
        # With quantized weights TRL rounds what is trained to bfloat16, and a head in it takes no float32 states.
        for parameter in trainer.model.parameters():
            if parameter.requires_grad and (run.options.load_in_4bit or run.options.load_in_8bit):
                parameter.data = parameter.data.float()
        return trainer


def _joined(rows, run):
    """`chosen_ids` and `rejected_ids` with their prompt before them."""
    from rlhf_core.data import encoding

    encoded = encoding.pairs(rows, run.tokenizer, run.options.max_completion_length)
    return encoded.map(
        lambda row: {key: row["prompt_ids"] + row[key] for key in ("chosen_ids", "rejected_ids")},
        remove_columns=["prompt_ids"],
    )


def _writable(text: str) -> str:
    """Tokenizers take no lone surrogates, which data may have."""
    return text.encode("utf-8", "replace").decode()


class RewardModelScore:
    """The score that a trained reward model gives to a prompt with its answer: any number, higher is better.

    `path` is its folder: a model with a score head, or an adapter with one. It is loaded when first needed.
    """

    def __init__(self, *, path: str, batch_size: int = 8) -> None:
        folder = Path(path).expanduser()
        if not ((folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()):
            raise ValueError(f"path={path}: no model is there (a folder with config.json or adapter_config.json)")
        self.folder, self.batch_size = folder, batch_size
        self.model = self.tokenizer = None

    def __call__(self, prompts, completions: list[str], **_) -> list[float]:
        import torch

        if self.model is None:
            self._load()
        rows = self.encode(prompts, completions)
        scores: list[float] = []
        with torch.no_grad():
            for start in range(0, len(rows), self.batch_size):
                batch = self.tokenizer.pad({"input_ids": rows[start : start + self.batch_size]}, return_tensors="pt")
                scores += self.model(**batch.to(self.model.device)).logits[:, 0].float().tolist()
        return scores

    def encode(self, prompts, completions: list[str]) -> list[list[int]]:
        """Token ids of each prompt with its answer and an end token, as in training; the last, where not all fit."""
        from rlhf_core.data import encoding

        rows = []
        for prompt, text in zip(prompts, completions, strict=True):
            turns = [{**message, "content": _writable(message["content"])} for message in prompt]
            reply = [{"role": "assistant", "content": _writable(text)}]
            before, answer = encoding.answered(self.tokenizer, turns, reply)
            rows.append((before + answer)[-self.tokenizer.model_max_length :])
        return rows

    def _load(self) -> None:
        from rlhf_core.models import loading as models

        self.model, self.tokenizer = models.load_scorer(str(self.folder))
