"""What a person sees of a run, in a terminal and in a pipe."""

from __future__ import annotations

import io
import os
import re
from types import SimpleNamespace

import pytest
from rich.cells import cell_len
from rich.console import Console
from transformers import TrainerState

from rlhf_core.training.evaluation import Evaluation
from rlhf_core.training.pace import Pace, Rates
from rlhf_core.training.progress import BARS, POINTS, Curve, ProgressCallback, curve
from rlhf_core.ui.screen import Screen, Terminal

PROMPT = [{"role": "system", "content": "s"}, {"role": "user", "content": "发热三天，是什么病？"}]
SAMPLE = {"step": 1, "prompt": PROMPT, "completion": "[bold]流感[/bold]", "rewards": {"r": 0.5}, "columns": {}}


def screen(*, terminal: bool, width: int = 80) -> tuple[Screen, io.StringIO]:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=width, height=40, highlight=False, color_system=None)
    return Screen(console=console), stream


def train(shown: Screen, steps: int = 20, extra: dict | None = None) -> None:
    progress = ProgressCallback(shown.console, SimpleNamespace(samples=SimpleNamespace(last=[SAMPLE])))
    state = TrainerState(max_steps=steps)
    args = SimpleNamespace(world_size=2, train_batch_size=1, gradient_accumulation_steps=1)
    progress.on_train_begin(args, state, None)
    for step in range(1, steps + 1):
        state.global_step = step
        progress.on_step_end(args, state, None)
        logs = {"loss": 0.1, "reward": step / steps, "completions/mean_length": 40.0, "kl": 1e-5, **(extra or {})}
        progress.on_log(None, state, None, logs=logs)
    progress.on_log(None, state, None, logs={"train_runtime": 3.0})
    progress.on_train_end(None, state, None)


def test_a_pipe_gets_plain_lines():
    shown, stream = screen(terminal=False)
    train(shown)
    lines = stream.getvalue().splitlines()
    assert "step 10/20  reward 0.500  length 40.0  kl 1.0e-05  0:00 left" in lines
    assert sum(line.startswith("step ") for line in lines) == 20
    assert "  │ [bold]流感[/bold]" in lines
    assert sum("sample of step" in line for line in lines) == 10
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_gets_progress_curves_and_a_sample(width):
    shown, stream = screen(terminal=True, width=width)
    train(shown)
    text = stream.getvalue()
    for part in ("20/20", "took 0:00", "reward", "▁", "█", "[bold]流感[/bold]", "发热三天", "step 19 · r 0.500"):
        assert part in text


def test_a_terminal_gets_a_bar_and_the_time_that_is_left(monkeypatch):
    """The third line is of another source: its time is its own."""
    shown, stream = screen(terminal=True)
    now = iter([0.0, 10.0, 100.0, 104.0])
    with shown.working("Reading …") as progress:
        monkeypatch.setattr("rlhf_core.ui.screen.time", SimpleNamespace(monotonic=lambda: next(now)))
        lines = []
        for rows, share in ((0, 0.0), (1000, 0.25), (0, 0.1), (500, 0.3)):
            progress(f"a.jsonl: {rows} rows …", share)
            stream.truncate(0)
            shown.console.print(progress.status.status)
            lines.append(stream.getvalue())
        progress("Reading the rest …")
    assert "rows … ━" in lines[1]
    assert "25% 0:30 left" in lines[1]
    assert "left" not in lines[2]
    assert "30% 0:14 left" in lines[3]


def test_a_terminal_of_no_columns_shows_everything_all_the_same(monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    assert Terminal(file=io.StringIO(), force_terminal=True).width == 80


def test_the_width_follows_the_terminals(monkeypatch):
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    sizes = [os.terminal_size((100, 30))]
    monkeypatch.setattr("os.get_terminal_size", lambda descriptor: sizes[-1])
    terminal = Terminal(file=io.StringIO(), force_terminal=True)
    assert terminal.size == (100, 30)
    sizes.append(os.terminal_size((60, 20)))
    assert terminal.size == (60, 20)


def test_several_rewards_each_get_a_curve():
    shown, stream = screen(terminal=False)
    train(shown, extra={"rewards/a/mean": 0.25, "rewards/b/mean": None, "rewards/a/std": 1.0})
    assert "a 0.250" in stream.getvalue()
    assert "std" not in stream.getvalue()


def evaluation(score: float, answer: str) -> Evaluation:
    return Evaluation({}, {"r": score, "n": None}, 12.0, 1.0, [PROMPT] * 3, [answer] * 3, [{"r": score, "n": None}] * 3)


def test_before_and_after():
    shown, stream = screen(terminal=False)
    shown.results(evaluation(0.25, "vorher"), evaluation(0.75, ""))
    text = stream.getvalue()
    for part in ("3 held-out prompts", "0.250", "0.750", "12.0", "vorher", "(empty)", "Example 2", "–"):
        assert part in text
    assert "Example 3" not in text


def test_no_before_when_there_is_none():
    shown, stream = screen(terminal=False)
    shown.results(None, evaluation(0.75, "x"))
    assert "0.750" in stream.getvalue()


def test_other_processes_are_quiet(capsys):
    Screen(quiet=True).say("nothing")
    assert capsys.readouterr().out == ""


def test_a_curve_of_a_long_run_has_the_shape_of_all_of_it_in_few_points():
    made = Curve()
    for value in range(100_000):
        made.add(float(value))
    assert POINTS / 2 <= len(made.points) < POINTS
    assert made.last == 99_999
    assert [point - before for before, point in zip(made.points, made.points[1:], strict=False)] == [128.0] * (
        len(made.points) - 1
    )
    assert made.points[0] == sum(range(128)) / 128


def test_curves():
    assert curve([0, 1, 2, 3, 4, 5, 6, 7], 10) == BARS
    assert curve([5.0], 10) == BARS[0]
    assert curve([0.0] * 50 + [1.0] * 50, 10) == BARS[0] * 5 + BARS[-1] * 5
    assert len(curve(list(range(97)), 40)) == 40


@pytest.mark.parametrize(("width", "notes"), [(80, 0), (80, 3), (120, 1), (40, 1)])
def test_the_view_fits_into_24_rows_and_says_rates_memory_and_notes(width, notes):
    stream = io.StringIO()
    console = Terminal(file=stream, force_terminal=True, width=width, height=24, color_system=None)
    rows = [{**SAMPLE, "completion": "很长的回答。" * 400, "tokens": 50}] * 4
    progress = ProgressCallback(console, SimpleNamespace(samples=SimpleNamespace(last=rows)))
    progress.notes = [f"length explains the reward {i}: " + "x" * 200 for i in range(notes)]
    state, args = TrainerState(max_steps=40), SimpleNamespace(world_size=2)
    progress.on_train_begin(args, state, None)
    progress.since -= 2.0
    state.global_step = 3
    progress.on_step_end(args, state, None)
    logs = {"reward": 0.5, "eval_reward": 0.25, "kl": 0.1, "memory/peak_gb": 1.25, "memory/free_gb": 20.0}
    logs |= {"judge/cost": 1.5, "other/cost": 0.25}
    progress.on_log(args, state, None, logs=logs | {f"rewards/很长的奖励名称很长很长{i}/mean": 0.5 for i in range(3)})
    progress.close()
    with console.capture() as capture:
        console.print(progress._render())
    lines = capture.get().splitlines()
    assert len(lines) <= 23
    assert max(map(cell_len, lines)) <= width
    assert re.match(r"[34]\.\d answers/s · (19\d|200) tokens/s", lines[1])
    if width > 40:
        assert "$1.75 spent · 1.2 GB of memory at most · 20.0 GB" in lines[1]
        assert any(line.startswith("held-out reward") for line in lines)
    assert sum(line.startswith("! length explains") for line in lines) == min(2, notes)


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    shown, stream = screen(terminal=True)
    train(shown)
    assert "step 10/20  reward 0.500" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_the_time_left_of_steps_that_sample_by_turns_and_are_evaluated():
    """The first step takes 9 s for 4: batches of answers serve three steps, 4 + 1 + 1 s; an evaluation takes 5 s."""
    pace = Pace(0, 12, period=3, eval_steps=6)
    assert pace.left() is None
    for seconds in (9.0, 1.0, 1.0, 4.0, 1.0):
        pace.add(seconds)
    assert pace.left() == 1 + 6 + 6
    pace.add(1.0)
    pace.evaluated(5.0)
    assert pace.left() == 12 + 5
    for seconds in (4.0, 1.0, 1.0, 4.0, 1.0, 1.0):
        pace.add(seconds)
    assert pace.left() == 0


def test_before_a_second_batch_of_answers_the_first_step_tells_what_one_takes():
    pace = Pace(4, 12, period=4)
    for seconds in (5.0, 1.0):
        pace.add(seconds)
    assert pace.left() == 1 + 1 + 5 + 3


def test_rates_are_those_of_the_latest_seconds():
    rates = Rates()
    assert rates.by_name() == {}
    rates.add(100.0, rows=1)
    for _ in range(5):
        rates.add(10.0, rows=20)
    assert rates.by_name() == {"rows": 2.0}
