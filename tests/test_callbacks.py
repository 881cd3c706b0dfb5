"""Checkpoints are complete and between batches of answers; the failure monitor stops a run whose rewards keep failing."""

from __future__ import annotations

import json

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from rlhf_core.training.callbacks import KEPT_LOGS, WINDOW_STEPS, Checkpoints, FailureMonitor, Metrics
from rlhf_core.training.checkpoint import WRITING, list_checkpoints


class Rewards:
    """What the monitor needs of the runtime."""

    def __init__(self, **counts):
        self.counts = {name: list(pair) for name, pair in counts.items()}
        self.stop_reason = None


@pytest.fixture
def arguments(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    return TrainingArguments(output_dir=str(tmp_path / "checkpoints" / WRITING), report_to=[])


def after_step(callback, arguments, step: int, *, should_save=False, max_steps=100) -> TrainerControl:
    control = TrainerControl(should_save=should_save)
    state = TrainerState(global_step=step, max_steps=max_steps)
    callback.on_step_end(arguments, state, control)
    return control


def test_a_save_that_is_due_waits_for_the_next_boundary(tmp_path, arguments):
    checkpoints = Checkpoints(tmp_path, keep=2, every=4)
    saved = [after_step(checkpoints, arguments, step, should_save=step == 5).should_save for step in range(1, 13)]
    assert saved == [False] * 7 + [True] + [False] * 4


def test_a_save_at_a_boundary_does_not_wait(tmp_path, arguments):
    assert after_step(Checkpoints(tmp_path, keep=2, every=4), arguments, 8, should_save=True).should_save


def test_no_new_folder_is_made_for_one_that_was_renamed(tmp_path, arguments):
    (tmp_path / "checkpoints").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="renamed or removed"):
        after_step(Checkpoints(tmp_path, keep=2, every=1), arguments, 8, should_save=True)


def test_the_last_step_is_saved_wherever_it_is(tmp_path, arguments):
    checkpoints = Checkpoints(tmp_path, keep=2, every=4)
    assert after_step(checkpoints, arguments, 7, should_save=True, max_steps=7).should_save


def test_a_stop_saves_and_stops_at_the_boundary(tmp_path, arguments):
    checkpoints = Checkpoints(tmp_path, keep=2, every=2)
    checkpoints.request_stop("interrupted")
    early = after_step(checkpoints, arguments, 3)
    assert (early.should_save, early.should_training_stop) == (False, False)
    late = after_step(checkpoints, arguments, 4)
    assert (late.should_save, late.should_training_stop) == (True, True)


def test_a_stop_file_asks_for_a_stop(tmp_path, arguments):
    checkpoints = Checkpoints(tmp_path, keep=2, every=2)
    assert not after_step(checkpoints, arguments, 2).should_training_stop
    (tmp_path / "stop").touch()
    assert not after_step(checkpoints, arguments, 3).should_training_stop
    assert after_step(checkpoints, arguments, 4).should_training_stop
    assert checkpoints.stop_reason == Checkpoints.INTERRUPTED


@pytest.mark.parametrize(
    ("reasons", "told"),
    [
        ([None, "the budget is spent"], "the budget is spent"),
        (["interrupted", "the budget is spent"], "the budget is spent"),
        ([None, "interrupted"], "interrupted"),
    ],
)
def test_several_processes_stop_for_the_same_reason(tmp_path, arguments, monkeypatch, reasons, told):
    monkeypatch.setattr("rlhf_core.training.callbacks.reduce", lambda asked, how: asked + 1)
    monkeypatch.setattr("rlhf_core.training.callbacks.gather_object", lambda own: reasons)
    checkpoints = Checkpoints(tmp_path, keep=2, every=1)
    assert after_step(checkpoints, arguments, 1).should_training_stop
    assert checkpoints.stop_reason == told


def save(checkpoints, arguments, tmp_path, step: int) -> None:
    folder = tmp_path / "checkpoints" / WRITING / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    checkpoints.on_save(arguments, TrainerState(global_step=step), TrainerControl())


def test_checkpoints_appear_complete_and_old_ones_are_deleted(tmp_path, arguments):
    checkpoints = Checkpoints(tmp_path, keep=2, every=1)
    for step in (2, 10, 9):
        save(checkpoints, arguments, tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["checkpoint-9", "checkpoint-10"]
    assert not list((tmp_path / "checkpoints" / WRITING).iterdir())


def test_an_incomplete_checkpoint_is_not_found(tmp_path):
    (tmp_path / WRITING / "checkpoint-5").mkdir(parents=True)
    assert list_checkpoints(tmp_path) == []


def test_metrics_are_flat_and_have_no_nan(tmp_path, arguments):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    state = TrainerState(global_step=3, is_world_process_zero=True)
    metrics.on_log(arguments, state, TrainerControl(), logs={"reward": 0.5, "kl": float("nan"), "epoch": 1})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (line["step"], line["reward"], line["kl"], line["epoch"]) == (3, 0.5, None, 1)


def test_a_checkpoint_of_a_long_run_carries_the_newest_logs_alone(tmp_path, arguments):
    state = TrainerState(log_history=[{"step": step} for step in range(KEPT_LOGS + 5)])
    Metrics(tmp_path / "metrics.jsonl").on_log(arguments, state, TrainerControl(), logs={})
    assert [state.log_history[0], len(state.log_history)] == [{"step": 5}, KEPT_LOGS]


def steps(monitor, arguments, counts, number):
    for step in range(1, number + 1):
        monitor.rewards.counts.update({name: list(pair) for name, pair in counts.items()})
        after_step(monitor, arguments, step)


def test_the_monitor_stops_the_run_when_a_reward_asks_for_it(tmp_path, arguments):
    checkpoints = Checkpoints(tmp_path, keep=2, every=1)
    monitor = FailureMonitor(Rewards(judge=(0, 0)), checkpoints)
    after_step(monitor, arguments, 1)
    assert checkpoints.stop_reason is None
    monitor.rewards.stop_reason = "reward 'judge': max_cost=5 is spent"
    after_step(monitor, arguments, 2)
    assert checkpoints.stop_reason == "reward 'judge': max_cost=5 is spent"


@pytest.mark.parametrize(
    ("failed", "number", "stops"),
    [(3, WINDOW_STEPS, True), (2, WINDOW_STEPS, False), (10, WINDOW_STEPS - 1, False), (3, 50, True)],
)
def test_the_monitor_stops_the_run_above_a_fifth_over_twenty_steps(tmp_path, arguments, failed, number, stops):
    checkpoints = Checkpoints(tmp_path, keep=2, every=1)
    monitor = FailureMonitor(Rewards(good=(0, 0), bad=(0, 0)), checkpoints)
    steps(monitor, arguments, {"good": (0, 10), "bad": (failed, 10)}, number)
    reason = "reward 'bad' failed on 30% of its rows in the last 20 steps"
    assert checkpoints.stop_reason == (reason if stops else None)


def test_early_failures_of_a_reward_are_forgotten(tmp_path, arguments):
    monitor = FailureMonitor(Rewards(r=(0, 0)), Checkpoints(tmp_path, keep=2, every=1))
    steps(monitor, arguments, {"r": (10, 10)}, 3)
    steps(monitor, arguments, {"r": (0, 10)}, 40)
    assert monitor.checkpoints.stop_reason is None
