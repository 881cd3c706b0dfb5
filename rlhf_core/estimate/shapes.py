"""Shapes of the usual models, for estimates without a model's files and without network.

models.json has, by the model's name on the Hub, the fields of its config.json that decide shapes, and the number of
parameters that load, where weights that are shared count once: of Qwen3.5, and of Gemma 3 from 4B on, also the part
that reads images. The numbers agree with the published ones. `also` names models of
the same shape with what is different in their config.json.
"""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core.errors import UserError, did_you_mean, excerpt

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Shape = dict[str, Any]  # `parameters`, and `config`: the fields of a config.json


def find_shape(name: str) -> tuple[str, Shape]:
    """A model's name on the Hub and its shape. `name` is that name or, without owner, as much of it as is enough to
    tell the shape, with or without capitals and hyphens.

    Raises `UserError` for a model that is not in the table.
    """
    known, given = shapes(), name.strip().lower()
    full = {known_as.lower(): known_as for known_as in known}.get(given) or _by_short_name(given)
    if full is None:
        candidates = {(known_as if "/" in given else known_as.partition("/")[2]).lower() for known_as in known}
        instead = did_you_mean(given, candidates) or f" These are known: {', '.join(_table())}."
        raise UserError(
            f"{excerpt(name)} is not among the models whose shape is known without their files.{instead} Of another "
            "model give the folder; its config.json is enough"
        )
    return full, copy.deepcopy(known[full])


def _by_short_name(name: str) -> str | None:
    """The model with this name without owner, or the first of the only shape with names that begin so."""
    given = _letters(name)
    begins: dict[str, str] = {}
    for full, entry in _table().items():
        for known in (full, *entry["also"]):
            short = _letters(known.partition("/")[2])
            if short == given:
                return known
            if given and short.startswith(given):
                begins.setdefault(full, known)
    return begins.popitem()[1] if len(begins) == 1 else None


def _letters(name: str) -> str:
    return re.sub(r"[\s._-]", "", name.lower())


def config_of(shape: Shape) -> PreTrainedConfig:
    """The configuration of a shape, as from its config.json."""
    from transformers import AutoConfig

    fields = copy.deepcopy(shape["config"])
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


@cache
def shapes() -> dict[str, Shape]:
    """Of every model whose shape is known, by its name on the Hub."""
    return {
        name: {"parameters": entry["parameters"], "config": {**entry["config"], **differences}}
        for first, entry in _table().items()
        for name, differences in {first: {}, **entry["also"]}.items()
    }


@cache
def _table() -> dict[str, Shape]:
    return json.loads(Path(__file__).with_name("models.json").read_text(encoding="utf-8"))
