"""The guide's table as code: which method for which data, and why. `rlhf recommend` uses it.

docs/guide/choosing.md has the same table in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rlhf_tools.looking import Findings

Goal = Literal["quality", "simplicity", "speed", "memory", "tradition"]
GOALS: Mapping[Goal, str] = {
    "quality": "the best answers that the data allows",
    "simplicity": "the fewest parts and settings",
    "speed": "the shortest run",
    "memory": "the least memory: 4-bit weights (QLoRA)",
    "tradition": "the classic RLHF: a reward model, then PPO",
}
FORMAT_ONLY = "medical_format"
PIPELINE = ("rlhf", "pipeline", "ppo")  # the classic way: each stage's model feeds the next

WHY = {
    ("dpo", "pairs"): "DPO learns from pairs directly: no reward model, no sampling of answers, and it is stable. Its "
    "reference is the model as it was, which with LoRA needs no memory of its own.",
    ("orpo", "pairs"): "ORPO learns from pairs without a reference model, and from the better answers as fine-tuning "
    "does, in one run: less memory and time than DPO, and it may start from a base model.",
    ("ppo", "pairs"): "PPO is the classic way: fine-tune on the better answers, train a reward model on the pairs, then "
    "raise its score of sampled answers. Three runs, and the most models in memory and settings to get right.",
    ("grpo", "checkable"): "GRPO samples several answers to each prompt and learns from those that a reward scores "
    "higher than the others: where an answer can be checked, nobody has to write or compare answers. It needs no "
    "value model, so less memory than PPO.",
    ("grpo", "pairs"): "GRPO uses the prompts of the pairs alone and learns from the reward's scores of sampled answers; "
    "it needs no value model, so less memory than PPO.",
    ("grpo", "conversations"): "GRPO samples several answers to each question and raises the reward. It can go beyond the "
    "answers in the data, as far as the reward judges well; best after SFT.",
    ("grpo", "prompts"): "Without answers to learn from, only a reward can teach: GRPO samples several answers to each "
    "prompt and learns from those that the reward scores higher. It needs no value model, so less memory than PPO.",
    ("ppo", ""): "PPO, the classic way, raises the reward of sampled answers with a value model beside the policy: more "
    "memory and settings than GRPO.",
    ("ppo", "reward_model"): "PPO is made for a trained reward model: it raises the model's score of sampled answers, "
    "with a value model that says which token earned it.",
    ("sft", "checkable"): "SFT learns the answers of the data as they are: one forward and backward pass, no sampling, no "
    "reward, the fewest settings. It imitates, also how the answers are written.",
    ("sft", ""): "SFT learns to answer as the data does, and is the first stage of every other method: the least "
    "memory, time and settings.",
    ("dpo", "other"): "DPO learns from the pairs themselves, without the reward and without sampling.",
}
IN_4BIT = "The same with weights in 4 bits (QLoRA): a third of their memory, a little slower and less exact."
NOT_4BIT = "The same without 4 bits: three times the memory for the weights, which are exact then."
IN_FULL = "The same with all weights trained instead of an adapter, as small models are anyway: for much data and memory."


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

    def in_4bit(self) -> Choice:
        return self if self.pipeline else replace(self, values={**self.values, "load_in_4bit": True})

    def command(self, model: str, data: Sequence[str], flags: Sequence[str] = ()) -> list[str]:
        """What to type. `flags` are those that make it fit."""
        words = list(PIPELINE) if self.pipeline else ["rlhf", "run", "--method", self.method]
        words += ["--model", model] if model != "builtin" else []
        words += [word for spec in data if spec != "builtin" for word in ("--data", spec)]
        if not self.pipeline:
            words += [word for name, value in self.values.items() for word in _flag(name, value)]
        return [*words, *flags]


def _flag(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    return ([f"--{flag}"] if value else [f"--no-{flag}"]) if isinstance(value, bool) else [f"--{flag}", str(value)]


def choose(found: Findings, goal: Goal, reward: str | None = None, reward_model: str | None = None) -> list[Choice]:
    """What is recommended, then two alternatives. The user may have a `reward`, or a trained `reward_model`."""
    methods = _order(found, goal, reward, reward_model)
    choices = [_choice(method, found, reward, reward_model) for method in methods][:3]
    if goal == "memory":
        choices = [choice.in_4bit() for choice in choices]
    return [*choices, *_variants(choices[0])][:3]


def _order(found: Findings, goal: Goal, reward: str | None, reward_model: str | None) -> list[str]:
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
    kind = str(found.kind)
    if method in ("sft", "orpo"):
        return Choice(method, why=WHY.get((method, kind), WHY[method, ""] if method == "sft" else ""))
    if method == "dpo":
        return Choice(method, why=WHY["dpo", "other" if reward or reward_model else "pairs"])
    if method == "ppo" and kind == "pairs" and not (reward or reward_model):
        note = "memory and time are those of its last stage, without the reward model's own"
        return Choice(method, why=WHY["ppo", "pairs"], pipeline=True, notes=(note,))
    values, notes = _reward(found, reward, reward_model)
    if method == "grpo":
        why = WHY["grpo", "checkable" if reward and kind != "pairs" else kind]
    else:
        why = WHY["ppo", "reward_model" if reward_model else ""]
    return Choice(method, values, why, notes)


def _reward(found: Findings, reward: str | None, reward_model: str | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(the flag of the reward, what is to be said of it)."""
    if reward_model:
        note = "memory is without the reward model's own, which is loaded beside it"
        return {"reward_model": reward_model}, (note,)
    if reward:
        return {"reward": reward}, ()
    if "verifier" in found.judges:
        note = f"verifier says whether the final answer is right; it can judge {found.judges['verifier']:.0%} of the rows"
        return {"reward": "verifier"}, (note,)
    if "medical_keyword" in found.judges:
        note = "medical_keyword scores the medical terms of the data's answer that an answer has, not whether it is true"
        return {"reward": "medical_keyword"}, (note,)
    note = f"{FORMAT_ONLY} rewards the form <think>…</think><answer>…</answer> alone: put a reward of your own in its "
    note += "place, which judges what is said (--reward ./my_rewards.py:FUNCTION)"
    return {"reward": FORMAT_ONLY}, (note,)


def _variants(first: Choice) -> list[Choice]:
    """The same method in other ways, where fewer than three methods can learn from the data."""
    four = "load_in_4bit"
    values = {name: value for name, value in first.values.items() if name != four}
    if four in first.values:
        quantized = replace(first, values=values, why=NOT_4BIT)
    else:
        quantized = replace(first, values={**values, four: True}, why=IN_4BIT)
    return [quantized, replace(first, values={**values, "lora": False}, why=IN_FULL)]
