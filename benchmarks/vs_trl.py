"""Our trainers beside TRL's, on equal work: seconds a step (SFT: of all steps) and peak memory.

    python -m benchmarks.vs_trl grpo [--work NAME …] [--rounds 3] [--steps 3]
    python -m benchmarks.vs_trl dpo | orpo | reward_model | sft

Each side runs in a process of its own, turn by turn, on a machine that does nothing else; a figure is the median over
the rounds of TRL's value divided by ours in the same round. Threads are as torch has them, on our side memory is
settled as `rlhf run` does it. `trl` is stock; `trlc` is TRL made to score completion positions only on the CPU, as it
does on CUDA. The model is a Qwen3 of 8 layers, width 512 and 8,192 tokens, random weights in float32, full fine-tuning
unless `lora`. GRPO's answers are sampled by the same random numbers on both sides, and the work counts only if the
tokens are the same. Memory is the process's peak from the beginning of training over what it held then, gradients and
optimizer included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.record import record

ENDS = 64  # of the 8,192 tokens end an answer, so that answers differ in length

# P prompt tokens, C tokens an answer may have, G answers a prompt
GRPO: dict[str, dict[str, Any]] = {
    "P 512, C 128, G 8": {"prompt": 512, "completion": 128},
    "P 512, C 128, 4 x 8, accumulation 4": {"prompt": 512, "completion": 128, "gradient_accumulation_steps": 4},
    "P 512, C 128, G 8, 2 iterations": {"prompt": 512, "completion": 128, "num_iterations": 2},
    "P 512, C 128, G 8, LoRA, beta 0.04": {"prompt": 512, "completion": 128, "lora": True, "beta": 0.04},
    "P 1024, C 256, G 8": {"prompt": 1024, "completion": 256},
    "P 32, C 64, G 8": {"prompt": 32, "completion": 64},
}
PAIRS = "preference_question_chosen_rejected.jsonl"
CHATS = "medical_sft_sharegpt.jsonl"
WORK: dict[str, dict[str, dict[str, Any]]] = {
    "grpo": GRPO,
    "dpo": {"real pairs, batch 8": {"data": PAIRS, "batch": 8}},
    "orpo": {"real pairs, batch 8": {"data": PAIRS, "batch": 8}},
    "reward_model": {"real pairs, batch 8": {"data": PAIRS, "batch": 8}},
    "sft": {"real conversations, batch 16": {"data": CHATS, "batch": 16}},
}
SIDES = {
    "grpo": ("ours", "trl", "trlc"),
    "dpo": ("ours", "trl", "trlc"),
    "orpo": ("ours", "trl"),
    "reward_model": ("ours", "trl"),
    "sft": ("ours", "trl", "packing"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("method", choices=list(WORK))
    parser.add_argument("--work", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print("\n" + json.dumps(one_side(args.method, args.side, json.loads(args.work[0]), args)))
        return
    written = Path(__file__).parent / "results" / f"vs_trl_{args.method}.json"
    results = json.loads(written.read_text())["figures"] if args.work and written.exists() else {}
    for name in args.work or WORK[args.method]:
        work = WORK[args.method][name]
        rounds = [{side: child(args, work, side) for side in SIDES[args.method]} for _ in range(args.rounds)]
        results[name] = compared(rounds)
        results[name] |= {"rounds": args.rounds, "steps": args.steps, "threads": os.environ.get("OMP_NUM_THREADS")}
        print(name, json.dumps(results[name]), flush=True)
        record(f"vs_trl_{args.method}", results)


def child(args: argparse.Namespace, work: dict[str, Any], side: str) -> dict[str, Any]:
    """`one_side` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.vs_trl", args.method, "--work", json.dumps(work), "--side", side]
    command += ["--steps", str(args.steps), "--data", str(args.data)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def compared(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    work = {json.dumps(side["work"]) for one in rounds for name, side in one.items() if name != "packing"}
    result: dict[str, Any] = {"equal_work": len(work) == 1}
    for measure in ("seconds", "mb"):
        for side in rounds[0]:
            result[f"{side}_{measure}"] = round(statistics.median(one[side][measure] for one in rounds), 2)
            if side != "ours":
                ratios = [one[side][measure] / one["ours"][measure] for one in rounds]
                result[f"{side}_over_ours_{measure}"] = round(statistics.median(ratios), 2)
    if "generation" in rounds[0]["ours"]:
        ratios = [one["trl"]["generation"] / one["ours"]["generation"] for one in rounds]
        result["generation_over_ours"] = round(statistics.median(ratios), 2)
    return result


def one_side(method: str, side: str, work: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Seconds a step (SFT: of all steps), megabytes over the start, and what shows that the work was the same."""
    import torch
    import transformers

    from rlhf_core.training import memory

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    if side == "trlc":
        import trl.trainer.utils

        trl.trainer.utils._use_triton = lambda device: True  # asked there only for which positions to score
    with tempfile.TemporaryDirectory() as folder:
        build = grpo if method == "grpo" else on_data
        trainer, done = build(method, side, work, args, folder)
        if side == "ours":
            memory.settle(trainer.model)
        clock = Clock()
        trainer.add_callback(clock.callback())
        with Peak() as peak, contextlib.redirect_stdout(sys.stderr):
            trainer.train()
    if method == "sft":  # packed, a step holds another number of conversations: the whole little epoch
        return {"seconds": sum(clock.times), "mb": peak.megabytes, **done(args.steps)}
    repeats = work.get("num_iterations", 1)
    times = [sum(clock.times[i : i + repeats]) for i in range(0, len(clock.times), repeats)]
    return {"seconds": statistics.median(times[1:]) / repeats, "mb": peak.megabytes, **done(args.steps)}


class Clock:
    """Seconds of each optimizer step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def callback(self) -> Any:
        from transformers import TrainerCallback

        clock = self

        class Steps(TrainerCallback):
            def on_step_begin(self, args, state, control, **_):
                clock.begun = time.perf_counter()

            def on_step_end(self, args, state, control, **_):
                clock.times.append(time.perf_counter() - clock.begun)

        return Steps()


class Peak:
    """Most memory that this process held within the block, over what it held at its beginning."""

    def __enter__(self) -> Peak:
        self.start = self.now()
        self.most = self.start
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.stop.wait(0.002):
            self.most = max(self.most, self.now())

    def now(self) -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        self.megabytes = self.most - self.start


def model_of(task: str = "causal_lm") -> Any:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification

    config = Qwen3Config(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        tie_word_embeddings=False,
        eos_token_id=list(range(ENDS)),
        pad_token_id=0,
        num_labels=1,
    )
    torch.manual_seed(0)
    model = (Qwen3ForCausalLM if task == "causal_lm" else Qwen3ForSequenceClassification)(config)
    model.config._name_or_path = model.name_or_path = "random"
    return model


def adapter(work: dict[str, Any]) -> Any:
    from peft import LoraConfig

    if "lora" not in work:
        return None
    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def grpo(method: str, side: str, work: dict[str, Any], args: argparse.Namespace, folder: str) -> tuple[Any, Any]:
    import torch
    from datasets import Dataset
    from rlhf_method_grpo.trainer import SharedPrefixGRPOTrainer
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from rlhf_core import embedded
    from rlhf_core.prefix import decoding, share

    settings = {key: work[key] for key in ("gradient_accumulation_steps", "num_iterations", "beta") if key in work}
    tokenizer = AutoTokenizer.from_pretrained(embedded.MODEL)
    model = model_of()
    if side == "ours":
        share(model)
    trainer = (SharedPrefixGRPOTrainer if side == "ours" else GRPOTrainer)(
        model=model,
        args=GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=work.get("generations", 8),
            num_generations=work.get("generations", 8),
            max_completion_length=work["completion"],
            max_steps=args.steps * settings.get("num_iterations", 1) + settings.get("num_iterations", 1),
            learning_rate=1e-5,
            use_cpu=True,
            bf16=False,
            **(quiet() | {"gradient_accumulation_steps": 1} | settings),
        ),
        reward_funcs=[lambda completion_ids, **_: [float(sum(ids) % 97) for ids in completion_ids]],
        train_dataset=Dataset.from_list([{"prompt": str(i)} for i in range(400)]),
        processing_class=tokenizer,
        peft_config=adapter(work),
    )
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(100, 8000, (400, work["prompt"]), generator=generator).tolist()
    trainer._tokenize_prompts = lambda texts: ([prompts[int(text)] for text in texts], None, {})
    table = Numbers(work["completion"])
    decoding.chances = table.chances
    torch.multinomial = table.multinomial
    generate, lengths, seconds = trainer._generate_single_turn, [], []

    def timed(ids: Any, *more: Any, **options: Any) -> Any:
        table.begin(len(ids))
        began = time.perf_counter()
        result = generate(ids, *more, **options)
        seconds.append(time.perf_counter() - began)
        lengths.append([len(completion) for completion in result[0]])
        return result

    trainer._generate_single_turn = timed
    return trainer, lambda steps: {"generation": statistics.median(seconds[1:]), "work": lengths[0]}


class Numbers:
    """The same uniform numbers for each answer's tokens on both sides."""

    def __init__(self, tokens: int) -> None:
        import torch

        self.tokens, self.generator = tokens, torch.Generator().manual_seed(2)

    def begin(self, rows: int) -> None:
        import torch

        self.table = torch.rand(rows, self.tokens, dtype=torch.float64, generator=self.generator)
        self.at = 0

    def chances(self, rows: int, sampling: Any) -> Any:
        return self.table

    def multinomial(self, probabilities: Any, num_samples: int) -> Any:
        import torch

        bounds = probabilities.double().cumsum(-1)
        points = self.table[:, self.at, None] * bounds[:, -1:]
        self.at += 1
        return torch.searchsorted(bounds, points, right=True)


def on_data(method: str, side: str, work: dict[str, Any], args: argparse.Namespace, folder: str) -> tuple[Any, Any]:
    """The methods that learn from a file, built by our plugins on our side and from TRL's classes on the other."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from rlhf_core import embedded
    from rlhf_core.prefix import share
    from rlhf_core.training import encode

    tokenizer = AutoTokenizer.from_pretrained(embedded.MODEL)
    lines = (args.data / work["data"]).read_text(encoding="utf-8").splitlines()
    rows = encoded(method, list(map(json.loads, lines)), tokenizer, encode)
    count = (args.steps + 1) * work["batch"]
    data = Dataset.from_list(rows[:count])
    model = model_of("sequence_classification" if method == "reward_model" else "causal_lm")
    if side == "ours":
        share(model)
    common = quiet() | {
        "output_dir": folder,
        "per_device_train_batch_size": work["batch"],
        "num_train_epochs": 1,
        "learning_rate": 1e-5,
        "use_cpu": True,
        "bf16": False,
        "gradient_accumulation_steps": 1,
    }
    trainer = BUILDERS[method](side, model, data, tokenizer, common)
    return trainer, lambda steps: {"work": count}


def encoded(method: str, rows: list[dict[str, Any]], tokenizer: Any, encode: Any) -> list[dict[str, Any]]:
    """Token ids of the file's rows, cut to 1,024 tokens of prompt and 512 of answer, or 1,024 of conversation."""
    from rlhf_core.plugins import Catalog

    result = []
    convert = Catalog().load("formatters", "sharegpt" if method == "sft" else "preference")[0].convert
    for row in rows:
        example = convert(row)
        if method == "sft":
            for ids, labels in encode.conversation(tokenizer, [*(example.prompt or []), *(example.completion or [])]):
                result.append({"input_ids": ids[:1024], "labels": labels[:1024]})
            continue
        prompt, chosen = encode.answered(tokenizer, example.prompt, example.chosen)
        _, rejected = encode.answered(tokenizer, example.prompt, example.rejected)
        pair = {"prompt_ids": prompt[-1024:], "chosen_ids": chosen[:512], "rejected_ids": rejected[:512]}
        if method == "reward_model":
            before = pair.pop("prompt_ids")
            pair = {key: before + ids for key, ids in pair.items()}
        result.append(pair)
    return [{k: [i % 8192 for i in v] if k != "labels" else v for k, v in row.items()} for row in result]


def build_dpo(side: str, model: Any, data: Any, tokenizer: Any, common: dict[str, Any]) -> Any:
    import copy

    from rlhf_method_dpo.trainer import SharedPrefixDPOTrainer
    from trl import DPOConfig, DPOTrainer

    plain = type("Plain", (DPOTrainer,), {"_prepare_dataset": lambda self, data, *rest, **more: data})
    cls = SharedPrefixDPOTrainer if side == "ours" else plain
    args = DPOConfig(max_length=None, **common)
    reference = copy.deepcopy(model)
    return cls(model=model, ref_model=reference, args=args, train_dataset=data, processing_class=tokenizer)


def build_reward_model(side: str, model: Any, data: Any, tokenizer: Any, common: dict[str, Any]) -> Any:
    from rlhf_method_reward_model.trainer import SharedPrefixRewardTrainer
    from trl import RewardConfig, RewardTrainer

    cls = SharedPrefixRewardTrainer if side == "ours" else RewardTrainer
    args = RewardConfig(max_length=None, **common)
    return cls(model=model, args=args, train_dataset=data, processing_class=tokenizer)


def build_orpo(side: str, model: Any, data: Any, tokenizer: Any, common: dict[str, Any]) -> Any:
    if side == "ours":
        from rlhf_method_orpo.trainer import ORPOTrainer
        from transformers import TrainingArguments

        args = TrainingArguments(remove_unused_columns=False, gradient_checkpointing=True, **common)
        return ORPOTrainer(lambda_orpo=0.1, model=model, args=args, train_dataset=data, processing_class=tokenizer)
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    text = data.map(lambda row: {k.removesuffix("_ids"): tokenizer.decode(v) for k, v in row.items()})
    text = text.remove_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
    args = ORPOConfig(max_length=1536, gradient_checkpointing=True, **common)
    return ORPOTrainer(model=model, args=args, train_dataset=text, processing_class=tokenizer)


def build_sft(side: str, model: Any, data: Any, tokenizer: Any, common: dict[str, Any]) -> Any:
    from rlhf_method_sft import one_after_another
    from trl import SFTConfig, SFTTrainer

    packing = {"packing": True, "max_length": 1024} if side == "packing" else {"max_length": 1024}
    if side == "packing":
        common = common | {"per_device_train_batch_size": 4}
    args = SFTConfig(**packing, **common)
    collator = one_after_another if side == "ours" else None
    return SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer, data_collator=collator)


BUILDERS = {"dpo": build_dpo, "orpo": build_orpo, "reward_model": build_reward_model, "sft": build_sft}


def quiet() -> dict[str, Any]:
    return {"report_to": [], "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}


if __name__ == "__main__":
    main()
