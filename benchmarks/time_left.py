"""Whether the time that a run's screen tells to be left is right: on the recorded steps of real runs.

    python -m benchmarks.time_left RUN [RUN …]

Of each run, which logs every step (`--logging-steps 1`): what the estimate after the fifth step, after a quarter and
after half of the steps is off by, as a share of the time that it really took from there on; beside it, the mean of all
steps. The step times are kept in the result. On a machine that does other things, too, steps tell more of these.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks.record import record
from rlhf_core.outputs import read_lines
from rlhf_core.training.pace import Pace


def period(config: dict[str, Any]) -> int:
    """Steps from one new batch of answers to the next."""
    if config["method"] == "ppo":
        return int(config["num_ppo_epochs"] * config["num_mini_batches"])
    if config["method"] == "grpo":
        per_batch = config.get("steps_per_generation") or config["gradient_accumulation_steps"]
        return max(1, int(per_batch * config["num_iterations"] // config["gradient_accumulation_steps"]))
    return 1


def recorded(folder: Path) -> list[float]:
    """The seconds of each step."""
    lines = [line for line in read_lines(folder / "metrics.jsonl") if "grad_norm" in line]
    first = sum(value for name, value in lines[0].items() if name.startswith("time/"))
    first = first or lines[0].get("step_time") or lines[1]["time"] - lines[0]["time"]  # of an earlier version
    ends = [line["time"] for line in lines]
    return [first, *(round(end - begin, 2) for begin, end in itertools.pairwise(ends))]


def errors(seconds: list[float], estimate: Callable[[list[float]], float]) -> dict[str, float]:
    places = {"5": 5, "quarter": max(5, len(seconds) // 4), "half": len(seconds) // 2}
    return {name: round(estimate(seconds[:at]) / sum(seconds[at:]) - 1, 3) for name, at in places.items()}


def main() -> None:
    figures: dict[str, Any] = {}
    for folder in map(Path, sys.argv[1:]):
        config, seconds = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")), recorded(folder)
        steps = period(config)

        def ours(done: list[float], total: int = len(seconds), steps: int = steps) -> float:
            pace = Pace(0, total, steps)
            for each in done:
                pace.add(each)
            return pace.left() or 0.0

        def mean(done: list[float], total: int = len(seconds)) -> float:
            return sum(done) / len(done) * (total - len(done))

        found = {"method": config["method"], "period": steps, "steps": len(seconds), "off_by": errors(seconds, ours)}
        figures[f"{folder.parent.name}/{folder.name}"] = found | {
            "mean_off_by": errors(seconds, mean),
            "seconds": seconds,
        }
        print(json.dumps(found), "mean of all:", errors(seconds, mean), folder)
    for when in ("5", "quarter", "half"):
        off = [abs(each["off_by"][when]) for each in figures.values()]
        print(f"after {when}: median {median(off):.1%}, within 10 %: {sum(x <= 0.1 for x in off)} of {len(off)}")
    record("time_left", figures)


if __name__ == "__main__":
    main()
