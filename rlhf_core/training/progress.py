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
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback

from rlhf_core.rewards.runtime import RewardRuntime
from rlhf_core.ui.screen import clock, number, question, scores_text, showing, shown, text

BARS = "▁▂▃▄▅▆▇█"
CURVES = {
    **{"reward": "reward", "eval_reward": "held-out reward", "completions/mean_length": "length", "kl": "kl"},
    **{"loss": "loss", "eval_loss": "eval loss"},
}
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
    def __init__(self, console: Console, rewards: RewardRuntime) -> None:
        self.console, self.rewards = console, rewards
        self.history: dict[str, Curve] = {}
        self.sample: Mapping[str, Any] | None = None
        self.live: ExitStack | None = None
        self._sample_due = 0
        self.training = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.begun, self.first_step = time.monotonic(), state.global_step
        self.step, self.total = state.global_step, state.max_steps
        self.training = True
        if self.console.is_terminal:
            self.live = ExitStack()
            view = Live(get_renderable=self._render, console=self.console, refresh_per_second=4)
            self.live.enter_context(showing(view))

    def on_step_end(self, args, state, control, **kwargs):
        self.step = state.global_step
        if self.rewards.samples.last and self.step >= self._sample_due:
            self.sample = {**self.rewards.samples.last[0], "step": self.step}
            self._sample_due = self.step + max(1, self.total // SAMPLES)
            if self.live is None:
                self._print_sample(self.sample)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not self.training:  # an evaluation before or after
            return
        metrics = _metrics(logs or {})
        for name, value in metrics.items():
            self.history.setdefault(name, Curve()).add(value)
        if self.live is None and metrics and "train_runtime" not in (logs or {}):
            numbers = "  ".join(f"{name} {number(value)}" for name, value in metrics.items())
            line = f"step {self.step}/{self.total}  {numbers}  {self._left()} left"
            self.console.print(text(line), soft_wrap=True)

    def on_train_end(self, args, state, control, **kwargs):
        self.training = False
        self.close()

    def close(self) -> None:
        if self.live is not None:
            self.live.close()  # after a last refresh
            self.live = None

    def _left(self) -> str:
        done = self.step - self.first_step
        return clock((time.monotonic() - self.begun) / done * (self.total - self.step)) if done else "?"

    def _render(self) -> Group:
        left = f"{self._left()} left" if self.step > self.first_step else "first step…"
        if self.step >= self.total:
            left = f"took {clock(time.monotonic() - self.begun)}"
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(ratio=1)
        done = ProgressBar(self.total, self.step, complete_style="cyan", finished_style="green")
        bar.add_row(done, f"{self.step}/{self.total}", left)
        curves = Table.grid(padding=(0, 2))
        for name, values in self.history.items():
            width = max(10, min(60, self.console.width - 32))
            drawn = Text(curve(values.points, width), style="cyan")
            curves.add_row(text(name, "bold"), Text(number(values.last)), drawn)
        return Group(bar, curves, *([self._sample_panel(self.sample)] if self.sample else []))

    def _sample_panel(self, sample: Mapping[str, Any]) -> Panel:
        lines = max(6, self.console.height - len(self.history) - 8)
        body = text(question(sample["prompt"]).strip() + "\n", "dim")
        body.append(shown(sample["completion"].strip()) or "(empty)", style="not dim")
        wrapped = body.wrap(self.console, max(20, self.console.width - 4))[:lines]
        title = f"step {sample['step']} · {scores_text(sample['rewards'])}"
        return Panel(Text("\n").join(wrapped), title=text(title), title_align="left", border_style="dim")

    def _print_sample(self, sample: Mapping[str, Any]) -> None:
        self.console.print(text(f"  sample of step {sample['step']} ({scores_text(sample['rewards'])})", "bold"))
        lines = f"{question(sample['prompt'])}\n{sample['completion'].strip() or '(empty)'}"
        for line in lines.split("\n"):
            self.console.print(text(f"  │ {line}"), soft_wrap=True)


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
    if "reward" in metrics:
        metrics.pop("loss", None)  # a policy-gradient loss hovers around zero and means nothing
    return metrics
