"""The estimate of a run's memory beside what the run takes, for each method on three models.

    python -m benchmarks.estimate [--only METHOD]

Each run trains two steps on rows of one length, in a process of its own, with malloc's cache off, so that the resident
set is what lives. Both figures are those that the run itself writes to manifest.json: bytes at once, on a CPU beyond
what the process had before its weights loaded, on a GPU those that torch had allocated. Then, on any machine, what
was measured on cards before (results/gpu*.json) is estimated anew.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.record import record

METHODS = ("sft", "dpo", "orpo", "reward_model", "grpo", "ppo")
# (class of the configuration, its fields, flags of the run)
MODELS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "Llama, 119 M, all trained": (
        "LlamaConfig",
        {"vocab_size": 50_000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6}
        | {"num_attention_heads": 12, "num_key_value_heads": 12, "tie_word_embeddings": False},
        ["--no-lora"],
    ),
    "Qwen2, 38 M, LoRA": (
        "Qwen2Config",
        {"vocab_size": 16_000, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 20}
        | {"num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True},
        ["--lora", "--no-gradient-checkpointing"],
    ),
    "Mistral, 63 M, all trained, activations kept": (
        "MistralConfig",
        {"vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 12}
        | {"num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": False, "sliding_window": None},
        ["--no-lora", "--no-gradient-checkpointing"],
    ),
}
PROMPT, ANSWER, SAMPLED = 160, 96, 24  # tokens
DATA = {"sft": "conversations", "grpo": "prompts", "ppo": "prompts"}
COMMON = ["--max-steps", "2", "--logging-steps", "1", "--num-eval-prompts", "0", "--seed", "1"]
BATCH = ["--per-device-train-batch-size", "4", "--gradient-accumulation-steps", "2"]
# glibc gives back what is freed at once: tensors of 64 KiB and more are mapped by themselves.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}


# What benchmarks/gpu.py measured, and the flags of the same.
SHAPE = ["--method", "grpo", "--model", "Qwen/Qwen3-8B", "--load-in-4bit", "--gradient-accumulation-steps", "1"]
ROW = ["--prompt-tokens", "1024", "--num-eval-prompts", "0", "--gpu", "h100"]
SHORT = ["--max-completion-length", "32", "--completion-tokens", "32"]
LONG = ["--max-completion-length", "512", "--completion-tokens", "512"]
OF_EIGHT = ["--per-device-train-batch-size", "8", "--num-generations", "8"]
OF_FOUR = ["--per-device-train-batch-size", "4", "--num-generations", "4"]
ON_CARDS = {
    "rlhf run --method grpo --load-in-4bit, 8B": [*SHAPE, *ROW, *SHORT, *OF_EIGHT],
    "QLoRA, 8 answers: step, packed": [*SHAPE, *ROW, *LONG, *OF_EIGHT],
    "QLoRA, 4 answers: step, packed": [*SHAPE, *ROW, *LONG, *OF_FOUR],
    **{
        f"rlhf run --method {method}, {kind}": ["--method", method, flag, "--num-eval-prompts", "4", "--gpu", "h100"]
        for method in METHODS
        for kind, flag in (("full", "--no-lora"), ("4-bit", "--load-in-4bit"))
    },
}


def write_inputs(folder: Path) -> None:
    """Three models with random weights and the built-in tokenizer, and rows of one length for each kind of method."""
    import transformers

    from rlhf_core import builtin
    from rlhf_core.estimate.synthetic import Lengths, rows
    from rlhf_core.models.loading import inspect
    from rlhf_core.models.resolve import find
    from rlhf_core.models.template import template_of

    tokenizer = transformers.AutoTokenizer.from_pretrained(builtin.MODEL)
    for name, (cls, fields, _) in MODELS.items():
        transformers.set_seed(0)
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
        config = getattr(transformers, cls)(**fields, **ends, max_position_embeddings=4096)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    template = template_of(inspect(find("builtin")))
    for need in ("prompts", "preferences", "conversations"):
        lines = [json.dumps(row) for row in rows([Lengths(PROMPT, ANSWER)], need, template)] * 64  # type: ignore[arg-type]
        (folder / f"{need}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def one(method: str, model: str, folder: Path) -> dict[str, Any]:
    """The memory in the manifest of a run."""
    run = folder / "runs" / f"{method} {model}"
    command = [sys.executable, "-m", "rlhf_core", "run", "--method", method, "--model", str(folder / model)]
    command += ["--data", str(folder / f"{DATA.get(method, 'preferences')}.jsonl"), "--output-dir", str(run)]
    command += [*COMMON, *BATCH, *MODELS[model][2]]
    if method in ("grpo", "ppo"):
        command += ["--reward", "length", "--max-completion-length", str(SAMPLED)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **MALLOC}, check=False)
    if done.returncode:
        raise RuntimeError(f"{method}, {model}: {done.stdout[-800:]}{done.stderr[-800:]}")
    memory = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["memory"]
    measured = memory.get("allocated_bytes", memory.get("resident_bytes"))
    found = {"method": method, "model": model, "estimated_gb": memory["estimated_bytes"] / 1e9}
    found |= {"measured_gb": measured / 1e9, "error": memory["estimated_bytes"] / measured - 1}
    return found | ({"reserved_gb": memory["reserved_bytes"] / 1e9} if "reserved_bytes" in memory else {})


def on_cards() -> list[dict[str, Any]]:
    """The estimates of what was measured on cards."""
    figures = []
    for file in sorted((Path(__file__).parent / "results").glob("gpu*.json")):
        known = json.loads(file.read_text(encoding="utf-8"))
        measured = {figure.get("what"): figure for figure in known["figures"] if "peak_gb" in figure}
        for what, flags in ON_CARDS.items():
            if what in measured:
                command = [sys.executable, "-m", "rlhf_core", "estimate", *flags, "--json"]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found = json.loads(done.stdout)
                peak = measured[what]["peak_gb"]
                figure = {"what": what, "machine": known["machine"], "estimated_gb": found["peak_bytes"] / 1e9}
                figures.append({**figure, "measured_gb": peak, "error": found["peak_bytes"] / 1e9 / peak - 1})
                print(json.dumps(figures[-1]), flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=METHODS, action="append", help="these methods alone; repeatable")
    given = parser.parse_args()
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder))
        for method in given.only or METHODS:
            for model in MODELS:
                figures.append(one(method, model, Path(folder)))
                print(json.dumps(figures[-1]), flush=True)
    if not given.only:
        record("estimate", [*figures, *on_cards()])


if __name__ == "__main__":
    main()
