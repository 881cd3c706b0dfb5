"""What rewards score: rows of the data with a model's answers. Needs no torch.

Rewards get a row as it was read. A trainer is given only its number (`ROW`): a table of typed columns would change it,
adding keys that other rows have, and a column named like one of TRL's arguments would take that argument's place.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_core.rewards.binding import RESERVED, ROW, TRL_NAMES

# What trainers log themselves.
OWN_METRICS = {"step", "time", "epoch", "loss", "grad_norm", "learning_rate", "reward", "reward_std", "kl", "entropy"}
TEXT_PROMPT = "text_prompt"  # the key of samples.jsonl that says that the data's prompts were plain text


@dataclass
class RewardBatch:
    """What rewards score: lists with one entry per row. The rows of a group are consecutive.

    `prompts` and `completions` hold messages, `completion_ids` the completion's tokens, `columns` the data's other
    columns by name. `trl` has TRL's other arguments (`trainer_state`, `log_metric(name, value)`,
    `log_extra(column, values)`); without it nothing is logged. `texts` are the completions' texts; unset: decoded.
    """

    prompts: Sequence[Any]
    completions: Sequence[Any]
    completion_ids: Sequence[Sequence[int]]
    columns: Mapping[str, Sequence[Any]]
    trl: Mapping[str, Any] = field(default_factory=dict)
    texts: Sequence[str] = field(default=(), compare=False)

    def __len__(self) -> int:
        return len(self.completions)

    def log_metric(self, name: str, value: float) -> None:
        """Log a metric where a trainer asked for the scores."""
        if "log_metric" in self.trl:
            self.trl["log_metric"](name, value)


def callbacks_of(trl: Mapping[str, Any], size: int) -> dict[str, Any]:
    """TRL's arguments for one call: a reward that misuses them fails itself, and not the trainer later."""
    found = dict(trl)
    if trl.get("trainer_state") is not None:
        found["trainer_state"] = state = copy.copy(trl["trainer_state"])
        vars(state).update({name: list(value) for name, value in vars(state).items() if isinstance(value, list)})

    def log_metric(name: str, value: float) -> None:
        if not _is_name(name) or name in OWN_METRICS:
            raise ValueError(f"log_metric: {name!r:.80} is no name of its own, such as 'my_reward/words'")
        trl["log_metric"](name, float(value))

    def log_extra(column: str, values: Sequence[Any]) -> None:
        if not _is_name(column) or len(values) != size:
            raise ValueError(f"log_extra takes a name and a list of {size} values, one for each completion")
        trl["log_extra"](column, values)

    return found | {log.__name__: log for log in (log_metric, log_extra) if log.__name__ in trl}


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and bool(value.strip())


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """What rewards get of `rows` beside the prompts, as lists by column; None where a row has no such column."""
    names = dict.fromkeys(name for row in rows for name in row if name not in RESERVED)
    return {name: [row.get(name) for row in rows] for name in names}


def columns_left_out(names: Sequence[str]) -> list[str]:
    """A warning about those of the data's columns `names` that rewards would expect and don't get; [] for none."""
    taken = [name for name in names if name in TRL_NAMES | {ROW}]
    if not taken:
        return []
    columns = f"column{'s' * (len(taken) > 1)} {', '.join(taken)}"
    return [
        f"rewards don't get the data's {columns}: a run passes values of its own under such a name. Rename a column "
        "that a reward needs"
    ]
