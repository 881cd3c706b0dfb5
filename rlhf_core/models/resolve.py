"""The model that a command was given: a run's folder, a model's folder, an adapter's, or a name. Needs no torch."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_core.config import ALSO_BUILTIN, BUILTIN
from rlhf_core.errors import UserError
from rlhf_core.training import environment


@dataclass(frozen=True)
class Target:
    """The model that a command was given. `run` is the run's folder if it is one's; `adapter` its adapter_config."""

    model: str
    run: Path | None = None
    adapter: dict[str, Any] | None = None

    @property
    def is_reward_model(self) -> bool:
        """Whether it scores instead of writing."""
        if self.adapter is not None:
            return self.adapter.get("task_type") == "SEQ_CLS"
        file = Path(self.model) / "config.json"
        names = _read_json(file).get("architectures") if file.is_file() else None
        return any(name.endswith("ForSequenceClassification") for name in names or [])


def find(given: str) -> Target:
    """The model of a run's folder, a model's folder, or a name. Needs no torch. `UserError` if it is not there."""
    folder = Path(given).expanduser()
    if given in (BUILTIN, ALSO_BUILTIN):
        return Target(BUILTIN)
    if folder.is_file():
        raise UserError(f"{given} is a file: give the folder of a run or of a model")
    if not folder.is_dir():
        if given.startswith((".", "/", "~")) or given.count("/") != 1:
            raise UserError(f"{given}: there is no such folder")
        return Target(given)
    run, model = _run_and_model(folder)
    if run is not None and not _is_model(model):
        raise UserError(f"{given}: the run has no model yet. Go on with it: rlhf run --resume {given}")
    if not _is_model(model):
        raise UserError(f"{given} is neither a run's folder nor a model's: there is no config.yaml and no config.json")
    if not (model / "adapter_config.json").is_file():
        return Target(str(model), run)
    adapter = _read_json(model / "adapter_config.json")
    _check_base(given, adapter.get("base_model_name_or_path"))
    return Target(str(model), run, adapter)


def _run_and_model(folder: Path) -> tuple[Path | None, Path]:
    """A run's folder stands for the model in it, and a model that lies in a run's folder is that run's."""
    if _is_model(folder):
        run = folder.resolve().parent
        return (run if folder.resolve().name in ("model", "merged") and _is_run(run) else None), folder
    return (folder, folder / "model") if _is_run(folder) or _is_model(folder / "model") else (None, folder)


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} can't be read: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} is no JSON object")
    return values


def _check_base(given: str, base: str | None) -> None:
    if not base:
        raise UserError(f"{given} is an adapter that does not name its base model")
    if not Path(base).is_dir() and (base.startswith((".", "/", "~")) or base.count("/") != 1):
        raise UserError(f"{given} is an adapter of {base}, and there is no such folder")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Import transformers without its advice and its progress bars."""
    environment.prepare()
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of one library to another
            yield
    finally:
        transformers_logging.set_verbosity(level)
