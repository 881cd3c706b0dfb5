"""The live view of a run: progress and time left, small curves, a sample answer now and then; plain lines in a pipe."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.segment import Segments
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback

from rlhf_core.rewards.runtime import RewardRuntime
from rlhf_core.training.pace import Pace, Rates
from rlhf_core.ui.screen import clock, number, question, scores_text, showing, shown, text
from rlhf_core.ui.text import COST, dollars

BARS = "▁▂▃▄▅▆▇█"
CURVES = {
    **{"reward": "reward", "eval_reward": "held-out reward", "completions/mean_length": "length", "kl": "kl"},
    **{"loss": "loss", "eval_loss": "held-out loss"},
}
# What is measured on held-out rows in training; the first of these that is there has a curve.
HELD_OUT = ("eval_reward", "eval_rewards/accuracies", "eval_accuracy", "eval_loss")
NOTES, LABEL, LOWEST_SAMPLE = 2, 20, 5  # lines, characters of a curve's name, lines
REDRAWN = 0.5  # times a second
POINTS = 1024  # an even number, many to a character
SAMPLES = 10  # sample answers shown in the course of a run


class Curve:
    """A metric over the whole run in at most `POINTS` points, each the mean of equally many values."""

    def __init__(self) -> None:
        self.points: list[float] = []
        self.last = 0.0
        self._each, self._open = 1, list[float]()  # values to a point, and those of the next one

    def add(self, value: float) -> None:
        self.last = value
        self._open.append(value)
        if len(self._open) == self._each:
            self.points.append(sum(self._open) / self._each)
            self._open.clear()
        if len(self.points) == POINTS:
            self.points = [(one + other) / 2 for one, other in zip(self.points[::2], self.points[1::2], strict=True)]
            self._each *= 2


class ProgressCallback(TrainerCallback):
    """`period`: steps from one new batch of answers to the next. `notes`: lines that the view shows above its curves,
    such as diagnoses; others may add to them.
    """

    def __init__(
        self, console: Console, rewards: RewardRuntime, period: int = 1, eval_steps: int | None = None
    ) -> None:
        self.console, self.rewards, self.period, self.eval_steps = console, rewards, period, eval_steps
        self.history: dict[str, Curve] = {}
        self.notes: list[str] = []
        self.sample: Mapping[str, Any] | None = None
        self.live: ExitStack | None = None
        self.memory: tuple[float | None, float | None] = (None, None)  # GB at most so far, and free now
        self.spent: dict[str, float] = {}  # dollars so far, by the metrics of the rewards that cost something
        self.training = False
        self._sample_due = 0
        self._drawn: tuple[Any, Segments] | None = None  # what is below the bar, and of when: it is dear to lay out

    def on_train_begin(self, args, state, control, **kwargs):
        self.begun = self.since = time.monotonic()  # since the last step or evaluation
        self.step, self.total = state.global_step, state.max_steps
        self.pace, self.rates = Pace(self.step, self.total, self.period, self.eval_steps), Rates()
        self.training = True
        self._counted: list[dict[str, Any]] | None = None
        if self.console.is_terminal and not self.console.is_dumb_terminal:  # which can't redraw what it has shown
            self.live = ExitStack()
            view = Live(get_renderable=self._render, console=self.console, refresh_per_second=REDRAWN)
            self.live.enter_context(showing(view))

    def on_step_end(self, args, state, control, **kwargs):
        now = time.monotonic()
        self.pace.add(now - self.since)
        self.rates.add(now - self.since, **self._done(args))
        self.step, self.since = state.global_step, now
        if self.rewards.samples.last and self.step >= self._sample_due:
            self.sample = {**self.rewards.samples.last[0], "step": self.step}
            self._sample_due = self.step + max(1, self.total // SAMPLES)
            if self.live is None:
                self._print_sample(self.sample)

    def on_evaluate(self, args, state, control, **kwargs):
        if self.training:
            now = time.monotonic()
            self.pace.evaluated(now - self.since)
            self.since = now

    def _done(self, args: Any) -> dict[str, float]:
        """What the step has done, in all processes: new answers and their tokens, or rows."""
        last = self.rewards.samples.last
        if not last:
            rows = args.train_batch_size * args.gradient_accumulation_steps
            return {"rows": rows * args.world_size}
        if last is self._counted:
            return {}
        self._counted = last
        tokens = sum(each.get("tokens") or 0 for each in last)
        return {"answers": len(last) * args.world_size, "tokens": tokens * args.world_size}

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not self.training:  # an evaluation before or after
            return
        logs = logs or {}
        metrics = _metrics(logs)
        for name, value in metrics.items():
            self.history.setdefault(name, Curve()).add(value)
        if "memory/free_gb" in logs:
            self.memory = logs.get("memory/peak_gb"), logs["memory/free_gb"]
        self.spent |= {name: value for name, value in logs.items() if name.endswith(COST)}
        if self.live is None and metrics and "train_runtime" not in logs:
            numbers = "  ".join(f"{name} {number(value)}" for name, value in metrics.items())
            spent = f"  {dollars(sum(self.spent.values()))} spent" if self.spent else ""
            line = f"step {self.step}/{self.total}  {numbers}{spent}  {self._left()} left"
            self.console.print(text(line), soft_wrap=True)

    def on_train_end(self, args, state, control, **kwargs):
        self.training = False
        self.close()

    def close(self) -> None:
        if self.live is not None:
            self.live.close()  # after a last refresh
            self.live = None

    def _left(self) -> str:
        left = self.pace.left()
        return "?" if left is None else clock(max(0.0, left - (time.monotonic() - self.since)))

    def _render(self) -> Group:
        """At most as high as the terminal: what is too much of it, the sample gives up first, then curves."""
        left = f"{self._left()} left" if self.pace.first is not None else "first step…"
        if self.step >= self.total:
            left = f"took {clock(time.monotonic() - self.begun)}"
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(ratio=1)
        done = ProgressBar(self.total, self.step, complete_style="cyan", finished_style="green")
        bar.add_row(done, f"{self.step}/{self.total}", left)
        return Group(bar, self._below_the_bar())

    def _below_the_bar(self) -> Segments:
        """Laid out anew where a step, a line of metrics, a note or the terminal's size came in between."""
        logged = sum(len(each.points) for each in self.history.values())
        now = (self.step, logged, len(self.notes), self.console.size)
        if self._drawn is None or self._drawn[0] != now:
            self._drawn = now, Segments(list(self.console.render(self._facts_and_curves())))
        return self._drawn[1]

    def _facts_and_curves(self) -> Group:
        notes = [text(f"! {note}", "bold magenta") for note in self.notes[-NOTES:]]
        for note in notes:
            note.truncate(self.console.width, overflow="ellipsis")
        room = self.console.height - 1 - 2 - len(notes)
        curves = self._curves(max(1, room - LOWEST_SAMPLE * (self.sample is not None)))
        rest = room - curves.row_count
        panel = [self._sample_panel(self.sample, rest - 2)] if self.sample and rest >= LOWEST_SAMPLE else []
        facts = text(" · ".join(self._facts()), "dim")
        facts.truncate(self.console.width, overflow="ellipsis")
        return Group(facts, *notes, curves, *panel)

    def _facts(self) -> list[str]:
        """Rates and memory, in words."""
        facts = [f"{rate(value)} {name}/s" for name, value in self.rates.by_name().items()]
        facts += [f"{dollars(sum(self.spent.values()))} spent"] if self.spent else []
        peak, free = self.memory
        for what, size in (("{:.1f} GB of memory at most", peak), ("{:.1f} GB free", free)):
            if size is not None:
                facts.append(what.format(size))
        return facts

    def _curves(self, most: int) -> Table:
        shown = dict(list(self.history.items())[:most])
        width = max(10, min(60, self.console.width - 32))
        curves = Table.grid(padding=(0, 2))
        for name, values in shown.items():
            label = text(name, "bold")
            label.truncate(LABEL, overflow="ellipsis")
            curves.add_row(label, Text(number(values.last)), Text(curve(values.points, width), style="cyan"))
        return curves

    def _sample_panel(self, sample: Mapping[str, Any], lines: int) -> Panel:
        body = text(question(sample["prompt"]).strip() + "\n", "dim")
        body.append(shown(sample["completion"].strip()) or "(empty)", style="not dim")
        wrapped = body.wrap(self.console, max(20, self.console.width - 4))[:lines]
        title = f"sample of step {sample['step']} · {scores_text(sample['rewards'])}"
        return Panel(Text("\n").join(wrapped), title=text(title), title_align="left", border_style="dim")

    def _print_sample(self, sample: Mapping[str, Any]) -> None:
        self.console.print(text(f"  sample of step {sample['step']} ({scores_text(sample['rewards'])})", "bold"))
        lines = f"{question(sample['prompt'])}\n{sample['completion'].strip() or '(empty)'}"
        for line in lines.split("\n"):
            self.console.print(text(f"  │ {line}"), soft_wrap=True)


def rate(value: float) -> str:
    """A rate in a few characters."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def curve(values: Sequence[float], width: int) -> str:
    """`values` as at most `width` block characters, each the average of its part."""
    if len(values) > width:
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(values), max(values)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in values)


def _metrics(logs: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are shown, by short names."""
    numbers = {name: value for name, value in logs.items() if isinstance(value, int | float)}
    metrics = {short: numbers[name] for name, short in CURVES.items() if name in numbers}
    parts = [name for name in logs if name.startswith("rewards/") and name.endswith("/mean")]
    if len(parts) > 1:
        metrics |= {name.split("/")[1]: numbers[name] for name in parts if name in numbers}
    if held_out := next((name for name in HELD_OUT if name in numbers), None):
        metrics[f"held-out {held_out.removeprefix('eval_').rpartition('/')[2]}"] = numbers[held_out]
    if "reward" in metrics:
        metrics.pop("loss", None)  # a policy-gradient loss hovers around zero and means nothing
    return metrics
