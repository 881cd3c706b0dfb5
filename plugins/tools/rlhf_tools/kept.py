"""Answers of `rlhf eval` that were given before: in the user's cache folder, by all that decides what they are.

That is the content of the model's files and of those of the rewards, the questions as token ids, the settings, and the
versions of what computes them. `rlhf/eval` in `$XDG_CACHE_HOME` (or `~/.cache`) may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf_core.commands import (
    cache_folder,
    content_of,
    device,
    files_of_reward,
    gpu_has_bfloat16,
    library_versions,
    write_whole,
)
from rlhf_tools.answering import Asking, token_ids
from rlhf_tools.results import MODES, Answer, Answers

MOST = 200  # entries; those used longest ago go


def reason_against(asking: Asking) -> str:
    """Why answers are not kept; an empty string if they are."""
    info = asking.infos[0]
    if not Path(info.path).is_dir():
        return f"{info.path} is no folder here"
    for reward in asking.rewards.rewards:
        if not reward.reward.deterministic:
            return f"reward {reward.name} may score an answer otherwise another time"
        if reward.distribution is None and ".py:" not in reward.spec.target:
            return f"reward {reward.name} is of a module whose version is not known"
    return ""


def key_of(asking: Asking) -> str:
    info = asking.infos[0]
    decides = {
        "model": [content_of([one]) + _written(one) for one in (info.path, info.adapter) if one],
        "prompts": token_ids(asking, 0),
        "rows": asking.questions.rows,
        "rewards": [
            [str(one.spec), one.distribution, content_of(files_of_reward(one.spec))] for one in asking.rewards.rewards
        ],
        "settings": [
            asking.samples,
            asking.temperature,
            asking.max_completion_length,
            asking.seed,
            asking.load_in_4bit,
        ],
        "device": [str(device()), gpu_has_bfloat16()],
        "versions": library_versions(),
    }
    text = json.dumps(decides, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _written(folder: str) -> list[int]:
    """When each file was: of large ones the content is only sampled."""
    return [file.stat().st_mtime_ns for file in sorted(Path(folder).glob("*"))]


def find(key: str) -> tuple[dict[str, Answers], str] | None:
    """(the answers by mode, when they were given), if there are any."""
    file = cache_folder("eval") / f"{key}.json"
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
        os.utime(file)
        modes = {mode: [[Answer(**answer) for answer in group] for group in written["answers"][mode]] for mode in MODES}
        return modes, str(written["time"])
    except (OSError, ValueError, TypeError, KeyError):  # not there, or damaged
        return None


def keep(key: str, answers: Mapping[str, Answers]) -> str:
    """Keep the answers; returns why they are not kept, if so."""
    if any(answer.errors for groups in answers.values() for group in groups for answer in group):
        return "a reward failed"
    modes: dict[str, Any] = {mode: [[asdict(a) for a in group] for group in groups] for mode, groups in answers.items()}
    place = cache_folder("eval")
    try:
        place.mkdir(parents=True, exist_ok=True)
        write_whole(place / f"{key}.json", json.dumps({"time": time.strftime("%Y-%m-%d %H:%M"), "answers": modes}))
        entries = sorted(place.glob("*.json"), key=lambda file: file.stat().st_mtime)
    except OSError as error:  # a full disk, a home that can't be written to, an entry that another process deletes
        return f"{place}: {error.strerror}"
    for file in entries[:-MOST]:
        with suppress(OSError):  # another process deletes as well
            file.unlink()
    return ""
