"""Reward models, which rewards of a run load beside the model that is trained: their weights, and their passes over the
answers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rlhf_core.catalog import Catalog
from rlhf_core.config import RunConfig
from rlhf_core.estimate.meter import Meter
from rlhf_core.models import loading
from rlhf_core.models.loading import ModelInfo
from rlhf_core.rewards.binding import BoundReward, bind_all
from rlhf_core.rewards.runtime import RewardRuntime

WEIGHTS, PHASE = "reward model", "rewards"
ROWS = 8  # that a reward model scores at once


def bind(config: RunConfig, catalog: Catalog) -> tuple[list[BoundReward], list[ModelInfo]]:
    """The run's rewards, and the reward models that they check while they are bound. Raises `UserError`."""
    found: list[ModelInfo] = []
    check = loading.check_scorer

    def noted(*args: Any, **kwargs: Any) -> ModelInfo:
        found.append(check(*args, **kwargs))
        return found[-1]

    loading.check_scorer = noted
    try:
        return bind_all(config.reward_specs, catalog), found
    finally:
        loading.check_scorer = check


def install(infos: Sequence[ModelInfo], runtime: RewardRuntime, tokens: int, meter: Meter) -> None:
    """Load the models, and let them score whatever answers the runtime scores: rows of so many `tokens`."""
    models = [loading.load_scorer(info)[0] for info in infos]
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            meter.assign(tensor, WEIGHTS)
    runtime.evaluate = functools.partial(_evaluate, meter, models, tokens, runtime.evaluate)  # type: ignore[method-assign]


@torch.no_grad()
def _evaluate(meter: Meter, models: Sequence[Any], tokens: int, compute: Callable[..., Any], batch: Any) -> Any:
    for model in models:
        with meter.during(PHASE, repeat=len(batch) / ROWS):
            model(input_ids=torch.zeros(ROWS, tokens, dtype=torch.long))
    return compute(batch)
