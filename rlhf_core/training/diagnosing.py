"""Says what is wrong with a run while it trains: each diagnosis once, on the screen, in run.log and diagnoses.jsonl."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback

from rlhf_core.diagnoses import catalog, folder, reading
from rlhf_core.diagnoses.finding import INFO
from rlhf_core.words import language

if TYPE_CHECKING:
    from rlhf_core.training.callbacks import Checkpoints
    from rlhf_core.training.run import Run

log = logging.getLogger("rlhf")


class Diagnosing(TrainerCallback):
    """Looks at what is logged, in the first process; what it finds stops the run in all, if `--stop-on` names it.

    It comes after what writes metrics.jsonl, and before what saves and stops. It reads the run's files, so that a
    resumed run has seen what was logged before its checkpoint, and says nothing again that is in diagnoses.jsonl. A
    fault of ours in a diagnosis ends the diagnoses, and not the run.
    """

    def __init__(self, run: Run, checkpoints: Checkpoints, notes: list[str]) -> None:
        self.notes = notes  # lines of the live view
        self.folder, self.checkpoints, self.language = run.folder, checkpoints, language()
        self.stop_on = run.config.stop_on
        self.data = run.config.data_specs[0].source
        self.summary = reading.of_config(run.config.to_dict(), {"data": {"rows": len(run.train_rows)}})
        self.summary.weights = {reward.name: reward.weight for reward in run.rewards.rewards}
        self.logs = [reading.Lines(run.folder / name) for name in folder.LOGS]
        self.said: set[str] = set()
        self.broken = False
        self.stopping = 0  # 1 + the number of the diagnosis that stops the run

    def on_train_begin(self, args, state, control, **kwargs):
        self.summary.max_steps = state.max_steps
        if state.is_world_process_zero:
            self.said = {*folder.said_of(self.folder)}
            again = self.said if catalog.ANY in self.stop_on else self.said & {*self.stop_on}
            if again:
                log.warning("--stop-on: %s was found before, and does not stop the run again", ", ".join(sorted(again)))
            with self._guarded():
                self._read()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and not self.broken:
            before = self.summary.lines
            with self._guarded():
                self._read()
                if self.summary.lines > before and catalog.is_due(self.summary):
                    self._look()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # of the run's folder, which the run itself tells
            raise
        except Exception:
            self.broken = True
            log.exception("the diagnoses of this run failed: it goes on without them")

    def on_step_end(self, args, state, control, **kwargs):
        if not self.stop_on:
            return
        asked = torch.tensor(float(self.stopping), device=args.device)
        if stopping := int(reduce(asked, "sum")):  # all processes stop for the same reason
            self.checkpoints.request_stop(f"--stop-on {catalog.DIAGNOSES[stopping - 1].name}")

    def no_number(self, step: int) -> None:
        """The loss of `step` is no number, and the run stops before the trainer logs that: it is logged here, so that
        the logs say it afterwards, too.
        """
        with self._guarded():
            with (self.folder / folder.LOGS[0]).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": step, "time": round(time.time(), 2), "loss": None}) + "\n")
            self._read()
            for line in self._found():
                self._write(line)

    def at_the_end(self) -> None:
        """Look once more, after the last evaluation: in a short run less evidence is enough."""
        if self.summary.lines and not self.broken:
            with self._guarded():
                self._read()
                self.summary.ended = True
                self._look()

    def _read(self) -> None:
        metrics, samples, evaluations = self.logs
        for line in samples.new():
            self.summary.add_sample(line)
        for line in evaluations.new():
            self.summary.add_evaluation(line)
        for line in metrics.new():
            self.summary.add_metrics(line)

    def _found(self) -> list[dict[str, Any]]:
        """What is found for the first time, without what is no fault."""
        found = list(catalog.look(self.summary, self.said, str(self.folder), self.data))
        self.said |= {line["name"] for line in found}
        return [line for line in found if line["level"] != INFO]

    def _look(self) -> None:
        for line in self._found():
            self._write(line)
            name, text = line["name"], catalog.text_of(line["name"], self.language)
            evidence = "; ".join(line["evidence"])
            log.warning("%s, step %d: %s (%s) → %s", name, line["step"], text, evidence, line["command"])
            self.notes.append(f"{name}, step {line['step']}: {evidence}")
            if {name, catalog.ANY} & {*self.stop_on}:
                self.stopping = self.stopping or 1 + list(catalog.BY_NAME).index(name)

    def _write(self, line: dict[str, Any]) -> None:
        with (self.folder / folder.FILE).open("a", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(folder.as_line(line))
