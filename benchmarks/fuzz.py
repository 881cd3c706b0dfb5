"""The properties of `tests/properties.py` on many random inputs, for as long as is asked.

    python -m benchmarks.fuzz [MINUTES] [PROPERTY…]

Each property gets an equal share of the time, in rounds of a thousand inputs, each round with its own seed. An input
that breaks one is made as small as it can be and noted, and the property is left there. Hours, inputs and findings are
added to those of earlier runs.
"""

from __future__ import annotations

import json
import random
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, seed, settings
from hypothesis import given as given_by

from benchmarks.record import record
from tests.properties import PROPERTIES

RESULTS = Path(__file__).parent / "results" / "fuzz.json"
ROUND = 1000
MANY = settings(
    max_examples=ROUND, deadline=None, database=None, print_blob=False, suppress_health_check=list(HealthCheck)
)


def fuzz(name: str, seconds: float) -> dict[str, Any]:
    function, strategy = PROPERTIES[name]
    tried, began, seeds, slowest = 0, time.monotonic(), random.Random(), 0.0
    while time.monotonic() - began < seconds:

        def test(example: Any) -> None:
            nonlocal tried, slowest
            if time.monotonic() - began > seconds:
                return
            tried, started = tried + 1, time.process_time()
            try:
                function(example)
            finally:
                slowest = max(slowest, time.process_time() - started)

        this = seeds.getrandbits(32)
        try:
            MANY(seed(this)(given_by(strategy)(test)))()
        except Exception as error:
            lines = [*traceback.format_exception_only(error), *getattr(error, "__notes__", [])]
            where = traceback.extract_tb(error.__traceback__)[-1]
            finding = {
                "seed": this,
                "at": f"{Path(where.filename).name}:{where.lineno}",
                "error": "".join(lines)[:2000],
            }
            return {"inputs": tried, "slowest_ms": round(slowest * 1000), "finding": finding}
    return {"inputs": tried, "slowest_ms": round(slowest * 1000), "finding": None}


def main() -> None:
    minutes, *names = sys.argv[1:] or ["10"]
    names = names or list(PROPERTIES)
    earlier = json.loads(RESULTS.read_text(encoding="utf-8"))["figures"] if RESULTS.exists() else {}
    began, found = time.monotonic(), {}
    for name in names:
        found[name] = fuzz(name, float(minutes) * 60 / len(names))
        print(name, json.dumps(found[name], ensure_ascii=False), flush=True)
    hours = (time.monotonic() - began) / 3600
    inputs = {name: earlier.get("inputs", {}).get(name, 0) + one["inputs"] for name, one in found.items()}
    figures = {
        "hours": round(earlier.get("hours", 0.0) + hours, 2),
        "inputs": {**earlier.get("inputs", {}), **inputs},
        "findings": earlier.get("findings", [])
        + [{"property": name, **one["finding"]} for name, one in found.items() if one["finding"]],
        "slowest_ms": {**earlier.get("slowest_ms", {}), **{name: one["slowest_ms"] for name, one in found.items()}},
    }
    record("fuzz", figures)


if __name__ == "__main__":
    main()
