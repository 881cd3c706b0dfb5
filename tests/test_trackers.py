"""`--report-to`: what is refused, what each tracker gets, and that a resumed run goes on as the same one there.

Trackio and MLflow are tried for real, on local files, where they are installed: they are no dependency.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from transformers import TrainerCallback

from rlhf_core import unused
from rlhf_core.catalog import Catalog
from rlhf_core.config import resolve
from rlhf_core.errors import UserError
from rlhf_core.training import trackers
from rlhf_core.training.run import train

VARIABLES = (
    "WANDB_MODE",
    "WANDB_API_KEY",
    "WANDB_LOG_MODEL",
    "HF_MLFLOW_LOG_ARTIFACTS",
    "SWANLAB_MODE",
    "SWANLAB_API_KEY",
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (*VARIABLES, "TENSORBOARD_LOGGING_DIR", "MLFLOW_MAX_LOG_PARAMS"):
        monkeypatch.delenv(name, raising=False)
    rows = [{"prompt": f"q{i}", "completion": "a"} for i in range(8)]
    Path("d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@pytest.fixture
def all_installed(monkeypatch):
    monkeypatch.setattr(unused, "is_installed", lambda name: True)


def sft(report_to, **more):
    return resolve({"method": "sft", "report_to": report_to, **more}, Catalog())[0]


def test_the_default_is_tensorboard_and_lists_have_commas_too(all_installed, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert resolve({"method": "sft"}, Catalog())[0].trackers == ["tensorboard"]
    assert sft(["wandb, mlflow", "mlflow", "tensorboard"]).trackers == ["wandb", "mlflow", "tensorboard"]
    assert sft("none").trackers == []


REFUSED = {
    "unknown": (["wanbd"], {}, "one of tensorboard, wandb.* Did you mean 'wandb'"),
    "not included": (["comet_ml"], {}, "--callback NAME"),
    "none and another": (["none", "mlflow"], {}, "none goes alone: leave out mlflow"),
    "uploads": (["wandb"], {"WANDB_LOG_MODEL": "end", "WANDB_MODE": "offline"}, "WANDB_LOG_MODEL=end"),
    "uploads artifacts": (["mlflow"], {"HF_MLFLOW_LOG_ARTIFACTS": "TRUE"}, "HF_MLFLOW_LOG_ARTIFACTS=TRUE"),
    "not logged in": (["wandb"], {}, "wandb login .*WANDB_MODE=offline"),
    "not logged in either": (["swanlab"], {}, "swanlab login .*SWANLAB_MODE=offline"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_is_refused_before_anything_loads(case, all_installed, monkeypatch):
    names, variables, message = REFUSED[case]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        sft(names)


def test_a_tracker_that_is_not_installed_is_refused_with_the_command(monkeypatch):
    monkeypatch.setattr(unused, "is_installed", lambda name: name != "mlflow")
    with pytest.raises(UserError, match="not installed. Install it: pip install mlflow"):
        sft("mlflow")


@pytest.mark.parametrize(("name", "flag"), [("report_to", "--report-to"), ("run_name", "--name")])
def test_the_librarys_own_settings_point_to_the_options(name, flag):
    with pytest.raises(UserError, match=f"--set {name}: write {flag} NAME"):
        resolve({"method": "sft", "set": {name: "x"}}, Catalog())


def run(tiny_model, *, resume: bool = False, **values) -> int:
    values = {
        "method": "grpo",
        "reward": "length",
        "model": str(tiny_model),
        "data": "d.jsonl",
        "max_steps": 2,
        **values,
    }
    values |= {"per_device_train_batch_size": 2, "num_generations": 2, "gradient_accumulation_steps": 1}
    values |= {"max_completion_length": 4, "num_eval_prompts": 0, "logging_steps": 1, "save_steps": 1}
    return train(*resolve(values, Catalog()), Catalog(), resume=resume)


class Fake:
    """A tracker that remembers."""

    begun: list[tuple[str, list[str], str | None]]

    def __init__(self, run, known):
        self.begun.append((run.name, run.config.tag, known))
        self.id = known or f"id-{len(self.begun)}"
        self.tables, self.ended, self.callback = [], 0, TrainerCallback()
        Fake.last = self

    def table(self, columns, rows, step):
        self.tables.append((columns, rows, step))

    def end(self):
        self.ended += 1


def test_a_tracker_gets_name_tags_and_samples_and_goes_on_on_resume(tiny_model, monkeypatch):
    monkeypatch.setattr(Fake, "begun", [], raising=False)
    monkeypatch.setitem(trackers.TRACKERS, "fake", Fake)
    monkeypatch.setattr(unused, "TRACKERS", (*unused.TRACKERS, "fake"))
    monkeypatch.setattr(unused, "is_installed", lambda name: True)
    assert run(tiny_model, name="one", tag=["t"], report_to="fake") == 0
    first = Fake.last
    assert run(tiny_model, output_dir="runs/one", name="one", max_steps=3, report_to="fake", resume=True) == 0
    assert Fake.begun == [("one", ["t"], None), ("one", [], "id-1")]
    assert first.ended == Fake.last.ended == 1
    assert [step for _, _, step in first.tables + Fake.last.tables] == [1, 2, 3]
    columns, rows, _ = first.tables[0]
    assert columns[:3] == ["step", "prompt", "completion"]
    assert "rewards/length" in columns
    assert [row[:2] for row in rows] == [[1, rows[0][1]]] * 2
    assert rows[0][1].startswith("user: q")
    assert not Path("runs/one/tensorboard").exists()


class Gone(TrainerCallback):
    """Of a tracker whose server is gone after the first step."""

    calls = 0

    def on_log(self, args, state, control, **kwargs):
        Gone.calls += 1
        if state.global_step > 1:
            raise ConnectionError("server gone")


def test_a_tracker_that_fails_costs_neither_the_run_nor_the_other_trackers(tiny_model, monkeypatch, capsys):
    class Failing(Fake):
        def __init__(self, run, known):
            if known:
                raise ConnectionError("no server")
            super().__init__(run, known)
            self.callback = Gone()

    monkeypatch.setattr(Fake, "begun", [], raising=False)
    monkeypatch.setitem(trackers.TRACKERS, "fake", Fake)
    monkeypatch.setitem(trackers.TRACKERS, "failing", Failing)
    monkeypatch.setattr(unused, "TRACKERS", (*unused.TRACKERS, "fake", "failing"))
    monkeypatch.setattr(unused, "is_installed", lambda name: True)
    assert run(tiny_model, output_dir="out", max_steps=3, report_to="failing,fake") == 0
    assert [step for _, _, step in Fake.last.tables] == [1, 2, 3]
    assert (Gone.calls, Fake.last.ended) == (2, 1)
    said = "--report-to failing failed (server gone), and the run goes on without it"
    assert capsys.readouterr().out.count(said) == 2, "when it fails, and at the end"
    assert "ConnectionError" in Path("out/run.log").read_text()

    assert run(tiny_model, output_dir="out", max_steps=4, report_to="failing,fake", resume=True) == 0
    assert "--report-to failing failed (no server)" in capsys.readouterr().out
    assert json.loads(Path("out", trackers.FILE).read_text()) == {"failing": "id-1", "fake": "id-2"}


def test_tensorboard_writes_where_its_variable_says_and_nowhere_else(tiny_model, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "events")
    assert run(tiny_model, output_dir="out") == 0
    assert list(Path("events").glob("events.*"))
    assert not Path("out/tensorboard").exists()


def test_rows_for_a_table_are_of_the_last_step_short_and_whole_text(tmp_path):
    file = tmp_path / "samples.jsonl"
    assert trackers.latest(file) == []
    lines = [
        {"step": step, "prompt": "p", "chosen": "c" * 9000, "rejected": "\ud800", "metrics": {"loss": 1.5}}
        for step in (1, 2, 2)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "pro')
    found = trackers.latest(file)
    assert len(found) == 2
    assert found[0] == {"step": 2, "prompt": "p", "chosen": "c" * 4000, "rejected": "?", "metrics/loss": 1.5}


def test_a_damaged_list_of_ids_begins_new_runs(tmp_path):
    for text in ("", "[1]", '{"mlflow": '):
        (tmp_path / trackers.FILE).write_text(text)
        assert trackers._read_ids(tmp_path) == {}


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="MLflow is not installed")
def test_mlflow_on_local_files(tiny_model, here, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{here}/mlflow.db")
    assert run(tiny_model, name="one", tag=["t"], report_to="mlflow") == 0
    assert run(tiny_model, output_dir="runs/one", name="one", max_steps=3, report_to="mlflow", resume=True) == 0
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("rlhf").experiment_id])
    assert [metric.step for metric in client.get_metric_history(found.info.run_id, "reward")] == [1, 2, 3]
    assert (found.info.run_name, found.info.status, found.data.tags["t"]) == ("one", "FINISHED", "true")
    assert "method: grpo" in mlflow.artifacts.load_text(f"runs:/{found.info.run_id}/config.yaml")
    table = mlflow.artifacts.load_dict(f"runs:/{found.info.run_id}/samples.json")
    assert "completion" in table["columns"]
    assert len(table["data"]) == 6


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="Trackio is not installed")
def test_trackio_on_local_files(tiny_model, here, monkeypatch):
    import trackio
    from trackio import sqlite_storage, utils

    for module in (trackio, utils, sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", here / "trackio")
    assert run(tiny_model, name="one", tag=["t"], report_to="trackio") == 0
    assert run(tiny_model, output_dir="runs/one", name="one", max_steps=3, report_to="trackio", resume=True) == 0
    assert run(tiny_model, output_dir="other/one", report_to="trackio", max_steps=1) == 0  # of the same name
    storage = sqlite_storage.SQLiteStorage
    assert sorted(storage.get_runs("rlhf")) == ["one", "one-2"]
    logs = storage.get_logs("rlhf", "one")
    assert [log["train/global_step"] for log in logs if "train/reward" in log] == [1, 2, 3]
    assert len([log for log in logs if "samples" in log]) == 3
    assert [config["rlhf"]["method"] for config in storage.get_all_run_configs("rlhf").values()] == ["grpo"] * 2
