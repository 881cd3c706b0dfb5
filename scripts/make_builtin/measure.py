"""How well the shipped model does on the held-out prompts, sampled at temperature 1.

    python -m scripts.make_builtin.measure

Prints, with the format reward's system prompt and without one, the share of answers that have the format and
the share that names the gold answer, by kind of question. About a minute on two CPU cores.
"""

import argparse
import json
import re
import time
from collections import defaultdict
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_core.builtin import MODEL, data_file
from scripts.make_builtin.answer_format import final_answer, has_format
from scripts.make_builtin.phrases import SYSTEM

SAMPLES = 4
BATCH = 128


def correct(completion: str, row: dict) -> bool:
    """Names a condition or department anywhere; a letter or number only as a word of the final answer."""
    if row["kind"] in ("choice", "number"):
        return bool(re.search(rf"\b{re.escape(row['answer'])}\b", final_answer(completion)))
    return row["answer"] in completion


@torch.inference_mode()
def sample(model, tokenizer, prompts: list[str], max_new_tokens: int = 128) -> list[str]:
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    ids = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=True, temperature=1.0, top_p=1.0, top_k=0)
    return tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def measure(model, tokenizer, rows: list[dict], system: str) -> dict[str, float]:
    head = [{"role": "system", "content": system}] if system else []
    chats = [[*head, {"role": "user", "content": row["question"]}] for row in rows]
    prompts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    scores = defaultdict(list)
    for start in range(0, len(rows), BATCH):
        texts = sample(model, tokenizer, prompts[start : start + BATCH])
        for text, row in zip(texts, rows[start : start + BATCH], strict=True):
            scores["format"].append(has_format(text))
            scores["correct"].append(correct(text, row))
            scores[row["kind"]].append(scores["correct"][-1])
    return {name: sum(hits) / len(hits) for name, hits in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the built-in model.")
    parser.add_argument("--model", type=Path, default=MODEL, help="another model's folder")
    folder = parser.parse_args().model
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = data_file("prompts", "heldout").read_text(encoding="utf-8")
    rows = sorted(map(json.loads, text.splitlines()), key=lambda row: len(row["question"])) * SAMPLES
    for label, system in (("with system message", SYSTEM), ("without", "")):
        started = time.perf_counter()
        scores = measure(model, tokenizer, rows, system)
        shares = "  ".join(f"{name} {share:.3f}" for name, share in scores.items())
        print(f"{label}: {shares}  ({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    main()
