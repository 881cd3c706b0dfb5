"""The runs of benchmarks/diagnoses.py in which one thing is wrong each, on the built-in model and data."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlhf_core.builtin import MODEL, data_file

REWARDS = """
import hashlib
import time

def zero(completions, **_): return [0.0] * len(completions)
def one(completions, **_): return [1.0] * len(completions)
def none(completions, **_): return [None] * len(completions)
def of_the_prompt(prompts, **_): return [len(str(p)) % 7 / 7 for p in prompts]
def noise(completions: list[str], **_):
    return [int(hashlib.md5(c.encode()).hexdigest(), 16) % 1000 / 1000 for c in completions]
def shorter(completion_ids, **_): return [10 - len(ids) / 10 for ids in completion_ids]
def keyword(completions: list[str], **_): return [min(c.count(" and "), 10) for c in completions]
def right(completions: list[str], answer, **_): return [float(a in c) for c, a in zip(completions, answer)]
def plain(completions: list[str], **_): return [float("<answer>" not in c) for c in completions]
def raises(completions: list[str], **_):
    if any(hash(c) % 3 == 0 for c in completions): raise ValueError("no number in the answer")
    return [float(len(c) % 10) for c in completions]
def sleeps(completions: list[str], **_):
    time.sleep(3)
    return noise(completions)
def grows(completions: list[str], trainer_state, **_):
    return [value * (1 if trainer_state.global_step < 8 else 300) for value in noise(completions)]
def outliers(completions: list[str], trainer_state, **_):
    return [value * (1000 if trainer_state.global_step % 5 == 4 else 1) for value in noise(completions)]
def hardly(completions: list[str], **_): return [1 + value / 200 for value in noise(completions)]
def agrees(prompts, completions: list[str], **_):
    from difflib import SequenceMatcher
    def alike(a, b): return SequenceMatcher(None, a, b, autojunk=False).ratio()
    groups = [[d for q, d in zip(prompts, completions) if q == p] for p in prompts]
    return [10 * sum(alike(c, d) for d in group) / len(group) for c, group in zip(completions, groups)]
KEPT = []
def leaks(completions: list[str], **_):
    KEPT.append(bytearray(b"x" * 60_000_000))
    return noise(completions)
"""
STALE = """
import rlhf_method_ppo.trainer as trainer
def with_the_first_weights(policy, *arguments, rollout=trainer.rollout):
    with policy.disable_adapter():
        return rollout(policy, *arguments)
trainer.rollout = with_the_first_weights
"""
SMALL = ("--per-device-train-batch-size", "8", "--logging-steps", "1", "--save-steps", "1000")
GRPO = (*SMALL, "--num-generations", "4")


@dataclass(frozen=True)
class Planted:
    """`prepare` writes what the run needs to its folder, and returns further flags."""

    name: str
    what: str
    method: str
    flags: tuple[str, ...]
    prepare: Callable[[Path], list[str]] | None = None
    rewards: str = REWARDS
    by_state: bool = False  # diagnosed by its trainer_state.json alone


def grpo(name: str, what: str, reward: str, *flags: str, steps: int = 12, **more) -> Planted:
    rewards = [
        word for one in reward.split() for word in ("--reward", one if "medical" in one else f"./rewards.py:{one}")
    ]
    return Planted(name, what, "grpo", (*GRPO, "--max-steps", str(steps), *rewards, *flags), **more)


def learned(name: str, what: str, reward: str, *flags: str, steps: int = 40, **more) -> Planted:
    """Of GRPO with the preset's batches of 32 answers, with which it learns."""
    size = ("--per-device-train-batch-size", "32", "--num-generations", "8")
    return grpo(name, what, reward, *size, *flags, steps=steps, **more)


def ppo(name: str, what: str, reward: str, *flags: str, steps: int = 24, **more) -> Planted:
    given = reward if "medical" in reward else f"./rewards.py:{reward}"
    return Planted(name, what, "ppo", (*SMALL, "--max-steps", str(steps), "--reward", given, *flags), **more)


ADAPTER = ("--lora", "--lora-target-modules", "o_proj,down_proj", "--max-completion-length", "96")


def built_in(kind: Literal["prompts", "preferences", "conversations"], count: int = 1500) -> list[dict]:
    return [json.loads(line) for line in data_file(kind, "train").read_text(encoding="utf-8").splitlines()[:count]]


def write(here: Path, rows: list[dict]) -> list[str]:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (here / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return ["--data", str(here / "data.jsonl")]


def pairs(change: Callable[[str, str, random.Random], tuple[str, str]]) -> Callable[[Path], list[str]]:
    """The built-in pairs, changed: a function of chosen, rejected and what draws."""

    def prepare(here: Path) -> list[str]:
        draw, rows = random.Random(0), built_in("preferences")
        for row in rows:
            row["response_chosen"], row["response_rejected"] = change(
                row["response_chosen"], row["response_rejected"], draw
            )
        return write(here, rows)

    return prepare


def without_end_token(here: Path) -> list[str]:
    """The built-in model, with an end token that is never likely."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(MODEL), AutoTokenizer.from_pretrained(MODEL)
    ends = model.generation_config.eos_token_id
    model.get_output_embeddings().weight.data[ends] = 0
    model.save_pretrained(here / "model")
    tokenizer.save_pretrained(here / "model")
    return ["--model", str(here / "model"), *ADAPTER]


def goes_on(here: Path) -> list[str]:
    """A model that learned from transcripts, in which an answer goes on with the next turns."""
    for row in (rows := built_in("conversations", 600)):
        messages = row.get("messages") or row.get("conversations")
        last = messages[-1]
        key = "content" if "content" in last else "value"
        last[key] = f"{last[key]}\n### Human: 还有呢？\n### Assistant: 注意休息。"
    flags = ["--method", "sft", *write(here, rows), "--max-steps", "60", "--num-eval-prompts", "0"]
    rlhf = str(Path(sys.executable).with_name("rlhf"))
    command = [rlhf, "run", *flags, "--learning-rate", "2e-3", "--output-dir", str(here / "sft")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return ["--model", str(here / "sft" / "model"), "--data", "builtin", *ADAPTER]


def swapped(chosen: str, rejected: str, draw: random.Random) -> tuple[str, str]:
    return (chosen, rejected) if draw.random() < 0.5 else (rejected, chosen)


def longer_chosen(chosen: str, rejected: str, draw: random.Random) -> tuple[str, str]:
    sentence = "请注意休息，多喝水，按时复诊。"
    few, more = sorted(draw.sample(range(1, 9), 2))
    return sentence * more, sentence * few


def backwards(chosen: str, rejected: str, draw: random.Random) -> tuple[str, str]:
    """Few pairs can't be learned, all others are easy."""
    return (chosen, chosen[::-1]) if draw.random() < 0.98 else swapped(chosen, rejected, draw)


def alike(chosen: str, rejected: str, draw: random.Random) -> tuple[str, str]:
    return chosen, chosen[: len(chosen) // 2] + chosen[len(chosen) // 2 + 1 :]


def the_same(here: Path) -> list[str]:
    return write(here, built_in("conversations", 1) * 64)


def eight_rows(here: Path) -> list[str]:
    return write(here, built_in("prompts", 8))


def few_rows(here: Path) -> list[str]:
    return write(here, built_in("prompts", 6) * 100)


def of_kind(kind: str, language: str) -> list[dict]:
    return [row for row in built_in("prompts", 3000) if (row["kind"], row["language"]) == (kind, language)]


def in_english(here: Path) -> list[str]:
    return write(here, of_kind("diagnosis", "en"))


def one_department(here: Path) -> list[str]:
    """To train on, patients who were all sent to one department; held out are patients of the others."""
    rows = of_kind("department", "zh")
    others = [row for row in rows if row["answer"] != "皮肤科"]
    (here / "held_out.jsonl").write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in others[:32]), encoding="utf-8"
    )
    trained = [row for row in rows if row not in others[:32]]
    flags = write(here, [{**row, "answer": "皮肤科"} for row in trained])
    return [*flags, "--eval-data", str(here / "held_out.jsonl")]


def trainer_state(run: Path) -> Path:
    return max(run.glob("checkpoints/*/trainer_state.json"))


PAIR = ("--per-device-train-batch-size", "16", "--logging-steps", "1", "--save-steps", "1000")

PLANTED = [
    Planted("nan", "float16, and a learning rate of 100", "sft", ("--max-steps", "8", "--logging-steps", "1",
            "--per-device-train-batch-size", "2", "--dtype", "float16", "--lora", "--learning-rate", "100")),
    grpo("kl-runaway", "100 times the preset's rate", "medical_format", "--learning-rate", "0.6", steps=20),
    ppo("kl-negative", "an engine that samples with the weights of the start", "noise", steps=40,
        rewards=REWARDS + STALE),
    grpo("policy-still", "a rate of 1e-9", "noise", "--learning-rate", "1e-9", steps=52),
    grpo(
        "steps-rounded-away", "all weights in bfloat16, a rate of 1e-7", "noise",
        "--learning-rate", "1e-7", "--no-lora", "--dtype", "bfloat16", "--beta", "0.001", steps=52,
    ),
    learned("entropy-collapse", "a reward for what the other answers say, 8 prompts, without a KL penalty", "agrees",
            "--beta", "0", "--temperature", "0.7", "--lr-scheduler-type", "constant", steps=100, prepare=eight_rows),
    learned("repetition", "a reward that is noise, 8 prompts, without a KL penalty", "noise", "--beta", "0", steps=80,
            prepare=eight_rows),
    grpo("clip-fraction", "a clip range of 0.00001", "noise", "--epsilon", "0.00001", "--num-iterations", "8",
         steps=32),
    grpo("reward-fails", "a reward that raises on some answers", "raises"),
    grpo("reward-slow", "a reward that takes 3 seconds", "sleeps", steps=8),
    learned("length-explains-reward", "a reward for short answers, without a KL penalty", "shorter", "--beta", "0"),
    learned("feature-explains-reward", "a reward that counts a word", "keyword", "--beta", "0",
            "--max-completion-length", "160", prepare=in_english),
    learned("other-reward-falls", "a layout, and a small reward for having none", "medical_format plain:weight=0.1"),
    learned("held-out-falls", "prompts with one right answer, others held out", "right", "--eval-steps", "10",
            "--num-eval-prompts", "32", prepare=one_department),
    grpo("answers-identical", "a top-k of 1", "noise", "--top-k", "1"),
    grpo("reward-not-applicable", "a reward that returns None", "none"),
    grpo("reward-always-zero", "a reward that is always 0", "zero"),
    grpo("reward-always-full", "a reward that is always 1", "one"),
    grpo("scores-tied", "a reward of the prompt alone", "of_the_prompt"),
    grpo("template-not-learned", "a model trained on transcripts", "noise", prepare=goes_on),
    grpo("end-token-not-learned", "a model without an end token", "noise", prepare=without_end_token),
    grpo("limit-too-short", "a limit of 12 tokens", "noise", "--max-completion-length", "12"),
    grpo("answers-cut", "the same, by trainer_state.json alone", "noise", "--max-completion-length", "12",
         by_state=True),
    Planted("preference-stuck", "a rate of 1e-9", "dpo", (*PAIR, "--max-steps", "32", "--learning-rate", "1e-9")),
    Planted("preferences-contradict", "half of the pairs swapped", "dpo", (*PAIR, "--max-steps", "80"), pairs(swapped)),
    Planted("chosen-falls", "answers that differ by a character, 10 times the rate", "dpo",
            (*PAIR, "--max-steps", "40", "--learning-rate", "2e-3", "--beta", "0.05"), pairs(alike)),
    Planted("margins-from-length", "the longer of two equal answers is chosen", "reward_model",
            (*PAIR, "--max-steps", "40"), pairs(longer_chosen)),
    Planted("reward-model-at-chance", "half of the pairs swapped", "reward_model", (*PAIR, "--max-steps", "60"),
            pairs(swapped)),
    Planted("scores-saturated", "rejected answers that run backwards, 50 times the rate", "reward_model",
            (*PAIR, "--max-steps", "100", "--learning-rate", "5e-2", "--lr-scheduler-type", "constant"),
            pairs(backwards)),
    ppo("value-unexplained", "a reward that hardly varies", "hardly", steps=60),
    ppo("value-loss-explodes", "a reward that becomes 300 times as large", "grows", steps=40),
    Planted("loss-diverges", "100 times the preset's rate", "sft", ("--max-steps", "20", "--learning-rate", "0.3")),
    Planted("loss-zero", "the same row 64 times", "sft", ("--max-steps", "60", "--learning-rate", "3e-3"), the_same),
    grpo("gradient-spikes", "a reward that is 1,000 times as large in every fifth step", "outliers", steps=40),
    grpo("same-rows", "6 prompts, 100 times each", "noise", prepare=few_rows, steps=40),
    grpo("memory-soon", "a reward that keeps 60 MB a step", "leaks", "--stop-on", "memory-soon", steps=4000),
]  # fmt: skip
