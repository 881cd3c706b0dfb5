"""Our trainers beside TRL's, on equal work: seconds (GRPO: of a step; else: of all steps) and peak memory.

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
    """Seconds, megabytes over the start, and what shows that the work was the same."""
    import torch
    import transformers

    from benchmarks import vs_trl_sides
    from rlhf_core.training import memory

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    if side == "trlc":
        import trl.trainer.utils

        trl.trainer.utils._use_triton = lambda device: True  # asked there only for which positions to score
    with tempfile.TemporaryDirectory() as folder:
        build = vs_trl_sides.grpo if method == "grpo" else vs_trl_sides.on_data
        trainer, done = build(method, side, work, args, folder)
        if side == "ours":
            memory.settle(trainer.model)
        clock = Clock()
        trainer.add_callback(clock.callback())
        with Peak() as peak, contextlib.redirect_stdout(sys.stderr):
            trainer.train()
    if method != "grpo":  # grouped by length or packed, steps are unlike each other: the whole little epoch
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


if __name__ == "__main__":
    main()
