"""What grows with the size of the work: memory and time of long runs, many processes, many runs and many prompts.

    python -m benchmarks.scale steps      100,000 logged steps through our callbacks, in a trainer of one parameter
    python -m benchmarks.scale grpo       2,000 steps of GRPO on the two-layer model, by the command
    python -m benchmarks.scale score      64 `rlhf score` at once
    python -m benchmarks.scale runs       a thousand runs in `runs/`: finding the latest
    python -m benchmarks.scale prompts    200,000 prompts: the dry run of GRPO
    python -m benchmarks.scale pairs      1,000,000 preference pairs (300 MB): until the first step of DPO, twice

A number after the name makes it smaller. Figures are noted at several sizes, so that one sees what isn't flat, or grows
faster than the work. The results are in results/scale.json; a part that is measured again replaces its earlier figures.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from benchmarks.record import machine, record
from rlhf_core import testing

RESULTS = Path(__file__).parent / "results" / "scale.json"
MIB = 1 << 20
GRPO = "--method grpo --reward length --num-eval-prompts 0 --logging-steps 1 --save-steps 500 --num-generations 4 "
GRPO += "--per-device-train-batch-size 4 --gradient-accumulation-steps 1 --max-completion-length 8 "
GRPO += "--lr-scheduler-type constant --no-gradient-checkpointing"


def command(arguments: list[str], **streams: Any) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    line = [sys.executable, "-m", "rlhf_core", *arguments]
    return subprocess.Popen(line, env=environment, **{"stdout": subprocess.DEVNULL, **streams})


def finish(arguments: list[str], **streams: Any) -> dict[str, float]:
    """Seconds and the largest memory of a command, its own processes included."""
    began, process = time.monotonic(), command(arguments, **streams)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise RuntimeError(f"rlhf {shlex.join(arguments)} ended with status {status}")
    return {"seconds": round(time.monotonic() - began, 1), "peak_mib": usage.ru_maxrss // 1024}


@contextmanager
def empty_folder() -> Iterator[Path]:
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        try:
            yield Path(temporary)
        finally:
            os.chdir(before)


def steps(total: int = 100_000) -> list[dict[str, Any]]:
    """At each tenth: time and memory of a logged step, the size of a checkpoint's log, a refresh of the live view."""
    import torch
    from rich.console import Console
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from rlhf_core.training import callbacks
    from rlhf_core.training.checkpoint import WRITING
    from rlhf_core.training.progress import ProgressCallback

    class One(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.weight - x).pow(2).mean()}

    class Figures(TrainerCallback):
        def __init__(self) -> None:
            self.found: list[dict[str, Any]] = []
            self.began, self.processor = time.monotonic(), time.process_time()

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % (total // 10):
                return
            console = Console(file=io.StringIO(), force_terminal=True, width=120, height=40)
            progress.total, before = total, time.process_time()
            console.print(progress._render())
            render = time.process_time() - before
            files = [path.stat().st_size for path in Path("checkpoints").glob("*/trainer_state.json")]
            spent = time.process_time() - self.processor
            self.found.append(
                {
                    "step": state.global_step,
                    "processor_ms_a_step": round(spent / (total // 10) * 1000, 3),
                    "memory_mib": psutil.Process().memory_info().rss // MIB,
                    "trainer_state_kib": max(files, default=0) // 1024,
                    "live_view_ms": round(render * 1000, 1),
                }
            )
            print(self.found[-1], flush=True)
            self.processor = time.process_time()

    with empty_folder() as folder:
        arguments = TrainingArguments(
            str(folder / "checkpoints" / WRITING), max_steps=total, logging_steps=1, save_steps=max(1, total // 100),
            report_to=[], use_cpu=True, disable_tqdm=True, per_device_train_batch_size=1, logging_nan_inf_filter=False,
        )  # fmt: skip
        trainer = Trainer(One(), arguments, train_dataset=[{"x": torch.ones(1)}] * 1000)
        rewards = SimpleNamespace(last=[], counts={}, rewards=[])
        progress, figures = ProgressCallback(Console(file=io.StringIO(), quiet=True), rewards), Figures()
        ours = [callbacks.Checkpoints(folder, 2, 1), callbacks.Metrics(folder / "metrics.jsonl"), progress, figures]
        callbacks.observe(trainer, ours, folder)
        trainer.train()
        return figures.found


def grpo(total: int = 2_000) -> list[dict[str, Any]]:
    """Seconds a step and memory of the process, at each tenth."""
    found: list[dict[str, Any]] = []
    with empty_folder():
        testing.tiny_model(Path("tiny"))
        process = command(["run", *GRPO.split(), "--model", "tiny", "--max-steps", str(total), "--output-dir", "out"])
        one, metrics = psutil.Process(process.pid), Path("out/metrics.jsonl")
        while process.poll() is None:
            time.sleep(0.2)
            step = sum(b"\n" in line for line in metrics.open("rb")) if metrics.exists() else 0
            if step >= (len(found) + 1) * total // 10 and process.poll() is None:
                memory, spent = one.memory_info().rss // MIB, one.cpu_times().user
                found.append({"step": step, "memory_mib": memory, "processor_seconds": round(spent, 1)})
                print(found[-1], flush=True)
        if process.returncode != 0:
            raise RuntimeError(f"the run ended with exit code {process.returncode}")
    return found


def score(processes: int = 64) -> dict[str, Any]:
    """All at once on one file, and one alone: each must give the same result, and leave nothing behind."""
    with empty_folder() as folder:
        rows = ({"prompt": f"{n}?", "completion": "word " * (n % 90), "answer": "word"} for n in range(500))
        Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        line = ["score", "rows.jsonl", "--reward", "length", "--reward", "verifier", "--json"]
        with ExitStack() as files:
            outputs = [files.enter_context(Path(f"{n}.json").open("w")) for n in ("alone", *range(processes))]
            alone, began = finish(line, stdout=outputs[0]), time.monotonic()
            started = [command(line, stdout=output, stderr=subprocess.PIPE) for output in outputs[1:]]
        errors = [process.communicate()[1] for process in started]
        took = round(time.monotonic() - began, 1)
        same = [timeless(Path(f"{n}.json")) == timeless(Path("alone.json")) for n in range(processes)]
        left = sorted(path.name for path in folder.iterdir() if path.suffix != ".json")
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
        return {
            "alone": alone, "processes": processes, "seconds": took, "largest_peak_mib": peak,
            "exit_codes": sorted({process.returncode for process in started}),
            "same_result": sum(same), "said": sorted({error.decode()[:200] for error in errors}), "left": left,
        }  # fmt: skip


def timeless(file: Path) -> Any:
    """A result without the seconds that it took."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without(v) for k, v in value.items() if "second" not in k and "per_second" not in k}
        return [without(item) for item in value] if isinstance(value, list) else value

    return without(json.loads(file.read_text(encoding="utf-8")))


def runs(total: int = 1_000) -> list[dict[str, Any]]:
    """Seconds until `--resume` without a folder has found and read the latest run, with 1, a tenth and all there."""
    found = []
    with empty_folder():
        for count in (1, max(1, total // 10), total):
            for number in range(count):
                folder = Path("runs", f"sft-{number:05}")
                (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
                (folder / "config.yaml").write_text(f"method: sft\nmodel: builtin\nmax_steps: {number + 1}\n")
                os.utime(folder / "config.yaml", (number, number))
                (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n' * 1000)
            took = finish(["run", "--resume", "--help"])
            found.append({"runs": count, **took})
    return found


def prompts(total: int = 200_000) -> list[dict[str, Any]]:
    """Seconds and memory of a dry run, at an eighth, a quarter, half and all of the prompts."""
    found = []
    with empty_folder():
        testing.tiny_model(Path("tiny"))
        for count in (total // 8, total // 4, total // 2, total):
            with Path("rows.jsonl").open("w", encoding="utf-8") as file:
                for n in range(count):
                    question = f"Patient {n} has had a headache for {n % 97} days. Which department is right?"
                    file.write(json.dumps({"question": question, "answer": f"Neurology {n}"}) + "\n")
            line = ["run", *GRPO.split(), "--model", "tiny", "--data", "rows.jsonl", "--dry-run"]
            found.append({"prompts": count, **finish(line)})
            print(found[-1], flush=True)
    return found


def pairs(total: int = 1_000_000) -> list[dict[str, Any]]:
    """Seconds until the first step, and the most memory: of the largest process, and of all together (what they share
    counted once). First without a cache, then from it.
    """
    found = []
    rng = random.Random(0)
    words = "fever cough pain rest water blood pressure heart chest breath days morning night tablet dose test high low"
    with empty_folder() as folder:
        with Path("rows.jsonl").open("w", encoding="utf-8") as file:
            for n in range(total):
                question, chosen, rejected = (" ".join(rng.choices(words.split(), k=k)) for k in (9, 15, 12))
                row = {
                    "question": f"Patient {n}: {question}?",
                    "response_chosen": chosen,
                    "response_rejected": rejected,
                }
                file.write(json.dumps(row) + "\n")
        size = Path("rows.jsonl").stat().st_size
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        for start in ("first", "from the cache"):
            line = ["run", "--method", "dpo", "--data", "rows.jsonl", "--max-steps", "1", "--num-eval-prompts", "0"]
            began, process = time.monotonic(), command([*line, "--output-dir", start])
            one, metrics, most, largest = psutil.Process(process.pid), Path(start, "metrics.jsonl"), 0, 0
            step = looked = 0.0
            status = 0
            while not status:
                time.sleep(0.5)
                ended, code, usage = os.wait4(process.pid, os.WNOHANG)
                status = ended and code + 1
                with suppress(psutil.Error):
                    processes = [one, *one.children(recursive=True)]
                    largest = max(largest, *(each.memory_info().rss for each in processes))
                    if time.monotonic() - looked > 5:  # which takes a while
                        most = max(most, sum(each.memory_full_info().pss for each in processes))
                        looked = time.monotonic()
                if not step and metrics.exists() and metrics.stat().st_size:
                    step = time.monotonic() - began
            if status != 1:
                raise RuntimeError(f"the run ended with status {status - 1}")
            cached = sum(file.stat().st_size for file in (folder / "cache").rglob("*") if file.is_file())
            found.append(
                {
                    "pairs": total,
                    "file_mb": size // 10**6,
                    "start": start,
                    "seconds_to_the_first_step": round(step, 1),
                    "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
                    "largest_process_mib": largest // MIB,
                    "all_processes_mib": most // MIB,
                    "cache_mb": cached // 10**6,
                }
            )
            print(found[-1], flush=True)
    return found


PARTS: dict[str, Callable[..., Any]] = {
    "steps": steps, "grpo": grpo, "score": score, "runs": runs, "prompts": prompts, "pairs": pairs,
}  # fmt: skip


def main() -> None:
    name, *size = sys.argv[1:]
    earlier = json.loads(RESULTS.read_text(encoding="utf-8"))["figures"] if RESULTS.exists() else {}
    figures = PARTS[name](*map(int, size))
    print(json.dumps(figures, indent=1))
    record("scale", {**earlier, name: {"machine": machine(), "measured": figures}})


if __name__ == "__main__":
    main()
