"""The tables of docs/guide/memory.md: the memory and the hours of each method on an 8B model, by `rlhf estimate`.

    python -m benchmarks.estimate_table [MODEL]

Rows have prompts and answers of 512 tokens, options are the methods' own. Memory is what the card needs, with what the
allocator and CUDA hold beyond tensors.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks.record import record

METHODS = ("sft", "reward_model", "dpo", "orpo", "grpo", "ppo")
KINDS = {"4-bit": ["--load-in-4bit"], "LoRA": ["--lora"], "all trained": ["--no-lora"]}
CARDS = ("rtx3090", "rtx4090", "a100-80gb", "h100")
LENGTHS = ["--prompt-tokens", "512", "--completion-tokens", "512"]
ROWS = 1000
MEMORY = "100000GB"  # what fits anyhow is not tried with remedies


def estimate(model: str, method: str, kind: str, card: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "rlhf_core", "estimate", "--method", method, "--model", model, "--json"]
    command += [*KINDS[kind], *LENGTHS, "--gpu", card, "--memory", MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode > 1:
        raise RuntimeError(done.stderr[-800:])
    found = json.loads(done.stdout)
    figure = {"model": model, "method": method, "kind": kind, "card": found["device"], "phase": found["peak_phase"]}
    return (
        figure
        | {"needed_gb": found["needed_bytes"] / 1e9, "step_seconds": found["step_seconds"]}
        | {"hours": found["step_seconds"] * found["steps_per_row"] * ROWS / 3600}
    )


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "Qwen/Qwen3-8B"
    figures = []
    for method in METHODS:
        for kind in KINDS:
            for card in CARDS if kind == "4-bit" else CARDS[-1:]:
                figures.append(estimate(model, method, kind, card))
                print(json.dumps(figures[-1]), flush=True)
    record("estimate_table", figures)
    print(tables(figures))


def tables(figures: list[dict[str, Any]]) -> str:
    """Both tables in Markdown."""
    lines = ["| | " + " | ".join(KINDS) + " |", "|---" * (1 + len(KINDS)) + "|"]
    for method in METHODS:
        needed = {
            f["kind"]: f["needed_gb"] for f in figures if f["method"] == method and f["card"] == figures[-1]["card"]
        }
        lines.append(f"| `{method}` | " + " | ".join(f"{needed[kind]:.1f} GB" for kind in KINDS) + " |")
    cards = list(dict.fromkeys(figure["card"] for figure in figures))
    lines += ["", "| | " + " | ".join(cards) + " |", "|---" * (1 + len(cards)) + "|"]
    for method in METHODS:
        hours = {f["card"]: f["hours"] for f in figures if f["method"] == method and f["kind"] == "4-bit"}
        lines.append(f"| `{method}` | " + " | ".join(f"{hours[card]:.1f} h" for card in cards) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
