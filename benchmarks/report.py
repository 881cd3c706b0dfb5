"""How long the page of a long run takes to be written and opened, and how large it is: 2,000 steps of 64 answers.

    python -m benchmarks.report

A short run on the built-in model is repeated, with thoughts of 40 to 200 random words before each answer. The page is
written by `rlhf report` and opened by headless Chromium, each `TIMES` times; medians count. Memory is the most of the
process that writes.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import record
from tests.browser import Browser

STEPS, ANSWERS, GROUP, TIMES = 2000, 64, 8, 5
RLHF = str(Path(sys.executable).with_name("rlhf"))
RUN = ["run", "--method", "grpo", "--reward", "medical_format", "--reward", "medical_keyword", "--max-steps", "12"]


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def prolong(short: Path, folder: Path) -> None:
    """A folder as that of a run of `STEPS` steps would be."""
    folder.mkdir()
    for name in ("config.yaml", "manifest.json", "evaluation.json"):
        shutil.copy(short / name, folder / name)
    rng, samples = random.Random(1), lines(short / "samples.jsonl")
    logged = [row for row in lines(short / "metrics.jsonl") if "reward" in row]
    words = [word for row in samples for word in row["completion"].split()]
    with (
        (folder / "metrics.jsonl").open("w", encoding="utf-8") as metrics,
        (folder / "samples.jsonl").open("w") as file,
    ):
        for step in range(1, STEPS + 1):
            noisy = {k: v * rng.uniform(0.9, 1.1) if isinstance(v, float) else v for k, v in logged[step % 12].items()}
            metrics.write(json.dumps({**noisy, "step": step}) + "\n")
            for _ in range(ANSWERS // GROUP):
                first = rng.randrange(len(samples) // GROUP) * GROUP
                for row in samples[first : first + GROUP]:
                    thought = " ".join(rng.choices(words, k=rng.randrange(40, 200)))
                    text = f"<think>{thought}</think>{row['completion']}"
                    file.write(json.dumps({**row, "step": step, "completion": text}, ensure_ascii=False) + "\n")


def written(folder: Path) -> tuple[float, float]:
    """(seconds, most MB) of `rlhf report`."""
    began = time.perf_counter()
    process = subprocess.Popen([RLHF, "report", str(folder)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return time.perf_counter() - began, usage.ru_maxrss / 1000


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        short, folder = Path(place) / "short", Path(place) / "long"
        subprocess.run([RLHF, *RUN, "--output-dir", str(short)], check=True, stdout=subprocess.DEVNULL)
        prolong(short, folder)
        runs = [written(folder) for _ in range(TIMES)]
        browser = Browser(Path(place) / "profile")
        opened = []
        for _ in range(TIMES):
            began = time.perf_counter()
            browser.open(folder / "report.html")
            opened.append(time.perf_counter() - began)
        problems = browser.problems()
        browser.close()
        figures = {
            "steps": STEPS,
            "answers_of_a_step": ANSWERS,
            "samples_mb": round((folder / "samples.jsonl").stat().st_size / 1e6),
            "page_mb": round((folder / "report.html").stat().st_size / 1e6, 2),
            "written_seconds": [round(seconds, 2) for seconds, _ in runs],
            "written_mb": round(max(most for _, most in runs)),
            "opened_seconds": [round(seconds, 2) for seconds in opened],
            "problems": problems,
        }
    print(json.dumps(figures, indent=2))
    print(f"written in {statistics.median(figures['written_seconds'])} s, opened in {statistics.median(opened):.2f} s")
    record("report", figures)


if __name__ == "__main__":
    main()
