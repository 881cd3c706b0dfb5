"""The runs in folders, read without torch and pydantic: what each is, how far it came, and whether it can go on.

    rlhf runs
    rlhf runs rm NAME

A damaged folder is a run with a `problem`, never an exception. What a run is made of is in its config.yaml, what became
known of it in manifest.json (`max_steps`, `ended`, `results`); runs of earlier versions lack these, and tell it by what
lies in their folders.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlhf_core.errors import UserError, first_line
from rlhf_core.inputs import read_bytes
from rlhf_core.outputs import LOCK, object_in
from rlhf_core.statistics import without_self

CONFIG, MANIFEST, METRICS, EVALUATION = "config.yaml", "manifest.json", "metrics.jsonl", "evaluation.json"
# Of a `new` one no step is done.
TRAINING, DONE, STOPPED, FAILED, NEW, DAMAGED = "training", "done", "stopped", "failed", "new", "damaged"
STATES = (TRAINING, DONE, STOPPED, FAILED, NEW, DAMAGED)
DEPTH = 6  # folders within folders
LIMIT = 1 << 26  # bytes of a manifest, an evaluation
TAIL = 1 << 16  # bytes of a log in which its last line is looked for
# The metric that tells most of a run: that of its first reward, else the first of these that it has.
MAIN = ("accuracy", "rewards/accuracies", "mean_token_accuracy", "reward", "loss")
_LINE = re.compile(rb"[A-Za-z_]\w*:( |$)|[ -] ?|\s*$")
_TOLD = re.compile(rb"^(?:method|model|data|reward|reward_model|name|tag|max_steps):.*\n(?:[ -].*\n)*", re.MULTILINE)


@dataclass
class PastRun:
    """One run. `before` and `after` are of held-out rows, or where none were held out the first and the last that was
    logged in training; `steps` of `max_steps`, where known; `changed` in seconds since 1970.
    """

    folder: str
    name: str
    state: str = DAMAGED
    problem: str = ""
    method: str = ""
    model: str = ""
    data: list[str] = field(default_factory=list)
    rewards: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    steps: int = 0
    max_steps: int | None = None
    metric: str = ""
    before: float | None = None
    after: float | None = None
    in_training: bool = False  # whether these were measured on what it trains on
    changed: float = 0.0
    resume: str | None = None  # the command

    @property
    def answers(self) -> bool:
        """Whether its model writes answers, which two can be compared by: a reward model does not."""
        for name in ("config.json", "adapter_config.json"):
            with contextlib.suppress(UserError, OSError):
                model = _object(Path(self.folder) / "model" / name)
                if model.get("task_type") == "SEQ_CLS" or "SequenceClassification" in str(model.get("architectures")):
                    return False
        return True

    def as_dict(self) -> dict[str, Any]:
        changed = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self.changed)) if self.changed else None
        return {**asdict(self), "changed": changed}


def is_run(folder: Path) -> bool:
    """Whether a run has begun in `folder`: a config.yaml alone may be anybody's."""
    return (folder / CONFIG).is_file() and any((folder / name).exists() for name in (LOCK, "checkpoints"))


def looks_like_run(folder: Path) -> bool:
    """Whether this is a run, or what is left of one that lost its config.yaml."""
    return is_run(folder) or ((folder / "checkpoints").is_dir() and (folder / METRICS).is_file())


def is_training(folder: Path) -> bool:
    """Whether a process holds the lock of a run's folder, as it does as long as it writes there."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


def find(folders: Iterable[Path]) -> Iterator[Path]:
    """The folders of runs in `folders`, also within one another, but not within a run or behind a link. Raises
    `UserError`.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: {'is no folder' if folder.exists() else 'there is no such folder'}")
        yield from _within(folder, DEPTH)


def _within(folder: Path, depth: int) -> Iterator[Path]:
    if looks_like_run(folder):
        yield folder
    elif depth:
        with contextlib.suppress(PermissionError), os.scandir(folder) as entries:
            below = [Path(e.path) for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith(".")]
            for each in sorted(below):
                yield from _within(each, depth - 1)


def read(folder: Path) -> PastRun:
    """The run in `folder`."""
    run = PastRun(str(folder), folder.name)
    try:
        config = _config(folder)
        manifest = _object(folder / MANIFEST)
        first, last, logged = _ends(folder / METRICS)
        _describe(run, config)
        run.changed = max(_changed(folder / name) for name in (CONFIG, METRICS, MANIFEST))
        run.steps, run.max_steps = max(logged, _last_checkpoint(folder)), _max_steps(folder, config, manifest)
        run.state = _state(folder, run, manifest)
        _measure(run, _results(folder, manifest), first, last)
    except (UserError, OSError) as error:
        run.problem = first_line(error).removeprefix(f"{folder}/")
        return run
    if run.state in (STOPPED, FAILED, NEW):
        run.resume = shlex.join(["rlhf", "run", "--resume", str(folder)])
    return run


def _describe(run: PastRun, config: Mapping[str, Any]) -> None:
    run.name = str(config.get("name") or run.name)
    run.method, run.model = str(config["method"]), str(config.get("model") or "")
    run.data, run.rewards, run.tags = (_texts(config.get(key)) for key in ("data", "reward", "tag"))
    if path := config.get("reward_model"):
        run.rewards.append(f"reward_model:path={path}")


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [] if value in (None, "") else [value]
    return [each if isinstance(each, str) else json.dumps(each, ensure_ascii=False, default=str) for each in values]


def _config(folder: Path) -> dict[str, Any]:
    """The keys of config.yaml that are told here. Where each begins a line, as we write it, the others are not parsed:
    YAML takes most of the time of a long list.
    """
    import yaml

    file = folder / CONFIG
    if not file.exists():
        raise UserError(f"{CONFIG} is missing")
    content = read_bytes(file)
    lines = content.splitlines(keepends=True)
    try:
        if all(map(_LINE.match, lines)):
            content = b"".join(_TOLD.findall(b"".join(lines)))
        values = yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{CONFIG} is not YAML: {first_line(error)}") from error
    if not isinstance(values, dict) or not isinstance(values.get("method"), str):
        raise UserError(f"{CONFIG} names no method")
    return values


def _object(file: Path) -> dict[str, Any]:
    """The JSON object in a file of the run; empty if there is none. Raises `UserError` for a damaged one."""
    if not file.exists():
        return {}
    try:
        value = json.loads(read_bytes(file, limit=LIMIT))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file.name} is not JSON") from error
    if not isinstance(value, dict):
        raise UserError(f"{file.name} is no object")
    return value


def _ends(file: Path) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The first and the last line of a log that a trained step wrote, each empty if there is none; and the last."""
    if not file.exists():
        return {}, {}, 0
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        head = stream.read(TAIL).split(b"\n")[:-1]
        stream.seek(max(0, size - TAIL))
        tail = stream.read(TAIL).split(b"\n")[-2::-1]
    beginning, end = ([line for line in map(object_in, part) if line] for part in (head, tail))
    step = next((_number(line.get("step")) for line in end), 0)
    first, last = (next(filter(_is_step, part), {}) for part in (beginning, end))
    return first, last, step


def _is_step(line: Mapping[str, Any]) -> bool:
    return bool(_number(line.get("step")) and {"loss", "reward"} & {*line})


def _last_checkpoint(folder: Path) -> int:
    steps = (path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoints/checkpoint-*"))
    return max((int(step) for step in steps if step.isascii() and step.isdecimal() and len(step) < 19), default=0)


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _max_steps(folder: Path, config: Mapping[str, Any], manifest: Mapping[str, Any]) -> int | None:
    known = _number(manifest.get("max_steps")) or _number(config.get("max_steps"))
    if known:
        return known
    for file in sorted(folder.glob("checkpoints/checkpoint-*/trainer_state.json"))[-1:]:
        with file.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - TAIL))
            if found := re.search(rb'"max_steps": (\d{1,18})', stream.read()):
                return int(found[1])
    return None


def _state(folder: Path, run: PastRun, manifest: Mapping[str, Any]) -> str:
    if is_training(folder):
        return TRAINING
    ended = manifest.get("ended")
    if isinstance(ended, dict) and ended.get("state") in STATES:
        return str(ended["state"])
    complete = (folder / "model" / "README.md").is_file() and run.steps >= (run.max_steps or 0)
    if complete:  # of an earlier version, or killed in its last evaluation
        return DONE
    return STOPPED if run.steps else NEW


def _results(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The means on held-out rows, `before` and `after`: from the manifest where they are there, for it is shorter."""
    found = manifest.get("results")
    return found if isinstance(found, dict) else _object(folder / EVALUATION)


def _measure(run: PastRun, results: Mapping[str, Any], first: Mapping[str, Any], last: Mapping[str, Any]) -> None:
    """Choose the main metric, and set it before and after."""
    before, after = (_means(results.get(when)) for when in ("before", "after"))
    names = [*before.get("rewards", {}), *(name for name in MAIN if name in before.get("metrics", {}))]
    one, other = ({**without_self(each.get("metrics", {})), **each.get("rewards", {})} for each in (before, after))
    run.in_training = not names
    if run.in_training:
        one, other = {**first}, {**last}
        names = [name for name in MAIN if name in one]
    run.metric = next(iter(names), "")
    run.before, run.after = _float(one.get(run.metric)), _float(other.get(run.metric))


def results(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The means on held-out rows that evaluation.json has, before and after, without the answers."""
    found = _object(folder / EVALUATION)
    return {when: _means(found.get(when)) for when in ("before", "after") if found.get(when)}


def _means(value: Any) -> dict[str, dict[str, Any]]:
    parts = value if isinstance(value, dict) else {}
    return {name: part for name in ("metrics", "rewards") if isinstance(part := parts.get(name), dict)}


def _float(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if usable and abs(value) <= sys.float_info.max else None  # NaN is not, either


def _changed(file: Path) -> float:
    with contextlib.suppress(OSError):
        return file.stat().st_mtime
    return 0.0
