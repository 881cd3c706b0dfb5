"""Our trainers beside TRL's, on equal work: seconds (GRPO: of a step; else: of all steps) and peak memory.

    python -m benchmarks.vs_trl grpo [--work NAME …] [--steps 3]
    python -m benchmarks.vs_trl dpo | orpo | reward_model | sft

Each side runs in its own process; the sides take turns, a step each, while the others wait, on a machine that does
nothing else. A figure is the median over all steps but the first of TRL's value divided by ours. Threads are as torch
sets them on both sides. `trl` is stock; `trlc` is TRL patched to score only completion positions on the CPU, as on
CUDA. The model is a Qwen3 of 8 layers, width 512 and 8,192 tokens, random weights in float32, full fine-tuning unless
`lora`. GRPO's answers are sampled by the same random numbers on both sides, and the work counts only if the tokens are
the same. Memory is the process's peak from the beginning of training over what it held then, gradients and optimizer
included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from benchmarks.record import record

READY = "ready for a step"
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
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(one_side(args.method, args.side, json.loads(args.work[0]), args)), file=sys.__stdout__)
        return
    written = Path(__file__).parent / "results" / f"vs_trl_{args.method}.json"
    results = json.loads(written.read_text())["figures"] if args.work and written.exists() else {}
    for name in args.work or WORK[args.method]:
        found = in_turn(args.method, WORK[args.method][name], SIDES[args.method], args.steps, args.data)
        results[name] = compared(args.method, found) | {"steps": args.steps}
        print(name, json.dumps(results[name]), flush=True)
        record(f"vs_trl_{args.method}", results)


def in_turn(
    method: str, work: dict[str, Any], sides: Sequence[str], steps: int, data: Path
) -> dict[str, dict[str, Any]]:
    """`one_side` of each, in separate processes of which only one works at a time: a step each in turn."""
    command = [sys.executable, "-m", "benchmarks.vs_trl", method, "--work", json.dumps(work), "--steps", str(steps)]
    command += ["--data", str(data), "--side"]
    with contextlib.ExitStack() as stack:
        errors = {side: stack.enter_context(tempfile.TemporaryFile("w+")) for side in sides}
        running, found = {}, {}
        for side in sides:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors[side]}
            running[side] = stack.enter_context(subprocess.Popen([*command, side], text=True, **pipes))
            stack.callback(running[side].kill)
            next_line(running[side], errors[side])
        while running:
            for side, process in list(running.items()):
                process.stdin.write("\n")
                process.stdin.flush()
                line = next_line(process, errors[side])
                if line != READY:
                    found[side] = json.loads(line)
                    del running[side]
    return found


def next_line(process: subprocess.Popen[str], errors: IO[str]) -> str:
    """The process's next line: that it is ready for a step, or its result."""
    assert process.stdout
    for line in process.stdout:
        if line.startswith((READY, "{")):
            return line.strip()
    errors.seek(0)
    sys.exit(errors.read()[-3000:])


def compared(method: str, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Seconds of a step in GRPO; elsewhere of all steps together, since packed steps hold different amounts of work."""
    work = {json.dumps(side["work"]) for name, side in found.items() if name != "packing"}
    result: dict[str, Any] = {"equal_work": len(work) == 1}
    times = {name: side["times"][1:] if method == "grpo" else [sum(side["times"])] for name, side in found.items()}
    for side in found:
        result[f"{side}_seconds"] = round(statistics.median(times[side]), 2)
        result[f"{side}_mb"] = round(found[side]["mb"], 1)
        if side != "ours":
            result[f"{side}_over_ours_seconds"] = median_ratio(times[side], times["ours"])
            result[f"{side}_over_ours_mb"] = round(found[side]["mb"] / found["ours"]["mb"], 2)
    if method == "grpo":
        result["generation_over_ours"] = median_ratio(*(found[side]["generation"][1:] for side in ("trl", "ours")))
    return result


def median_ratio(theirs: list[float], ours: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(theirs, ours, strict=True)), 2)


def one_side(method: str, side: str, work: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each step, megabytes over the start, and what shows that the work was the same."""
    import torch
    import transformers

    from benchmarks import vs_trl_sides

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    if side == "trlc":
        import trl.trainer.utils

        trl.trainer.utils._use_triton = lambda device: True  # TRL reads it only to decide which positions to score
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        build = vs_trl_sides.grpo if method == "grpo" else vs_trl_sides.on_data
        trainer, done = build(method, side, work, args, folder)
        times: list[float] = []
        trainer.add_callback(steps_in_turn(times))
        with Peak() as peak:
            trainer.train()
    repeats = work.get("num_iterations", 1)
    times = [sum(times[i : i + repeats]) / repeats for i in range(0, len(times), repeats)]
    return {"times": times, "mb": peak.megabytes, **done()}


def steps_in_turn(times: list[float]) -> Any:
    """A callback that waits for a line before each optimizer step, and adds the step's seconds to `times`."""
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            print(READY, file=sys.__stdout__, flush=True)
            sys.stdin.readline()
            self.begun = time.perf_counter()

        def on_step_end(self, args, state, control, **_):
            times.append(time.perf_counter() - self.begun)

    return Steps()


class Peak:
    """The peak memory of this process within the block, minus its memory at the start of the block (Linux)."""

    def __enter__(self) -> Peak:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak: proc(5)
        self.start = self.peak()
        return self

    def peak(self) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6

    def __exit__(self, *_: object) -> None:
        self.megabytes = self.peak() - self.start


if __name__ == "__main__":
    main()
