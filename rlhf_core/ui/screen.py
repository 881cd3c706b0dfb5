"""What a person sees before and after training: what was resolved, what changed. Needs no torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.segment import Segment
from rich.status import Status
from rich.table import Column, Table
from rich.text import Text

from rlhf_core.credentials import masked
from rlhf_core.data.progress import Progress, silent
from rlhf_core.statistics import without_self
from rlhf_core.ui.text import Output, shown

if TYPE_CHECKING:
    from rlhf_core.training.evaluation import Evaluation

PLAIN_WIDTH = 110
EXAMPLES = 2
BAR = 24  # characters
SURE = 2  # seconds after which the time that is left can be told


class Terminal(Console):
    """The console that everything of ours is printed with: its colours are our own, and no text is read as markup.

    Whatever it prints is `shown`, at the last moment. `text` shows it before it is measured and laid out.
    """

    def __init__(self, *, stderr: bool = False, **settings: Any) -> None:
        stream: Any = sys.stderr if stderr else sys.stdout
        while isinstance(stream, Output | FileProxy):  # both are for what others print
            stream = stream.stream if isinstance(stream, Output) else stream.rich_proxied_file
        super().__init__(**{"file": stream, **settings}, highlight=False, markup=False, emoji=False)
        if not self.width:  # COLUMNS=0. A width that is set no longer follows the terminal's
            self.width = 80

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(shown(segment.text, part=True), segment.style)


def text(content: str, style: str = "") -> Text:
    """`content` for a `Terminal`, with its control characters shown."""
    return Text(shown(content), style=style)


def say_error(message: str) -> None:
    Terminal(stderr=True).print(Text.assemble(("Error:", "bold red"), " ", shown(masked(message))), soft_wrap=True)


@contextmanager
def showing(view: Live | Status) -> Iterator[None]:
    """Show `view`, and above it what others print meanwhile: rich would read colours and links from that."""
    with view:
        for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
            if isinstance(stream, FileProxy):  # view puts back what was there before
                setattr(sys, name, Output(stream, messages=name == "stderr"))
        yield


class Bar:
    """What is being done, with a bar and the time that is left, once that can be told."""

    def __init__(self, status: Status) -> None:
        self.status = status
        self.since = self.first = 0.0  # when the first share was told, and which
        self.last = 2.0

    def __call__(self, what: str, share: float | None = None) -> None:
        if share is None:
            self.status.update(text(what))
            return
        now = time.monotonic()
        if share < self.last:  # of something new
            self.since, self.first = now, share
        self.last, took = share, now - self.since
        line = Table.grid(padding=(0, 1))
        left = took * (1 - share) / (share - self.first) if took > SURE and share > self.first else None
        rest = [f"{share:.0%}", "" if left is None else f"{clock(left)} left"]
        line.add_row(text(what), ProgressBar(total=1, completed=share, width=BAR), *rest)
        self.status.update(line)


class Screen:
    """Writes to the terminal, or plain lines to a pipe. `quiet` writes nothing (processes that are not the first)."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Terminal(quiet=quiet)
        if not self.console.is_terminal:
            self.console.width = PLAIN_WIDTH

    def resolved(self, rows: Sequence[tuple[str, str]]) -> None:
        """What the run is made of, before anything heavy loads."""
        if not self.console.is_terminal:
            for label, value in rows:
                self.say(f"{label:8}{value}")
            return
        table = Table.grid(Column(style="bold", no_wrap=True), Column(overflow="fold"), padding=(0, 2))
        for label, value in rows:
            table.add_row(label, text(value))
        self.console.print(table)
        self.console.print()

    def say(self, content: str, style: str = "") -> None:
        self.console.print(text(content, style), soft_wrap=True)

    @contextmanager
    def working(self, content: str) -> Iterator[Progress]:
        """Show `content` while something takes its time; what it gives shows something else instead, on a terminal,
        with a bar where the share that is done is known.
        """
        if self.console.is_terminal:
            status = self.console.status(text(content))
            with showing(status):
                yield Bar(status)
        else:
            self.say(content)
            yield silent

    def results(self, before: Evaluation | None, after: Evaluation) -> None:
        """The table of before and after, and two answers."""
        self.console.print()
        count = f"{len(after.answers)} held-out prompts, one sampled answer each"
        numbers = (Column(title, justify="right") for title in ("before", "after"))
        table = Table(count if after.answers else "held out", *numbers, box=box.SIMPLE_HEAD)
        then = _numbers(before) if before else {}
        for name, value in _numbers(after).items():
            table.add_row(text(name), number(then.get(name)) if before else "", number(value))
        self.console.print(table)
        for i in range(min(EXAMPLES, len(after.answers))):
            parts: list[Any] = [text(question(after.prompts[i]), "bold")]
            for title, evaluation in (("before", before), ("after", after)):
                if evaluation is not None:
                    heading = " · ".join(filter(None, (title, scores_text(evaluation.scores[i]))))
                    parts.append(Rule(text(heading), align="left", style="dim"))
                    parts.append(text(evaluation.answers[i].strip() or "(empty)"))
            self.console.print(Panel(Group(*parts), title=f"Example {i + 1}", title_align="left", border_style="dim"))


def question(prompt: Any) -> str:
    """The last user message of a prompt."""
    return next((turn["content"] for turn in reversed(prompt) if turn["role"] == "user"), "")


def _numbers(evaluation: Evaluation) -> dict[str, float | None]:
    of_answers = {"length in tokens": evaluation.length, "ended before the limit": evaluation.finished}
    return {**without_self(evaluation.metrics), **evaluation.rewards, **(of_answers if evaluation.answers else {})}


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
