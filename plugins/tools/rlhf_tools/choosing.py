"""The guide's table as code: which method for which data, and why. `rlhf recommend` uses it.

docs/guide/choosing.md has the same table in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlhf_core.commands import ESTIMATED_REWARD
from rlhf_tools.looking import Findings

STAGES = ("sft", "reward_model", "ppo")  # of the classic way, rlhf pipeline ppo
IN_4_BITS = {"load_in_4bit": True}

WHY = {
    ("dpo", "pairs"): "DPO learns from pairs directly: no reward model, no sampling of answers, and it is stable. Its "
    "reference is the model as it was, which with LoRA needs no memory of its own.",
    ("dpo", "scored"): "DPO learns from the pairs themselves, without the reward and without sampling.",
    ("orpo", "pairs"): "ORPO learns from pairs without a reference model, and from the better answers as fine-tuning "
    "does, in one run: less time than DPO, in full training less memory, too, and it may start from a base model.",
    ("ppo", "pairs"): "PPO is the classic way: fine-tune on the better answers, train a reward model on the pairs, "
    "then raise its score of sampled answers. Three runs, and the most models in memory and settings to get right.",
    ("ppo", "reward"): "PPO, the classic way, raises the reward of sampled answers with a value model beside the "
    "policy: in full training another model in memory, and more settings than GRPO.",
    ("ppo", "reward_model"): "PPO is made for a trained reward model: it raises the model's score of sampled answers, "
    "with a value model that says which token earned it.",
    ("grpo", "checkable"): "GRPO samples several answers to each prompt and learns from those that the reward scores "
    "higher than the others: where an answer can be checked, nobody has to write or compare answers. It has no "
    "value model, as PPO has.",
    ("grpo", "pairs"): "GRPO uses the prompts of the pairs alone and learns from the reward's scores of sampled "
    "answers. It has no value model, as PPO has.",
    ("grpo", "conversations"): "GRPO samples several answers to each question and raises the reward. It can go beyond "
    "the answers in the data, as far as the reward judges well; best after SFT.",
    ("grpo", "prompts"): "Without answers to learn from, only a reward can teach: GRPO samples several answers to "
    "each prompt and learns from those that the reward scores higher. It has no value model, as PPO has.",
    ("sft", "checkable"): "SFT learns the answers of the data as they are: one forward and backward pass, no sampling, "
    "no reward, the fewest settings. It imitates, also how the answers are written.",
    ("sft", "conversations"): "SFT learns to answer as the data does, and is the first stage of every other method: "
    "the least time and the fewest settings.",
}
IN_4BIT = "The same with weights in 4 bits (QLoRA): a third of their memory, a little slower and less exact."
NOT_4BIT = "The same without 4 bits: three times the memory for the weights, which are exact then."
IN_FULL = "The same with all weights trained instead of an adapter, as small models are anyway: for much data."


@dataclass(frozen=True)
class Choice:
    """A method with the values of its options, by name, beside model and data. `notes` are what else is to be known."""

    method: str
    values: dict[str, Any] = field(default_factory=dict)
    why: str = ""
    notes: tuple[str, ...] = ()
    pipeline: bool = False

    @property
    def title(self) -> str:
        more = {"load_in_4bit": "in 4 bits", "lora": "of all weights"}
        return " ".join([self.method.upper(), *(text for name, text in more.items() if name in self.values)])

    @property
    def stages(self) -> list[Choice]:
        """Its runs, one after the other."""
        if not self.pipeline:
            return [self]
        flags = {name: value for name, value in self.values.items() if isinstance(value, bool)}
        first = [Choice(name, flags) for name in STAGES[:-1]]
        return [*first, Choice(STAGES[-1], {"reward": [ESTIMATED_REWARD], **self.values})]

    def having(self, values: Mapping[str, Any]) -> Choice:
        """With these options, too."""
        return replace(self, values={**self.values, **values})

    def command(self, model: str, data: Sequence[str]) -> list[str]:
        words = ["rlhf", "pipeline", self.method] if self.pipeline else ["rlhf", "run", "--method", self.method]
        words += ["--model", model] if model != "builtin" else []
        words += [word for spec in data if spec != "builtin" for word in ("--data", spec)]
        return words + (_stage_flags(self.stages) if self.pipeline else _flags(self.values))


def _flags(values: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            for one in value if isinstance(value, list) else [value]:
                words += [f"--{flag}", str(one)]
    return words


def _stage_flags(stages: Sequence[Choice]) -> list[str]:
    words: list[str] = []
    for stage in stages:
        values = {
            name: value for name, value in stage.values.items() if name != "reward"
        }  # which an earlier stage makes
        keys = ",".join(f"{name}={str(value).lower()}" for name, value in values.items())
        words += ["--stage", f"{stage.method}:{keys}"] if keys else []
    return words


def choose(found: Findings, goal: str, reward: str | None = None, reward_model: str | None = None) -> list[Choice]:
    """What is recommended, then two alternatives. The user may have a `reward`, or a trained `reward_model`."""
    methods = _order(found, goal, reward, reward_model)
    choices = [_choice(method, found, reward, reward_model) for method in methods][:3]
    if goal == "memory":
        choices = [choice.having(IN_4_BITS) for choice in choices]
    return [*choices, *_variants(choices[0])][:3]


def _order(found: Findings, goal: str, reward: str | None, reward_model: str | None) -> list[str]:
    """The methods that can learn from the data, the best for the goal first."""
    pairs, scored = found.kind == "pairs", bool(reward or reward_model)
    if not found.prompts:
        return ["sft"]
    if reward_model or (scored and pairs):
        order = ["ppo", "grpo"] if reward_model else ["grpo", "ppo"]
        order += ["dpo"] if pairs else ["sft"] if found.learnable else []
    elif pairs:
        order = ["dpo", "orpo", "ppo"]
    elif scored or found.kind == "checkable":
        order = ["grpo", "sft", "ppo"] if found.learnable else ["grpo", "ppo"]
    elif found.kind == "conversations":
        return ["sft", "grpo", "ppo"]
    else:
        order = ["grpo", "ppo"]
    first = {"tradition": "ppo"}
    if reward_model:
        first |= {"memory": "grpo", "speed": "grpo"}
    elif pairs and not scored:
        first |= {"memory": "orpo", "speed": "orpo"}
    elif found.learnable and not scored:
        first |= {"speed": "sft", "simplicity": "sft"}
    best = first.get(goal, order[0])
    return [best, *(method for method in order if method != best)]


def _choice(method: str, found: Findings, reward: str | None, reward_model: str | None) -> Choice:
    kind, scored = str(found.kind), bool(reward or reward_model)
    if method == "sft":
        return Choice(method, why=WHY[method, "checkable" if kind == "checkable" else "conversations"])
    if method in ("dpo", "orpo"):
        return Choice(method, why=WHY[method, "scored" if scored else "pairs"])
    if method == "ppo" and kind == "pairs" and not scored:
        return Choice(method, why=WHY[method, kind], pipeline=True)
    values, note = _reward(found, reward, reward_model)
    if method == "ppo":
        why = WHY[method, "reward_model" if reward_model else "reward"]
    else:
        why = WHY[method, "checkable" if scored and kind != "pairs" else kind]
    return Choice(method, values, why, (note,) if note else ())


def _reward(found: Findings, reward: str | None, reward_model: str | None) -> tuple[dict[str, Any], str]:
    """(the option of the reward, what is to be said of it)."""
    if reward_model:
        return {"reward_model": reward_model}, ""
    if reward:
        return {"reward": [reward]}, ""
    if "verifier" in found.judges:
        share = found.judges["verifier"]
        note = f"verifier says whether the final answer is right; it can judge {share:.0%} of the answers"
        return {"reward": ["verifier"]}, note
    if "medical_keyword" in found.judges:
        note = "medical_keyword scores which medical terms of the data's answer an answer has, not whether it is true"
        return {"reward": ["medical_keyword"]}, note
    note = "medical_format rewards the form <think>…</think><answer>…</answer> alone: put a reward in its place that "
    note += "judges what is said (--reward ./my_rewards.py:FUNCTION)"
    return {"reward": ["medical_format"]}, note


def _variants(first: Choice) -> list[Choice]:
    """The same method in other ways, where fewer than three methods can learn from the data."""
    plain = {name: value for name, value in first.values.items() if name not in IN_4_BITS}
    quantized = Choice(first.method, {**plain, **IN_4_BITS}, IN_4BIT, first.notes)
    exact = Choice(first.method, plain, NOT_4BIT, first.notes)
    in_full = Choice(first.method, {**plain, "lora": False}, IN_FULL, first.notes)
    return [exact if first.values.keys() >= IN_4_BITS.keys() else quantized, in_full]
