"""What a person sees before and after training: what was resolved, what changed. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from rlhf_core.training.evaluation import Evaluation

PLAIN_WIDTH = 110
EXAMPLES = 2


class Screen:
    """Writes to the terminal, or plain lines to a pipe. `quiet` writes nothing (processes that are not the first)."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, quiet=quiet)
        if not self.console.is_terminal:
            self.console.width = PLAIN_WIDTH

    def resolved(self, rows: Sequence[tuple[str, str]]) -> None:
        """What the run is made of, before anything heavy loads."""
        if not self.console.is_terminal:
            for label, text in rows:
                self.say(f"{label:8}{text}")
            return
        table = Table.grid(Column(style="bold", no_wrap=True), Column(overflow="fold"), padding=(0, 2))
        for label, text in rows:
            table.add_row(label, Text(text))
        self.console.print(table)
        self.console.print()

    def say(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style=style), soft_wrap=True)

    def working(self, text: str) -> Any:
        """A context manager that shows `text` while something takes its time."""
        if self.console.is_terminal:
            return self.console.status(Text(text))
        self.say(text)
        return nullcontext()

    def results(self, before: Evaluation | None, after: Evaluation) -> None:
        """The table of before and after, and two answers."""
        self.console.print()
        count = f"{len(after.answers)} held-out prompts, one sampled answer each"
        numbers = (Column(title, justify="right") for title in ("before", "after"))
        table = Table(count if after.answers else "held out", *numbers, box=box.SIMPLE_HEAD)
        then = _numbers(before) if before else {}
        for name, value in _numbers(after).items():
            table.add_row(name, number(then.get(name)) if before else "", number(value))
        self.console.print(table)
        for i in range(min(EXAMPLES, len(after.answers))):
            parts: list[Any] = [Text(question(after.prompts[i]), style="bold")]
            for title, evaluation in (("before", before), ("after", after)):
                if evaluation is not None:
                    heading = " · ".join(filter(None, (title, scores_text(evaluation.scores[i]))))
                    parts.append(Rule(heading, align="left", style="dim"))
                    parts.append(Text(evaluation.answers[i].strip() or "(empty)"))
            self.console.print(Panel(Group(*parts), title=f"Example {i + 1}", title_align="left", border_style="dim"))


def question(prompt: Any) -> str:
    """The last user message of a prompt."""
    return next((turn["content"] for turn in reversed(prompt) if turn["role"] == "user"), "")


def _numbers(evaluation: Evaluation) -> dict[str, float | None]:
    of_answers = {"length in tokens": evaluation.length, "ended before the limit": evaluation.finished}
    return {**evaluation.metrics, **evaluation.rewards, **(of_answers if evaluation.answers else {})}


def scores_text(scores: Mapping[str, float | None]) -> str:
    """The scores of one answer, each with its reward's name."""
    return ", ".join(f"{name} {number(score)}" for name, score in scores.items())


def number(value: float | None) -> str:
    """A metric in a few characters."""
    if value is None:
        return "–"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def clock(seconds: float) -> str:
    """A duration as M:SS or H:MM:SS."""
    return str(timedelta(seconds=round(seconds))).removeprefix("0:").removeprefix("0")
