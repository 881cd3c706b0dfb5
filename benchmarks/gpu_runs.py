"""`rlhf run` itself on a GPU: all methods, the demo, and GRPO with 4-bit weights on the shape of Qwen3-8B.

python -m benchmarks.gpu_parts commands [--rehearse]
python -m benchmarks.gpu_parts qlora [--rehearse]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_kit import GB, REAL, Scale, allocated, attempt, built, limited, peak_of, qwen3, say, token_ids
from rlhf_core.prefix import Group, Sampling, packed, rollout, two_phase

METHODS = {
    "sft": [],
    "reward_model": [],
    "dpo": [],
    "orpo": [],
    "ppo": ["--reward", "medical_format"],
    "grpo": ["--reward", "medical_format"],
}
KINDS = {"full": ["--no-lora"], "4-bit": ["--load-in-4bit"]}
FALLBACKS = ("computed by plain arithmetic", "its own", "Traceback")  # the words of what is slower, or failed


def rlhf(folder: Path, *arguments: str, seconds: int = 150) -> tuple[int, str, dict[str, Any]]:
    """(exit code, output, what `measured` found) of a command in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gpu_runs", str(folder / "memory.json"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.txt").open("w+") as file:
        try:
            code = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, timeout=seconds, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
        file.seek(0)
        output = file.read()
    memory = folder / "memory.json"
    return code, output, json.loads(memory.read_text()) if memory.exists() else {}


def measured(file: Path, arguments: list[str]) -> int:
    """Carry out a command of `rlhf` here, and write how much memory its tensors took at most."""
    from rlhf_core.cli import main

    sys.argv = ["rlhf", *arguments]
    code: Any = 0
    try:
        main()
    except SystemExit as error:
        code = error.code
    if torch.cuda.is_available():
        found = {
            "peak_gb": torch.cuda.max_memory_allocated() / GB,
            "reserved_gb": torch.cuda.max_memory_reserved() / GB,
        }
        file.write_text(json.dumps(found))
    return int(code or 0)


def commands(scale: Scale) -> None:
    """Every method on the built-in model, in full and in 4 bits, and the demo, several at once: do they end well,
    without falling back, and does the demo learn?
    """
    short = ["--max-steps", "2", "--num-eval-prompts", "4", "--logging-steps", "1"]
    with tempfile.TemporaryDirectory() as folder:

        def tried(job: tuple[str, str]) -> None:
            method, kind = job
            place = Path(folder) / f"{method}-{kind}"
            line = ["run", "--method", method, *METHODS[method], *KINDS[kind], *short]
            started = time.perf_counter()
            code, output, memory = rlhf(place, *line, "--output-dir", str(place / "run"))
            fallback = [line.strip() for line in output.splitlines() if any(words in line for words in FALLBACKS)]
            warnings = [
                one.strip() for one in output.splitlines() if "Warning: " in one and one.strip() not in fallback
            ]
            found: dict[str, Any] = {"seconds": time.perf_counter() - started, **memory}
            if code or fallback:
                found |= {"exit_code": code, "fallback": fallback[:4], "end": output[-600:] if code else ""}
            say(f"rlhf run --method {method}, {kind}", ok=not code and not fallback, **found, warnings=warnings[:4])

        def demo() -> None:
            place = Path(folder) / "demo"
            line = ["run", "--method", "grpo", "--reward", "medical_format", "--output-dir", str(place / "run")]
            if scale is not REAL:
                line += ["--max-steps", "2"]
            started = time.perf_counter()
            code, output, memory = rlhf(place, *line)
            took = time.perf_counter() - started
            with attempt("the demo, beside others"):
                if code:
                    raise RuntimeError(output[-600:])
                say("the demo, beside others", ok=True, seconds=took, **memory, **results(place / "run"))

        with ThreadPoolExecutor(13 if scale is REAL else 1) as pool:
            pool.submit(demo)
            list(pool.map(tried, [(method, kind) for kind in KINDS for method in METHODS]))


def results(run: Path) -> dict[str, Any]:
    """What a run wrote about its rewards and its steps."""
    evaluation = json.loads((run / "evaluation.json").read_text()) if (run / "evaluation.json").exists() else {}
    means = {when: (evaluation.get(when) or {}).get("rewards") for when in ("before", "after")}
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = [one["time"] for one in steps if "step_time" in one or "loss" in one]
    between = [round(b - a, 3) for a, b in pairwise(times)]
    return {**{when: mean for when, mean in means.items() if mean}, "seconds_between_steps": between[-5:]}


REWARD = '''
def spread(completions, **_):
    """Different for most answers, whatever they are."""
    return [(hash_of(one) % 101) / 100 for one in completions]


def hash_of(completion):
    text = completion if isinstance(completion, str) else str(completion)
    return sum((i + 1) * ord(letter) for i, letter in enumerate(text)) + len(text)
'''


def qlora(scale: Scale) -> None:
    """GRPO with QLoRA on 8 billion random parameters: `rlhf run`, then its parts and what they need."""
    fast = Path("/dev/shm")  # in memory, where there is room
    free = os.statvfs(fast).f_bavail * os.statvfs(fast).f_frsize if fast.is_dir() else 0
    with tempfile.TemporaryDirectory(dir=fast if free > 40 * GB else None) as name:
        folder = Path(name)
        started = time.perf_counter()
        prompts = write_model(folder / "base", scale)
        say("writing the model", seconds=time.perf_counter() - started, folder=name)
        (folder / "spread.py").write_text(REWARD)
        rows = [json.dumps({"prompt": text}) for text in prompts]
        (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
        count = scale.groups[-1]
        line = [
            *("run", "--method", "grpo", "--model", str(folder / "base"), "--load-in-4bit"),
            *("--data", str(folder / "prompts.jsonl"), "--reward", f"{folder / 'spread.py'}:spread"),
            *("--per-device-train-batch-size", str(count), "--gradient-accumulation-steps", "1"),
            *("--num-generations", str(count), "--max-completion-length", str(scale.sampled)),
            *("--max-prompt-length", str(2 * scale.prompt), "--num-eval-prompts", "0", "--logging-steps", "1"),
            *("--max-steps", "2", "--output-dir", str(folder / "run")),
        ]
        started = time.perf_counter()
        code, output, memory = rlhf(folder, *line, seconds=75)
        print(output[-2000:], flush=True)
        with attempt("rlhf run --method grpo --load-in-4bit, 8B"):
            if code:
                raise RuntimeError(f"exit code {code}: {output[-400:]}")
            fallback = [line for line in output.splitlines() if any(words in line for words in FALLBACKS)]
            figures = results(folder / "run")
            lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
            last = [one for one in map(json.loads, lines) if "step_time" in one][-1]
            kept = {key: last.get(key) for key in ("step_time", "completions/mean_length", "grad_norm", "loss")}
            took = time.perf_counter() - started
            found = {"seconds": took, **memory, **figures, **kept, "fallback": fallback[:3]}
            say("rlhf run --method grpo --load-in-4bit, 8B", ok=not fallback, **found)
        parts(folder / "base", scale)


def write_model(folder: Path, scale: Scale) -> list[str]:
    """A model of random weights with the built-in tokenizer; returns texts of about `prompt` tokens."""
    from transformers import AutoTokenizer

    from rlhf_core import builtin

    tokenizer = AutoTokenizer.from_pretrained(builtin.MODEL)
    config = qwen3(scale.large, scale, tied=False)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model = built(config, torch.bfloat16 if scale is REAL else torch.float32, scale.device)
    model.save_pretrained(folder, max_shard_size="4GB")
    tokenizer.save_pretrained(folder)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    generator = torch.Generator().manual_seed(4)
    texts = []
    for _ in range(16):
        text = tokenizer.decode(token_ids(2 * scale.prompt, generator))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][: scale.prompt]
        texts.append(tokenizer.decode(ids))
    return texts


def parts(folder: Path, scale: Scale) -> None:
    """Rollouts and both kinds of step, on the model as `rlhf run` prepares it."""
    from peft import get_peft_model

    from rlhf_core.method import TrainingOptions
    from rlhf_core.models import loading
    from rlhf_core.models.adapters import new_adapter
    from rlhf_core.models.resolve import find

    options = TrainingOptions(learning_rate=1e-5, load_in_4bit=True)
    info = loading.inspect(find(str(folder)))
    started = time.perf_counter()
    model = loading.load(info, options)
    say("weights in 4 bits, the rest in 16", gb=allocated(), seconds=time.perf_counter() - started)
    model = get_peft_model(model, new_adapter(info, options))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    say("adapter", millions=sum(p.numel() for p in trained) / 1e6, dtype=str(trained[0].dtype), gb=allocated())
    config = model.config
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * scale.dtype.itemsize
    for count in scale.groups:
        say(f"cache of {count} answers", gb=cache * (scale.prompt + count * scale.answer) / GB)
        with attempt(f"QLoRA, {count} answers"):
            step(model, optimizer, scale, count, ["packed", "two phases"])
    for limit in (8, 12):
        with attempt(f"QLoRA, {scale.groups[-1]} answers within {limit} GB"), limited(limit):
            step(model, optimizer, scale, scale.groups[-1], ["two phases"], f", within {limit} GB")


def step(model: Any, optimizer: Any, scale: Scale, count: int, ways: list[str], note: str = "") -> None:
    """The first tokens of the rollouts of one prompt, and a step on answers of full length; peaks are of all tensors of
    the process.
    """
    generator = torch.Generator().manual_seed(2)
    prompt = token_ids(scale.prompt, generator)
    half = torch.autocast(scale.device, torch.bfloat16, enabled=scale.dtype == torch.bfloat16)
    tokens = max(4, scale.answer // 16)
    with half:
        rollout(model, [prompt], count, Sampling(2, [model.config.vocab_size], seed=0))
        started = time.perf_counter()
        sampling = Sampling(tokens, [model.config.vocab_size], seed=0)
        _, peak = peak_of(lambda: rollout(model, [prompt], count, sampling))
    took = time.perf_counter() - started
    say(
        f"QLoRA, {count} answers: rollouts of {tokens}{note}",
        peak_gb=peak,
        seconds=took,
        ms_a_token=1000 * took / tokens,
    )
    group = Group(prompt, [token_ids(scale.answer, generator) for _ in range(count)])
    model.train()
    for way in ways:

        def train(way=way):
            with half:
                if way == "packed":
                    scored = packed.completion_logps(model, [group])
                else:
                    scored = two_phase.completion_logps(model, [group])
                advantages = torch.linspace(-1, 1, count, device=scale.device)[:, None]
                (-(scored.logps * advantages * scored.mask).sum() / scored.mask.sum()).backward()
            optimizer.step()
            optimizer.zero_grad()

        train()
        before = allocated()
        started = time.perf_counter()
        _, peak = peak_of(train)
        found = {"peak_gb": peak, "activations_gb": peak - before, "seconds": time.perf_counter() - started}
        say(f"QLoRA, {count} answers: step, {way}{note}", ok=True, **found)


if __name__ == "__main__":
    raise SystemExit(measured(Path(sys.argv[1]), sys.argv[2:]))
