"""The result of `rlhf eval` in the terminal, or as plain lines in a pipe. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from rlhf_core.commands import text
from rlhf_tools.results import MODES
from rlhf_tools.table import number

if TYPE_CHECKING:
    from rlhf_core.commands import Screen


def show(screen: Screen, result: Mapping[str, Any]) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("", overflow="fold")
    for title in titles(result):
        table.add_column(text(title), justify="right", overflow="fold")
    for label, cells in rows(result):
        table.add_row(text(label), *map(text, cells))
    screen.console.print()
    screen.say(f"{result['settings']['prompts']} prompts, means with their 95% intervals", "bold")
    screen.console.print(table)
    for note in result["notes"]:
        screen.say(f"Note: {note}")


def titles(result: Mapping[str, Any]) -> tuple[str, str]:
    settings = result["settings"]
    return "greedy", f"{settings['samples']} sampled at temperature {settings['temperature']:g}"


def rows(result: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """(label, a cell for each mode)."""
    modes = [result["results"][mode] for mode in MODES]
    samples, settings = result["settings"]["samples"], result["settings"]
    for name, threshold in settings["threshold"].items():
        own = [mode["rewards"][name] for mode in modes]
        yield name, [interval(one["mean"]) for one in own]
        for k in own[1]["pass"]:
            label = "passes" if k == "1" else f"pass@{k}"
            yield f"  {label} (from {threshold:g})", [interval(one["pass"].get(k)) for one in own]
        if any(one["majority"] for one in own):
            yield f"  majority of {samples}", [interval(one["majority"]) for one in own]
        if any(one["failed"] for one in own):
            yield "  answers it failed on", [str(one["failed"]) for one in own]
    if len(settings["threshold"]) > 1:
        yield "weighted sum", [interval(mode["total"]) for mode in modes]
    yield "length in tokens", [interval(mode["tokens"]) for mode in modes]
    yield "length in characters", [interval(mode["characters"]) for mode in modes]
    yield "ended by themselves", [interval(mode["finished"]) for mode in modes]


def interval(estimate: Mapping[str, Any] | None) -> str:
    """`0.531 [0.412, 0.650]`."""
    if estimate is None:
        return "–"
    if estimate["low"] is None:
        return number(estimate["mean"])
    return f"{number(estimate['mean'])} [{number(estimate['low'])}, {number(estimate['high'])}]"
