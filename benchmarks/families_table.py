"""docs/families.md from benchmarks/results/families.json.

python benchmarks/families_table.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS, TABLE = ROOT / "benchmarks" / "results" / "families.json", ROOT / "docs" / "families.md"
NEAR = 1e-4
TEXT = """# Families of models

Causal families of transformers {transformers}, built small with random weights, as `benchmarks/families.py` found them
on {date}. For each, log-probabilities and gradients of the engine were compared with
plain float64 of each row alone, greedy answers with the likeliest tokens, and a step of each method was trained.

- **shared**: each prompt is computed once for all its completions, in rows longer than a sliding window, too; **up to a
  length**: in rows up to the length that its rotary positions were made for, or up to its window where its layers do
  not tell it; longer ones are padded.
- **padded**: each completion in a row of its own, padded on the right. The results are the same, and a prompt is
  computed as often as it has completions.
- **alone**: what stands behind a token changes it in this implementation, so that rows can't stand beside each other.

The last column has what does not work. A reward model needs a class with a score head, which transformers does not have
for every family.

{table}

Not built in this size: {not_built}.{left_out}

All were measured with one revision in one run{elsewhere}. Other families than these have not been
tried: `benchmarks/families.py NAME` adds one.
"""


def page(result: dict[str, Any]) -> str:
    figures = result["figures"]
    built = {name: one for name, one in figures.items() if "methods" in one}
    rows = [("family", "completions", "why not shared", "apart", "does not work"), ("---",) * 5]
    rows += [(name, way(one), why(one), apart(one), failures(one)) for name, one in built.items()]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    missing = ", ".join(name for name, one in figures.items() if "not_built" in one)
    left_out = ", ".join(name for name, one in figures.items() if "left_out" in one)
    versions = result["versions"]["transformers"]
    rest = "; ".join(name for name in result.get("elsewhere", {}).get("rows", ()) if name in built)
    return TEXT.format(
        transformers=versions,
        date=result["date"],
        table=table,
        not_built=missing,
        left_out=f" Left out, since a pass takes minutes: {left_out}; a test has it smaller." if left_out else "",
        elsewhere=f", but for {rest}, which are of another" if rest else "",
    )


def way(one: dict[str, Any]) -> str:
    return one.get("way", "none").replace("shared up", "shared, up")


def why(one: dict[str, Any]) -> str:
    """What the engine said."""
    return one.get("why") or ""


def apart(one: dict[str, Any]) -> str:
    """The largest difference of a log-probability, and of a gradient by the largest gradient."""
    return f"{max(one['logps_apart'], one['gradients_apart']):.0e}" if "gradients_apart" in one else ""


def failures(one: dict[str, Any]) -> str:
    found = [one["error"]] if "error" in one else []
    found += [f"{one['tokens_wrong']} greedy tokens are not the likeliest"] if one.get("tokens_wrong") else []
    found += ["reward_model: no such class" if no_class(text) else f"{name}: {text}" for name, text in wrong(one)]
    return "; ".join(found).replace("|", "\\|")


def wrong(one: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, text) for name, text in one["methods"].items() if text != "ok"]


def no_class(text: str) -> bool:
    return "no such model with a score head" in text


if __name__ == "__main__":
    TABLE.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"written to {TABLE}")
