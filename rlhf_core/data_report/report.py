"""What `rlhf data inspect`, `validate` and `convert` print."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rlhf_core.data_report import view_show
from rlhf_core.ui.screen import Screen

LABEL = 14  # columns
SHOWN = 20  # rows that were left out of a conversion


def show(screen: Screen, result: Mapping[str, Any]) -> None:
    screen.say(f"{result['source']}: {result['total']:,} rows, for methods that need {result['need']}", "bold")
    for label, value in lines(result):
        screen.say(f"  {label:{LABEL}}{value}")
    view_show.show(screen, result["examples"])
    _warn(screen, result["warnings"])


def _warn(screen: Screen, warnings: Iterable[str]) -> None:
    for warning in warnings:
        screen.say(f"Warning: {warning}", "yellow")


def lines(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(label, text) of each line."""
    yield from _format(result)
    yield "usable", f"{result['usable']:,} of {result['total']:,} rows"
    yield from left_out(result)


def left_out(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A line for each reason."""
    for reason in result["left_out"]:
        longest = f", the longest {reason['longest']:,}" if "longest" in reason else ""
        yield "left out", f"{reason['rows']:,} {reason['kind']}: {reason['text']}{longest} ({reason['first']})"


def _format(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    matched = ", ".join(own if own == name else f"{own} (here {name})" for own, name in result["columns"].items())
    yield "format", f"{result['format']}, by the columns {matched}" if matched else result["format"]
    if len(result["rows"]) > 1:
        yield "", ", ".join(f"{name}: {count:,} rows" for name, count in result["rows"].items())
    if others := result["runners_up"]:
        yield "also fits", "; ".join(f"{name} ({', '.join(columns)})" for name, columns in others.items())
    for part, columns in result["used"].items():
        yield part, f"from {', '.join(columns)}"
    if result["unused"]:
        yield "not used", ", ".join(name or "(no name)" for name in result["unused"])


def show_checks(screen: Screen, result: Mapping[str, Any]) -> None:
    """A line for each check, then one for every row that can't be used."""
    screen.say(f"{result['source']}: {'passed' if result['passed'] else 'failed'}", "bold")
    for check in result["checks"]:
        mark, style = ("✓", "green") if check["passed"] else ("✗", "red")
        screen.say(f"  {mark} {check['check']}: {check['text']}", style)
    for row in result["bad_rows"]:
        screen.say(bad_row(row))
    _warn(screen, result["warnings"])


def bad_row(row: Mapping[str, Any]) -> str:
    where = row["file"] if row["line"] is None else f"{row['file']}:{row['line']}"
    return f"{where}: {row['kind']}: {row['reason']}"


def show_conversion(screen: Screen, result: Mapping[str, Any]) -> None:
    """What was written, and what was not."""
    of = f"{result['written']:,} of {result['total']:,} rows, read as {result['format']}"
    screen.say(f"{result['output']}: {of}, as {result['to']}", "bold")
    for label, names in (("also written", result["carried_over"]), ("not written", result["not_carried_over"])):
        if names:
            screen.say(f"  {label:{LABEL}}{', '.join(name or '(no name)' for name in names)}")
    _warn(screen, result["warnings"])
    for row in result["bad_rows"][:SHOWN]:
        screen.say(bad_row(row))
    if (more := len(result["bad_rows"]) - SHOWN) > 0:
        screen.say(f"and {more:,} more rows (--json has all)")
