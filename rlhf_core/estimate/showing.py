"""How an estimate is shown: a table of memory by phase and component, the verdict, and time."""

from __future__ import annotations

import shlex
from typing import Any

from rich import box
from rich.table import Column, Table

from rlhf_core.estimate.answer import Answer
from rlhf_core.estimate.estimating import Estimate
from rlhf_core.estimate.fitting import Tried
from rlhf_core.estimate.hardware import GB
from rlhf_core.ui.text import duration, gb

SMALL = 0.01  # share of the peak below which a component is shown with the others
LEAST = GB / 20  # bytes, below which nothing is shown
UNCERTAIN = 1.7  # times that a step may be faster or slower than its estimate by a card's figures


def table(estimate: Estimate, width: int) -> Table:
    """Phases in rows; in columns, in GB, the components that are largest somewhere, as many as `width` has room for."""
    names = sorted(_components(estimate), key=lambda name: -_largest(estimate, name))
    names = [name for name in names if _largest(estimate, name) >= max(SMALL * estimate.peak, LEAST)]
    room = width - max(map(len, estimate.phases)) - len(" peak  other  1.2 min ")
    while sum(max(map(len, name.split())) + 1 for name in names) > room:
        names.pop()
    has_time = bool(estimate.seconds)
    columns = [Column(name, justify="right") for name in ("peak", *names, "other", *(["time"] if has_time else []))]
    first = Column("GB", no_wrap=True)
    shown = Table(first, *columns, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)
    for name, phase in estimate.phases.items():
        others = sum(size for part, size in phase.parts.items() if part not in names)
        sizes = [phase.peak, *(phase.parts[part] for part in names), others]
        spent = [duration(estimate.seconds[name]) if name in estimate.seconds else ""] if has_time else []
        style = "bold" if name == estimate.phase else ""
        shown.add_row(name, *(f"{size / GB:.1f}" if size >= LEAST else "" for size in sizes), *spent, style=style)
    return shown


def _components(estimate: Estimate) -> list[str]:
    return list(dict.fromkeys(part for phase in estimate.phases.values() for part in phase.parts))


def _largest(estimate: Estimate, component: str) -> int:
    return max(phase.parts[component] for phase in estimate.phases.values())


def verdict(estimate: Estimate, memory: str) -> str:
    """Whether it fits."""
    more = ""
    if estimate.device.is_gpu:
        more = f": {gb(estimate.peak)} of tensors, and what the allocator and CUDA hold beyond them"
    answer = "Yes" if estimate.fits else "No"
    return f"Does it fit into {memory}? {answer}: {gb(estimate.needed)} in the {estimate.phase}{more}."


def remedy(tried: Tried) -> str:
    fits = "" if tried.estimate.fits else ", which is too much"
    cut = ", and longer rows are left out" if "max_length" in tried.changes else ""
    return f"With {shlex.join(tried.flags())}: {gb(tried.estimate.needed)} in the {tried.estimate.phase}{fits}{cut}."


def one_line(estimate: Estimate) -> str:
    """For the start of a run."""
    parts = estimate.phases[estimate.phase].parts
    largest = sorted(((size, name) for name, size in parts.items() if size > 0.05 * estimate.peak), reverse=True)
    names = ", ".join(f"{name} {gb(size)}" for size, name in largest)
    return f"about {gb(estimate.expected)} of {gb(estimate.device.memory)}, the most in the {estimate.phase} ({names})"


def time_lines(answer: Answer) -> list[str]:
    """How long a step takes and all of them: measured, or by the figures of the card."""
    if probe := answer.probe:
        step, low, high = probe.mean, min(probe.seconds), max(probe.seconds)
        source = f"measured on {probe.device}"
    elif answer.first.seconds:
        step = mean_step(answer.first, answer.share)
        low, high = step / UNCERTAIN, step * UNCERTAIN
        source = f"by the figures of {answer.first.device.name}"
    else:
        return []
    lines = [f"A step takes about {duration(step)} ({source}, {duration(low)} to {duration(high)})."]
    if steps := answer.steps:
        span = f"{duration(low * steps)} to {duration(high * steps)}"
        lines.append(f"{steps:,} steps take about {duration(step * steps)} ({span}).")
    if probe and probe.memory:
        lines.append(f"The measured steps took {gb(max(probe.memory.values()))} at most, on rows as they come.")
    return lines


def mean_step(estimate: Estimate, share: float) -> float:
    """Seconds of a step on rows of mean length: what is computed of a row goes by its tokens."""
    fixed = {"answers", "optimizer step"}
    return sum(seconds * (1 if name in fixed else share) for name, seconds in estimate.seconds.items())


def as_dict(answer: Answer, command: list[str]) -> Any:
    """The result as plain data."""
    return {
        **answer.first.to_dict(),
        "steps": answer.steps,
        "step_seconds": mean_step(answer.first, answer.share) if answer.first.seconds else None,
        "probe": answer.probe.to_dict() if answer.probe else None,
        "remedies": [
            {"options": one.changes, "needed_bytes": one.estimate.needed, "fits": one.estimate.fits}
            for one in answer.tried
        ],
        "command": command,
    }
