"""Trackers, by transformers' own integrations: TensorBoard, W&B, Trackio, MLflow, SwanLab.

    rlhf run --report-to wandb,trackio …

The integrations send metrics and settings. What is ours: a tracker's run begins with the run's name, tags and
configuration, goes on as the same one when the run is resumed (its id is in trackers.json), gets some of the run's
answers as a table now and then, and ends when the run does. One that fails in training is left out from then on: no
run dies of its tracker. Where a tracker writes or sends to is for its own variables
to say: WANDB_MODE, WANDB_PROJECT, TRACKIO_DIR, MLFLOW_TRACKING_URI, SWANLAB_MODE and so on. Only the first of several
processes reports.
"""

from __future__ import annotations

import copy
import functools
import json
import logging
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers import integrations as by_transformers

from rlhf_core.errors import UserError, first_line
from rlhf_core.inputs import library_errors
from rlhf_core.outputs import write_whole
from rlhf_core.training.arguments import PROJECT
from rlhf_core.training.run_folder import tensorboard_folder

if TYPE_CHECKING:
    from rlhf_core.training.run import Run

log = logging.getLogger("rlhf")
FILE = "trackers.json"  # in the run's folder: the id of its run in each tracker
EVENTS = [name for name in vars(TrainerCallback) if name.startswith("on_")]
TABLES, ROWS = 10, 8  # in the course of a run, and rows of each
TAIL = 1 << 18  # bytes of samples.jsonl in which the latest rows are looked for
CELL = 4000  # characters


def begin(run: Run) -> list[TrainerCallback]:
    """Begin the run in each of its trackers; returns their callbacks. They end with `run.at_end`.

    Raises `UserError` for what a tracker refuses; a resumed run goes on without it.
    """
    found: list[TrainerCallback] = []
    ids = _read_ids(run.folder) if run.resume_from else {}
    for name in run.config.trackers:
        try:
            with library_errors(f"--report-to {name}"):
                callbacks = _begin_one(run, name, ids)
        except UserError as error:
            if run.resume_from is None:
                raise
            _lose(run, name, error)
            continue
        for callback in callbacks:
            for event in EVENTS:
                setattr(callback, event, functools.partial(_unless_lost, run, name, getattr(callback, event)))
        found += callbacks
    if ids:
        write_whole(run.folder / FILE, json.dumps(ids) + "\n")
    return found


def _begin_one(run: Run, name: str, ids: dict[str, str]) -> list[TrainerCallback]:
    """Begin the run in the tracker called `name`, whose id goes to `ids`."""
    if name == "tensorboard":
        return [_tensorboard(run.folder)]
    tracker = TRACKERS[name](run, ids.get(name))
    ids[name] = tracker.id
    run.at_end.callback(_unless_lost, run, name, tracker.end)
    return [tracker.callback, Samples(run.folder / "samples.jsonl", tracker.table)]


def _unless_lost(run: Run, name: str, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """What `call` returns. If it fails, the run goes on without the tracker called `name`."""
    if name in run.lost_trackers:
        return None
    try:
        return call(*arguments, **keywords)
    except Exception as error:  # a server that is gone, a full disk, a fault of the library
        _lose(run, name, error)
        return None


def _lose(run: Run, name: str, error: Exception) -> None:
    why = first_line(error).removeprefix(f"--report-to {name}: ")
    what = f"--report-to {name} failed ({why}), and the run goes on without it"
    run.lost_trackers[name] = f"{what}: what it lacks is in metrics.jsonl and samples.jsonl of {run.folder}"
    log.warning("%s", run.lost_trackers[name], exc_info=error)


def _read_ids(folder: Path) -> dict[str, str]:
    with suppress(OSError, ValueError):  # missing or damaged: the trackers begin new runs
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return {str(k): str(v) for k, v in values.items()} if isinstance(values, dict) else {}
    return {}


def _tensorboard(folder: Path) -> TrainerCallback:
    from torch.utils.tensorboard import SummaryWriter

    where = str(tensorboard_folder(folder))
    callback = by_transformers.TensorBoardCallback(SummaryWriter(log_dir=where))
    callback.logging_dir = where  # for what is logged after training, which it has a new writer for
    return callback


class _Wandb:
    def __init__(self, run: Run, known: str | None) -> None:
        import wandb

        self.id = known or secrets.token_hex(4)
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        what: dict[str, Any] = {"name": run.name, "tags": run.config.tag, "config": {"rlhf": run.config.to_dict()}}
        self.run = wandb.init(project=project, id=self.id, resume="allow", reinit="finish_previous", **what)
        self.make = wandb.Table
        self.callback = by_transformers.WandbCallback()

    def table(self, columns: list[str], rows: list[list[Any]], step: int) -> None:
        self.run.log({"samples": self.make(columns=columns, data=rows), "train/global_step": step})

    def end(self) -> None:
        self.run.finish()


class _Trackio:
    """Its runs have names alone: one that another run has gets a number."""

    def __init__(self, run: Run, known: str | None) -> None:
        import trackio

        self.trackio = trackio
        project = run.config.set.get("project", PROJECT)
        taken: set[str] = set()
        with suppress(ValueError):  # the project does not exist yet
            taken = {each.name for each in trackio.Api().runs(project)}
        names = (run.name, *(f"{run.name}-{number}" for number in range(2, len(taken) + 3)))
        self.id = known or next(name for name in names if name not in taken)
        name, what = self.id, {"rlhf": run.config.to_dict(), "tags": run.config.tag}

        class Callback(by_transformers.TrackioCallback):
            def setup(self, args, state, model, **kwargs):
                named = copy.copy(args)
                named.run_name = name
                super().setup(named, state, model, **kwargs)
                trackio.config.update(what, allow_val_change=True)

            def on_train_end(self, args, state, control, **kwargs):
                """The held-out rows are still to come: see `end`."""
                self.ended = lambda: super(Callback, self).on_train_end(args, state, control, **kwargs)

        self.callback = Callback()

    def table(self, columns: list[str], rows: list[list[Any]], step: int) -> None:
        self.trackio.log({"samples": self.trackio.Table(columns=columns, data=rows), "train/global_step": step})

    def end(self) -> None:
        ended = vars(self.callback).get("ended", self.trackio.finish)
        with suppress(RuntimeError):  # it had not begun
            ended()


class _MLflow:
    def __init__(self, run: Run, known: str | None) -> None:
        import mlflow

        self.mlflow = mlflow
        if uri := os.environ.get("MLFLOW_TRACKING_URI"):
            mlflow.set_tracking_uri(uri)
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        begun = mlflow.start_run(run_id=known) if known else mlflow.start_run(run_name=run.name)
        if known:  # it refuses a parameter whose value changed: of those that it has it is given none again
            os.environ["MLFLOW_MAX_LOG_PARAMS"] = "0"
        self.id = begun.info.run_id
        mlflow.set_tags({"mlflow.runName": run.name, **dict.fromkeys(run.config.tag, "true")})
        mlflow.log_dict(run.config.to_dict(), "config.yaml")
        self.callback = by_transformers.MLflowCallback()

    def table(self, columns: list[str], rows: list[list[Any]], step: int) -> None:
        values = {name: [row[i] for row in rows] for i, name in enumerate(columns)}
        self.mlflow.log_table(values, "samples.json")  # adds to those of earlier steps

    def end(self) -> None:
        self.mlflow.end_run()


class _SwanLab:
    def __init__(self, run: Run, known: str | None) -> None:
        import swanlab

        self.swanlab = swanlab
        self.id = known or secrets.token_hex(8)
        online = os.environ.get("SWANLAB_MODE", "online") in ("online", "cloud")
        goes_on: dict[str, Any] = (
            {"id": self.id, "resume": "allow"} if online else {}
        )  # what else it keeps are new files
        what = {"name": run.name, "tags": run.config.tag, "config": {"rlhf": run.config.to_dict()}}
        swanlab.init(project=os.environ.get("SWANLAB_PROJECT", PROJECT), reinit=True, **what, **goes_on)
        self.callback = by_transformers.SwanLabCallback()

    def table(self, columns: list[str], rows: list[list[Any]], step: int) -> None:
        table = self.swanlab.echarts.Table()
        table.add(columns, rows)
        self.swanlab.log({"samples": table}, step=step)

    def end(self) -> None:
        self.swanlab.finish()


TRACKERS: dict[str, Callable[[Run, str | None], Any]] = {
    "wandb": _Wandb,
    "trackio": _Trackio,
    "mlflow": _MLflow,
    "swanlab": _SwanLab,
}


class Samples(TrainerCallback):
    """Gives a tracker the latest rows of samples.jsonl as a table, `TABLES` times in a run."""

    def __init__(self, file: Path, send: Callable[[list[str], list[list[Any]], int], None]) -> None:
        self.file, self.send = file, send
        self.due = 1

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.global_step < self.due or not state.is_world_process_zero:
            return
        self.due = state.global_step + max(1, state.max_steps // TABLES)
        if found := latest(self.file):
            columns = ["step", *dict.fromkeys(key for row in found for key in row if key != "step")]
            self.send(columns, [[row.get(name) for name in columns] for row in found], state.global_step)


def latest(file: Path) -> list[dict[str, Any]]:
    """At most `ROWS` rows of the last step in samples.jsonl, each flat: text of the prompt and the answers, scores."""
    if not file.exists():
        return []
    with file.open("rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - TAIL))
        lines = stream.read().split(b"\n")[:-1]
    rows = []
    for line in lines:
        with suppress(ValueError):  # the first one may be half a line
            rows.append(json.loads(line))
    return [_flat(row) for row in rows if row["step"] == rows[-1]["step"]][:ROWS]


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if name == "prompt" and isinstance(value, list):
            value = "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in value)
        if name in ("rewards", "metrics") and isinstance(value, dict):
            flat |= {f"{name}/{key}": each for key, each in value.items()}
        elif name in ("tokens", "finished", "advantage") and not isinstance(value, list):
            flat[name] = value
        elif name in ("step", "prompt", "completion", "chosen", "rejected"):
            flat[name] = value if isinstance(value, int) else _text(value)
    return flat


def _text(value: Any) -> str:
    """Text that every tracker can store: of no more than `CELL` characters, and without halves of characters."""
    return str(value)[:CELL].encode("utf-8", "replace").decode("utf-8")
