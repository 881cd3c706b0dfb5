"""What a model's name or folder means, for every command that takes one. Needs no torch."""

from __future__ import annotations

import logging
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_core import builtin, environment
from rlhf_core.config import BUILTIN, builtin_name
from rlhf_core.errors import UserError, excerpt
from rlhf_core.inputs import library_errors, path_of
from rlhf_core.models.checkpoints import find_named, is_checkpoint, list_checkpoints
from rlhf_core.models.files import ADAPTER_CONFIG, CONFIG, check_folder, read_object

HUB_PART = 96  # characters of an owner and of a name
_HUB_PART = re.compile(r"\w(?:[\w.-]*\w)?", re.ASCII)


@dataclass(frozen=True)
class ModelReference:
    """A model that exists, or may exist on the Hub.

    `path` is its folder (absolute, so that an adapter trained on it names a base model that is found from everywhere)
    or its Hub id, `base` the same of the model whose weights load first: an adapter's base model, otherwise the model
    itself. `called` is its name in messages, `run` the folder of the run that it is from, if any, and `adapter` the
    content of its adapter_config.json, if it is an adapter. `trust_remote_code`: code that the model brings may run.
    """

    path: str
    base: str
    called: str
    run: Path | None = None
    adapter: dict[str, Any] | None = None
    trust_remote_code: bool = False

    @property
    def base_called(self) -> str:
        return f"{self.base}, the base model of {self.called}," if self.adapter else self.called

    @property
    def is_reward_model(self) -> bool:
        """Whether it scores instead of writing."""
        if self.adapter is not None:
            return self.adapter.get("task_type") == "SEQ_CLS"
        file = Path(self.path) / CONFIG
        names = read_object(file).get("architectures") if file.is_file() else None
        return any(scores(name) for name in names or [])

    @property
    def moved(self) -> str:
        """Says so where an adapter's base model is not where its adapter_config.json says; otherwise ""."""
        named = self.adapter["base_model_name_or_path"] if self.adapter else self.base
        at = os.path.abspath(Path(named).expanduser())
        return "" if self.base in (named, at) else f"the adapter's base model {named} is taken from {self.base}"


def find(given: str, flag: str = "", *, trust_remote_code: bool = False) -> ModelReference:
    """The model that the folder of a run, model or adapter, a run's checkpoint (RUN@STEP, RUN@best, RUN@last), a Hub id
    or `builtin` refers to. Raises `UserError` for other text, in which `flag` comes before `given`, and for folders
    that hold something else than their names say.
    """
    called, trust = f"{flag} {excerpt(given)}".strip(), trust_remote_code
    if builtin_name(given) == BUILTIN:
        return ModelReference(str(builtin.MODEL), str(builtin.MODEL), called)
    checkpoint = find_named(given, called)
    folder = checkpoint or path_of(given, flag or "the model")
    with library_errors(f"{called} can't be read"):
        mode = folder.stat().st_mode if folder.exists() else None
    if mode is not None and not stat.S_ISDIR(mode):
        what = "a file" if stat.S_ISREG(mode) else "no folder"
        raise UserError(f"{called} is {what}: give the folder of a run or of a model")
    if mode is None:
        if not is_hub_id(given):
            raise UserError(f"{called}: there is no such folder")
        return ModelReference(given, given, called, trust_remote_code=trust)
    with library_errors(f"{called} can't be read"):
        run, model = _run_and_model(folder)
        has_model = _is_model(model)
    if not has_model:
        if run is not None:
            raise UserError(f"{called}: the run has no model yet. {_instead(run, given)}")
        raise UserError(f"{called} is neither a run's folder nor a model's: it has no config.yaml and no config.json")
    check_folder(model)
    path, base, adapter = os.path.abspath(model), os.path.abspath(model), None
    if (model / ADAPTER_CONFIG).is_file():
        adapter = read_object(model / ADAPTER_CONFIG)
        base = _base(adapter.get("base_model_name_or_path"), Path(path), called)
    return ModelReference(path, base, called, run, adapter, trust)


def _base(named: Any, adapter: Path, called: str) -> str:
    """The folder or Hub id of the base model that the adapter in a folder names. Raises `UserError`."""
    if not named or not isinstance(named, str):
        raise UserError(f"{called} is an adapter that does not name its base model")
    where = f"base_model_name_or_path in {adapter / ADAPTER_CONFIG}"
    base = _find_base(named, adapter)
    if base is None:
        raise UserError(
            f"{called} is an adapter of {excerpt(named)}, and there is no such folder. Put the base model there, or "
            f"write where it is now as {where}"
        )
    if os.path.isdir(base):
        if (Path(base) / ADAPTER_CONFIG).exists():
            raise UserError(
                f"{called}: {where} is {base}, an adapter itself. Merge that one first (rlhf merge {base}), and name "
                "the merged model there"
            )
        if not (Path(base) / CONFIG).is_file():
            raise UserError(f"{called}: {where} is {base}, which is no model's folder: it has no {CONFIG}")
        check_folder(Path(base))
    return base


def scores(architecture: str) -> bool:
    """Whether a class of models, as in `architectures` of config.json, scores or labels texts instead of writing."""
    return architecture.endswith(("Classification", "RewardModel", "QuestionAnswering", "MultipleChoice"))


def _instead(run: Path, given: str) -> str:
    """What to do with a run that has no model yet."""
    there = list_checkpoints(run / "checkpoints")
    return f"Resume it: rlhf run --resume {given}" + (f", or give its last checkpoint: {run}@last" if there else "")


def _find_base(named: str, adapter: Path) -> str | None:
    """The folder or Hub id of the base model that an adapter names; None if there is none.

    A relative path begins at the current folder or, since adapters are used from elsewhere, at a folder above the
    adapter. A tree of folders that was moved whole has the base model at the same place beside the adapter.
    """
    given = path_of(named, "base_model_name_or_path")
    if given.is_dir():
        return os.path.abspath(given)
    if given.parts[-3:] == builtin.MODEL.parts[-3:]:
        return str(builtin.MODEL)
    parts = given.parts[1:] if given.is_absolute() else given.parts
    shortest = 2 if given.is_absolute() else len(parts)
    for length in range(len(parts), shortest - 1, -1):
        for above in adapter.parents:
            found = above.joinpath(*parts[-length:])
            if found != adapter and (found / CONFIG).is_file():
                return os.path.abspath(found)
    return named if is_hub_id(named) and not given.exists() else None


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form of a Hub id, OWNER/NAME. `runs/NAME` is a run."""
    parts = [part for part in name.split("/") if len(part) <= HUB_PART and _HUB_PART.fullmatch(part)]
    return (
        len(parts) == 2
        and name.count("/") == 1
        and not any(wrong in name for wrong in ("--", ".."))
        and not name.startswith("runs/")
    )


def _run_and_model(folder: Path) -> tuple[Path | None, Path]:
    """(run's folder or None, model's folder), whichever of the two `folder` is."""
    if _is_model(folder):
        path = folder.resolve()
        run = path.parents[1] if is_checkpoint(path) else path.parent
        is_its = path.name in ("model", "merged") or is_checkpoint(path)
        return (run if is_its and (run / "config.yaml").is_file() else None), folder
    is_run = (folder / "config.yaml").is_file() or _is_model(folder / "model")
    return (folder, folder / "model") if is_run else (None, folder)


def _is_model(folder: Path) -> bool:
    return (folder / CONFIG).exists() or (folder / ADAPTER_CONFIG).exists()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Import transformers without its advice and its progress bars, and without its question whether code may run."""
    environment.prepare()
    from transformers import dynamic_module_utils
    from transformers.utils import logging as transformers_logging

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # seconds to answer: code that is trusted may load models in turn
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of one library to another
            yield
    finally:
        transformers_logging.set_verbosity(level)
