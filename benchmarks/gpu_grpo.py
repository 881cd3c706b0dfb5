"""GRPO with 4-bit weights and an adapter, on the shapes of Qwen3-8B and Qwen3-4B: `rlhf run` itself, its memory by
phase beside `rlhf estimate`, and TRL's trainer on the same model.

python -m benchmarks.gpu_parts command [--rehearse]      8B, also within 12 and 8 GB
python -m benchmarks.gpu_parts generate [--rehearse]     TRL, 8B
python -m benchmarks.gpu_parts batching [--rehearse]     TRL with continuous batching, 8B
python -m benchmarks.gpu_parts unsloth [--rehearse]      4B, with the lengths of Unsloth's report, and TRL
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_kit import GB, REAL, Scale, Shape, attempt, built, peak_of, qwen3, say, token_ids
from benchmarks.gpu_runs import FALLBACKS, rlhf

GOALS = {12: "8B within 12 GB", 8: "8B within 8 GB"}
UNSLOTH = 256  # tokens of an answer in Unsloth's report
REWARD = '''
def spread(completions, **_):
    """Different for most answers, whatever they are."""
    return [sum((i + 1) * ord(letter) for i, letter in enumerate(str(one))) % 101 / 100 for one in completions]
'''


def command(scale: Scale) -> None:
    with prepared(scale, scale.large, "8B") as folder:
        line = arguments(folder, scale, scale.answer)
        measured_run(scale, folder, line, "8B", steps=3, seconds=100)
        for limit in GOALS:
            measured_run(scale, folder, line, "8B", steps=2, seconds=55, limit=limit)
        estimated(folder, line, "8B")


def unsloth(scale: Scale) -> None:
    answer = min(UNSLOTH, scale.answer)
    with prepared(scale, scale.middle, "4B") as folder:
        measured_run(scale, folder, arguments(folder, scale, answer), "4B", steps=3, seconds=70)
        with attempt("TRL, 4B"):
            in_trl(scale, folder, answer, "TRL, 4B", batching=False)


def generate(scale: Scale) -> None:
    with prepared(scale, scale.large, "8B") as folder:
        in_trl(scale, folder, scale.answer, "TRL with generate, 8B", batching=False)


def batching(scale: Scale) -> None:
    with prepared(scale, scale.large, "8B") as folder:
        in_trl(scale, folder, scale.answer, "TRL with continuous batching, 8B", batching=True)


@contextmanager
def prepared(scale: Scale, shape: Shape, name: str) -> Iterator[Path]:
    """A folder with a model of random weights and the built-in tokenizer, prompts of about `prompt` tokens, and a
    reward. Kept where BENCHMARK_MODELS says, for the next part.
    """
    from transformers import AutoTokenizer

    from rlhf_core import builtin

    fast = Path("/dev/shm")  # in memory, where there is room
    free = os.statvfs(fast).f_bavail * os.statvfs(fast).f_frsize if fast.is_dir() else 0
    with tempfile.TemporaryDirectory(dir=fast if free > 40 * GB else None) as temporary:
        folder = Path(os.environ.get("BENCHMARK_MODELS", temporary)) / name
        if not (folder / "prompts.jsonl").exists():
            started = time.perf_counter()
            tokenizer = AutoTokenizer.from_pretrained(builtin.MODEL)
            config = qwen3(shape, scale, tied=name != "8B")
            config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
            model = built(config, torch.bfloat16, scale.device)
            model.save_pretrained(folder / "base", max_shard_size="4GB")
            tokenizer.save_pretrained(folder / "base")
            del model
            generator = torch.Generator().manual_seed(4)
            rows = []
            for _ in range(16):
                text = tokenizer.decode(token_ids(2 * scale.prompt, generator))
                ids = tokenizer(text, add_special_tokens=False)["input_ids"][: scale.prompt]
                rows.append(json.dumps({"prompt": tokenizer.decode(ids)}))
            (folder / "spread.py").write_text(REWARD)
            (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
            say("writing the model", seconds=time.perf_counter() - started, folder=str(folder))
        yield folder


def arguments(folder: Path, scale: Scale, answer: int) -> list[str]:
    return [
        *("--method", "grpo", "--model", str(folder / "base"), "--load-in-4bit"),
        *("--data", str(folder / "prompts.jsonl"), "--reward", f"{folder / 'spread.py'}:spread"),
        *("--per-device-train-batch-size", str(scale.group), "--gradient-accumulation-steps", "1"),
        *("--num-generations", str(scale.group), "--max-completion-length", str(answer)),
        *("--max-prompt-length", str(2 * scale.prompt), "--num-eval-prompts", "0", "--logging-steps", "1"),
        *("--report-to", "none"),
    ]


def measured_run(
    scale: Scale, folder: Path, line: list[str], name: str, *, steps: int, seconds: int, limit: int = 0
) -> None:
    """The last step of a run, and its memory by phase."""
    what = f"rlhf run --method grpo --load-in-4bit, {name}" + (f", within {limit} GB" if limit else "")
    with attempt(what), tempfile.TemporaryDirectory() as place:
        run = Path(place, "run")
        started = time.perf_counter()
        given = ["run", *line, "--max-steps", str(steps), "--output-dir", str(run)]
        code, output, memory = rlhf(Path(place), *given, seconds=seconds, limit=limit)
        took = time.perf_counter() - started
        print(output[-1500:], flush=True)
        metrics = run / "metrics.jsonl"
        rows = [*map(json.loads, metrics.read_text().splitlines())] if metrics.exists() else []
        logged = [row for row in rows if "loss" in row]
        found: dict[str, Any] = {"seconds": took, "steps": len(logged), **{f"{k}_gb": v for k, v in memory.items()}}
        if logged:
            last = logged[-1]
            tokens = last["completions/mean_length"] * scale.group
            keys = ("time/sampling", "time/learning", "step_time", "completions/mean_length", "grad_norm")
            found |= {key: last.get(key) for key in keys} | {"tokens_per_s": tokens / last["time/sampling"]}
        fallback = [line.strip()[:200] for line in output.splitlines() if any(words in line for words in FALLBACKS)]
        ended = "" if not code else output[-400:]
        ok = code == 0 and not fallback
        say(what, ok=ok, goal=GOALS.get(limit, ""), **found, fallback=fallback[:3], exit_code=code, end=ended)


def estimated(folder: Path, line: list[str], name: str) -> None:
    with attempt(f"rlhf estimate, {name}"), tempfile.TemporaryDirectory() as place:
        _, output, _ = rlhf(Path(place), "estimate", *line, "--json", seconds=60)
        answer = json.loads(output[output.index("{") : output.rindex("}") + 1])
        peaks = {f"{phase}_gb": one["peak_bytes"] / GB for phase, one in answer["phases"].items()}
        say(f"rlhf estimate, {name}", peak_gb=answer["peak_bytes"] / GB, step_s=answer["step_seconds"], **peaks)


def in_trl(scale: Scale, folder: Path, answer: int, what: str, *, batching: bool) -> None:
    """A step of TRL's trainer on the model as the product loads it, without shared prompts."""
    from datasets import load_dataset
    from rlhf_method_grpo import LORA_BETA, LORA_RATE
    from trl import GRPOConfig, GRPOTrainer

    from rlhf_core.method import TrainingOptions
    from rlhf_core.models import loading
    from rlhf_core.models.adapters import new_adapter
    from rlhf_core.models.resolve import find

    options = TrainingOptions(learning_rate=LORA_RATE, load_in_4bit=True, attn_implementation="sdpa")
    info = loading.inspect(find(str(folder / "base")))
    model = loading.load(info, options)
    spent: dict[str, list[float]] = {"sampling": [], "step": []}
    peaks: dict[str, float] = {}

    class Clocked(GRPOTrainer):
        def _generate_single_turn(self, *given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result, peaks["sampling_gb"] = peak_of(lambda: super(Clocked, self)._generate_single_turn(*given, **named))
            spent["sampling"].append(time.perf_counter() - started)
            # What is known is said, whatever comes then.
            say(f"{what}: answers", tokens_per_s=scale.group * answer / spent["sampling"][-1], **peaks)
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            return result

        def training_step(self, *given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result, peaks["learning_gb"] = peak_of(lambda: super(Clocked, self).training_step(*given, **named))
            spent["step"].append(time.perf_counter() - started)
            tokens = scale.group * answer / spent["sampling"][-1]
            found = {"step_s": spent["step"][-1], "sampling_s": spent["sampling"][-1], "tokens_per_s": tokens}
            say(what, **found, **peaks)
            return result

    def spread(completions: list[Any], **_: Any) -> list[float]:
        return [sum((i + 1) * ord(c) for i, c in enumerate(str(one))) % 101 / 100 for one in completions]

    with tempfile.TemporaryDirectory() as place:
        settings = GRPOConfig(
            place,
            **{"per_device_train_batch_size": scale.group, "num_generations": scale.group, "max_steps": 2},
            **{"max_completion_length": answer, "beta": LORA_BETA, "learning_rate": LORA_RATE, "report_to": []},
            **{"bf16": True, "use_cpu": scale is not REAL, "gradient_checkpointing": True, "logging_steps": 1},
            **{"save_strategy": "no", "disable_tqdm": True, "use_transformers_continuous_batching": batching},
        )
        Clocked(
            model=model,
            args=settings,
            reward_funcs=spread,
            train_dataset=load_dataset("json", data_files=str(folder / "prompts.jsonl"), split="train"),
            processing_class=info.tokenizer,
            peft_config=new_adapter(info, options),
        ).train()
