"""How a GRPO step's time and memory grow with the answers to a prompt and with the prompt, ours beside TRL's: a plot.

    pip install matplotlib
    python -m benchmarks.growth [--most-tokens 40000]

The model and the way of measuring are those of `benchmarks.vs_trl`: the sides in turn, one step to warm up and one
that counts. A point whose rows TRL would fill with more than `--most-tokens` is left out on its side. Points that
the results already have are not measured again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import vs_trl
from benchmarks.record import record

ANSWER = 64  # tokens
GENERATIONS = [2, 4, 8, 16, 32, 64]
PROMPTS = [64, 128, 256, 512, 1024, 2048, 4096]
SIDES = {"ours": "rlhf", "trl": "TRL"}
WORK = {
    **{f"P 512, G {g}": {"prompt": 512, "completion": ANSWER, "generations": g} for g in GENERATIONS},
    **{f"P {p}, G 8": {"prompt": p, "completion": ANSWER} for p in PROMPTS},
}
MEASURES = [("seconds", "seconds a step", [2, 5, 10, 20, 50]), ("mb", "MB over the start", [500, 1000, 2000])]
RESULTS = Path(__file__).parent / "results" / "growth.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most-tokens", type=int, default=40_000)
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8"))["figures"] if RESULTS.exists() else {}
    for name, work in WORK.items():
        tokens = (work["prompt"] + ANSWER) * work.get("generations", 8)
        sides = [
            side
            for side in SIDES
            if side not in results.get(name, {}) and (side == "ours" or tokens <= args.most_tokens)
        ]
        for side, found in vs_trl.in_turn("grpo", work, sides, 1, Path()).items():
            results.setdefault(name, {})[side] = {"seconds": round(found["times"][1], 2), "mb": round(found["mb"], 2)}
        print(name, results[name], flush=True)
        record("growth", results)
    draw(results, RESULTS.with_suffix(".svg"))


def draw(results: dict[str, dict[str, Any]], file: Path) -> None:
    """Four panels: seconds and megabytes, by answers and by prompt."""
    from matplotlib import pyplot

    panels = [("answers to a prompt of 512 tokens", "P 512, G {}", GENERATIONS)]
    panels += [("tokens of a prompt with 8 answers", "P {}, G 8", PROMPTS)]
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), layout="constrained")
    for column, (label, name, values) in enumerate(panels):
        for row, (measure, unit, ticks) in enumerate(MEASURES):
            axis = axes[row][column]
            for side, legend in SIDES.items():
                points = [(v, results.get(name.format(v), {}).get(side)) for v in values]
                measured = [(v, found[measure]) for v, found in points if found]
                axis.plot(*zip(*measured, strict=True), marker="o", label=legend)
            axis.set(xscale="log", yscale="log", xlabel=label, ylabel=unit, xticks=values, xticklabels=values)
            axis.set(yticks=ticks, yticklabels=ticks)
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            axis.legend(loc="upper left")
    figure.savefig(file)


if __name__ == "__main__":
    main()
